package fsck

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func pod(id string) Ref { return Ref{Pod, id} }

// ready is a pod that needs its namespace.
func ready(id string) Owner {
	return Owner{Ref: pod(id), Name: "web", Namespace: "shop", State: "ready", Settled: true, File: "/state/" + id,
		Needs: []Thing{{Kind: Namespace, Name: "/ns/" + id, Live: true, Fault: &Fault{Remedy: "make it again"}}}}
}

func pin(id string) Thing { return Thing{Kind: Namespace, Name: "/ns/" + id, Of: pod(id), Live: true} }

// brief is a finding in short.
func brief(found []Finding) []string {
	var all []string
	for _, f := range found {
		all = append(all, fmt.Sprint(f.Problem, " ", f.Kind, " ", f.Name))
	}
	return all
}

func TestCompare(t *testing.T) {
	busy, stopped, dead := ready("a"), ready("a"), ready("a")
	busy.Settled = false
	stopped.State = "notready"
	dead.Needs = nil
	broken := Owner{Ref: pod("a"), File: "/state/a", Fault: &Fault{Problem: Unreadable, Why: "garbage"}}
	unbound := pin("a")
	unbound.Live = false
	stray := Thing{Kind: Trash, Name: "/trash/1", Fault: &Fault{Problem: Orphaned}}
	one := func(o ...Owner) []Owner { return o }
	for name, c := range map[string]struct {
		inv  Inventory
		want []string
	}{
		"nothing at all":                {},
		"whole":                         {inv: Inventory{one(ready("a")), []Thing{pin("a")}, one(ready("a"))}},
		"nobody's":                      {inv: Inventory{nil, []Thing{pin("a")}, nil}, want: []string{"orphaned namespace /ns/a"}},
		"made while it was listed":      {inv: Inventory{nil, []Thing{pin("a")}, one(busy)}},
		"ready since the listing":       {inv: Inventory{nil, nil, one(ready("a"))}},
		"removed while it was listed":   {inv: Inventory{one(ready("a")), []Thing{pin("a")}, nil}},
		"removed before it was listed":  {inv: Inventory{one(ready("a")), nil, nil}},
		"another's":                     {inv: Inventory{one(ready("b")), []Thing{pin("a"), pin("b")}, one(ready("b"))}, want: []string{"orphaned namespace /ns/a"}},
		"missing":                       {inv: Inventory{one(ready("a")), nil, one(ready("a"))}, want: []string{"missing namespace /ns/a"}},
		"only its name is there":        {inv: Inventory{one(ready("a")), []Thing{unbound}, one(ready("a"))}, want: []string{"missing namespace /ns/a"}},
		"missing, since it is made":     {inv: Inventory{one(busy), nil, one(ready("a"))}},
		"missing, since it is removed":  {inv: Inventory{one(ready("a")), nil, one(busy)}},
		"missing, since it was stopped": {inv: Inventory{one(ready("a")), nil, one(stopped)}},
		"it needs nothing":              {inv: Inventory{one(dead), nil, one(dead)}},
		"a record that is broken":       {inv: Inventory{one(broken), []Thing{pin("a")}, one(broken)}, want: []string{"unreadable record /state/a"}},
		"a fault of no object":          {inv: Inventory{nil, []Thing{stray}, nil}, want: []string{"orphaned trash /trash/1"}},
		"the same id of another kind": {inv: Inventory{one(ready("a")), []Thing{pin("a"), {Kind: Rootfs, Name: "/r/a", Of: Ref{Container, "a"}}}, one(ready("a"))},
			want: []string{"orphaned rootfs /r/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, brief(Compare(c.inv))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFindingsSayWhose(t *testing.T) {
	found := Compare(Inventory{[]Owner{ready("a")}, nil, []Owner{ready("a")}})
	want := []Finding{{
		Problem: Missing, Thing: Thing{Kind: Namespace, Name: "/ns/a", Of: pod("a"), Live: true},
		Owner: Description{Name: "web", Namespace: "shop", State: "ready"}, Remedy: "make it again",
	}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
}

// However a pod comes and goes between the listings of two looks, it is never told of: it is known before it has anything
// and until it has nothing any more.
func TestNoMomentOfALifeIsAFinding(t *testing.T) {
	busy := ready("a")
	busy.Settled = false
	type moment struct {
		owners []Owner
		things []Thing
	}
	life := []moment{
		{nil, nil}, {[]Owner{busy}, nil}, {[]Owner{busy}, []Thing{pin("a")}}, {[]Owner{ready("a")}, []Thing{pin("a")}},
		{[]Owner{busy}, []Thing{pin("a")}}, {[]Owner{busy}, nil}, {nil, nil},
	}
	looks := 0
	var look func(from int, at []int)
	look = func(from int, at []int) {
		if len(at) < 6 {
			for i := from; i < len(life); i++ {
				look(i, append(slices.Clone(at), i))
			}
			return
		}
		looks++
		first := Compare(Inventory{life[at[0]].owners, life[at[1]].things, life[at[2]].owners})
		second := Compare(Inventory{life[at[3]].owners, life[at[4]].things, life[at[5]].owners})
		if found := Confirm(first, second); len(found) > 0 {
			t.Errorf("listed at %v: %v", at, brief(found))
		}
	}
	look(0, nil)
	if looks != 924 {
		t.Errorf("tried %d times", looks)
	}
}

func TestConfirmKeepsWhatStays(t *testing.T) {
	first := []Finding{{Problem: Orphaned, Thing: pin("a")}, {Problem: Orphaned, Thing: pin("b")}}
	second := []Finding{{Problem: Orphaned, Thing: pin("b")}, {Problem: Missing, Thing: pin("a")}, {Problem: Orphaned, Thing: pin("c")}}
	if got := brief(Confirm(first, second)); !slices.Equal(got, []string{"orphaned namespace /ns/b"}) {
		t.Error(got)
	}
}

func TestWhatMayBeAnothersIsDropped(t *testing.T) {
	shared := func(id string) Finding {
		return Finding{Problem: Orphaned, Thing: Thing{Kind: Lease, Name: id, Of: pod(id), Shared: true}}
	}
	found := []Finding{shared("proven"), {Problem: Orphaned, Thing: pin("proven")}, shared("perhaps"), shared("alone")}
	got := Own(found, func(f Finding) bool { return f.Of.ID != "alone" })
	if want := []string{"orphaned ip lease proven", "orphaned namespace /ns/proven", "orphaned ip lease alone"}; !slices.Equal(brief(got), want) {
		t.Error(brief(got))
	}
	if ids := Orphans(got, Pod, false); !slices.Equal(ids, []string{"proven"}) {
		t.Error(ids)
	}
	if ids := Orphans(got, Pod, true); !slices.Equal(ids, []string{"alone", "proven"}) {
		t.Error(ids)
	}
}

func TestSettle(t *testing.T) {
	byHand := Finding{Problem: Missing, Thing: pin("c"), Remedy: "look"}
	found := []Finding{{Problem: Orphaned, Thing: pin("a")}, {Problem: Orphaned, Thing: pin("b")}, byHand}
	left := found[1:]
	var got []string
	for _, f := range Settle(found, left, func(f Finding) string { return "busy: " + f.Of.ID }) {
		got = append(got, f.Outcome)
	}
	if want := []string{Mended, "busy: b", "left to be done by hand"}; !slices.Equal(got, want) {
		t.Error(got)
	}
}
