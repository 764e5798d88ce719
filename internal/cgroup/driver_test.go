package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

func TestParentsOfEitherDriver(t *testing.T) {
	for _, c := range []struct {
		systemd     bool
		asked, want string // want "" = Invalid
	}{
		{true, "kubepods-burstable-pod1_2.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"},
		{true, "/kubepods.slice/kubepods-podx.slice", "/kubepods.slice/kubepods-podx.slice"},
		{true, "/kubepods.slice/kubepods-podx.slice/", "/kubepods.slice/kubepods-podx.slice"},
		{true, `a\x2db-c.slice`, `/a\x2db.slice/a\x2db-c.slice`},
		{true, "system.slice", "/system.slice"},
		{true, "/kubepods/podx", ""},
		{true, "/elsewhere/kubepods-podx.slice", ""},
		{true, "-.slice", ""},
		{true, ".slice", ""},
		{true, "a--b.slice", ""},
		{true, "-a.slice", ""},
		{true, "a-.slice", ""},
		{true, "a b.slice", ""},
		{true, strings.Repeat("a", 250) + ".slice", ""},
		{false, "/kubepods/podx", "/kubepods/podx"},
		{false, "kubepods//podx", "/kubepods/podx"},
		{false, "/", ""},
		{false, "kubepods-podx.slice", ""},
		{false, "/kubepods.slice/kubepods-podx.slice", ""},
	} {
		names := Names{Systemd: c.systemd}
		got, err := names.Parent(c.asked)
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, errdef.Invalid) {
			t.Errorf("%s, %q: got %q, %v, want %q", names, c.asked, got, err, c.want)
		}
	}
}

func TestScopesAreNamedAsRuntimesNameThem(t *testing.T) {
	names := Names{Systemd: true}
	leaf, monitor := names.Leaf("/k.slice/k-p.slice", "a"), names.MonitorLeaf("/k.slice/k-p.slice", "a")
	if leaf != "/k.slice/k-p.slice/crid-a.scope" || monitor != "/k.slice/k-p.slice/crid-mon-a.scope" {
		t.Errorf("leaves are %s and %s", leaf, monitor)
	}
	if got := RuntimePath(leaf); got != "k-p.slice:crid:a" {
		t.Errorf("the runtime is told %s", got)
	}
	for _, path := range []string{leaf, monitor} {
		if id, ok := idOf(path[strings.LastIndex(path, "/")+1:]); !IsScope(path) || id != "a" || !ok {
			t.Errorf("%s is no scope, or of %q", path, id)
		}
	}
	// A pod that was made under cgroupfs has no slice.
	if raw := names.Leaf("/kubepods/podx", "a"); IsScope(raw) || raw != "/kubepods/podx/crid-a" || RuntimePath(raw) != raw {
		t.Errorf("outside of a slice: %s", raw)
	}
}

// units is a systemd that has scopes and is asked for them.
type units struct {
	known map[string]bool
	pids  map[string]int
	err   error
	calls []string
}

func (u *units) StartScope(_ context.Context, name, slice string, pid int) error {
	u.calls = append(u.calls, "start "+slice+" "+name)
	if u.err == nil {
		u.known[name], u.pids[name] = true, pid
	}
	return u.err
}

func (u *units) Forget(_ context.Context, name string) error {
	u.calls = append(u.calls, "forget "+name)
	delete(u.known, name)
	return u.err
}

func (u *units) List(_ context.Context, pattern string) ([]string, error) {
	var found []string
	for name := range maps.Keys(u.known) {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found, u.err
}

func TestTheDriverAsksSystemdForScopesAlone(t *testing.T) {
	tree := &Tree{hierarchies: []hierarchy{{dir: t.TempDir(), unified: true}}}
	sd := &units{known: map[string]bool{"crid-a.scope": true}, pids: map[string]int{}}
	d := NewDriver(tree, sd)
	names, parent := Names{Systemd: true}, "/k.slice/k-p.slice"
	if err := d.Enter(t.Context(), names.MonitorLeaf(parent, "a"), 42); err != nil || sd.pids["crid-mon-a.scope"] != 42 {
		t.Errorf("enter: %v, %v", err, sd.pids)
	}
	if want := []string{"start k-p.slice crid-mon-a.scope"}; !slices.Equal(sd.calls, want) {
		t.Errorf("systemd was asked %q, want %q", sd.calls, want)
	}
	found, err := d.Find(t.Context(), "a")
	if err != nil || !slices.Equal(found, []string{"/crid-a.scope", "/crid-mon-a.scope"}) {
		t.Errorf("scopes without cgroups: %q, %v", found, err)
	}
	sd.known["crid-other.scope"] = true
	scopes, err := d.Scopes(t.Context(), func(id string) bool { return id == "a" })
	if err != nil || !maps.Equal(scopes, map[string]string{"crid-a.scope": "a", "crid-mon-a.scope": "a"}) {
		t.Errorf("scopes: %v, %v", scopes, err)
	}
	for _, path := range []string{names.Leaf(parent, "a"), names.MonitorLeaf(parent, "a"), Names{}.Leaf("/x", "a")} {
		if err := d.Remove(t.Context(), path); err != nil {
			t.Errorf("remove %s: %v", path, err)
		}
	}
	if sd.known["crid-a.scope"] || sd.known["crid-mon-a.scope"] || len(sd.calls) != 3 {
		t.Errorf("left %v after calls %q", sd.known, sd.calls)
	}
	sd.err = errdef.Unavailable
	if err := d.Remove(t.Context(), names.Leaf(parent, "a")); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("a unit that cannot be forgotten: %v", err)
	}
}

func TestOnlyOnV2AProcessIsBornInItsCgroup(t *testing.T) {
	v1, v2 := hierarchy{dir: t.TempDir()}, hierarchy{dir: t.TempDir(), unified: true}
	for name, c := range map[string]struct {
		hierarchies []hierarchy
		path        string
		born        bool
	}{
		"v2": {[]hierarchy{v2}, "/p/crid-mon-a", true}, "scope": {[]hierarchy{v2}, "/p.slice/crid-mon-a.scope", false},
		"v1": {[]hierarchy{v1}, "/p/crid-mon-a", false}, "hybrid": {[]hierarchy{v1, v2}, "/p/crid-mon-a", false},
	} {
		cradle, err := NewDriver(&Tree{hierarchies: c.hierarchies}, nil).Cradle(c.path)
		if err != nil || (cradle != nil) != c.born {
			t.Errorf("%s: %v, %v", name, cradle, err)
		}
		if cradle != nil && (cradle.Name() != v2.dir+c.path || cradle.Close() != nil) {
			t.Errorf("%s: born in %s", name, cradle.Name())
		}
	}
}

func TestKillsInScopesThatAreGone(t *testing.T) {
	dir := t.TempDir()
	tree := &Tree{hierarchies: []hierarchy{{dir: dir, controllers: []string{"memory"}, unified: true}}}
	d := NewDriver(tree, &units{known: map[string]bool{}, pids: map[string]int{}})
	names, slice := Names{Systemd: true}, "/k.slice"
	count := func(path string, kills int) {
		t.Helper()
		err := os.MkdirAll(filepath.Join(dir, path), 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, path, "memory.events"), fmt.Appendf(nil, "oom_kill %d\n", kills), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	leaf := func(id string) string { return names.Leaf(slice, id) }
	want := func(when, id string, kills uint64) {
		t.Helper()
		if got, err := d.OOMKills(leaf(id)); got != kills || err != nil {
			t.Errorf("%s: %d kills, %v, want %d", when, got, err, kills)
		}
	}
	if _, err := d.OOMKills(leaf("early")); !errors.Is(err, errdef.NotFound) {
		t.Errorf("a slice that is not counted for: %v", err)
	}
	count(slice, 5) // of containers that crid has not seen
	if err := d.Enter(t.Context(), names.MonitorLeaf(slice, "a"), 1); err != nil {
		t.Fatal(err)
	}
	count(leaf("b"), 0)
	want("gone without a kill", "a", 0)
	count(slice, 6)
	want("gone with one", "a", 1)
	want("the next", "c", 0)
	count(slice, 8)
	count(leaf("b"), 2)
	want("a sibling that lives had two", "c", 0)
	want("the sibling, before it goes", "b", 2)
	if err := os.RemoveAll(filepath.Join(dir, leaf("b"))); err != nil {
		t.Fatal(err)
	}
	want("after the sibling has gone", "c", 0)
	if err := os.RemoveAll(filepath.Join(dir, slice)); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), leaf("c")); err != nil || len(d.kills.told) > 0 {
		t.Errorf("a slice that is gone is counted for: %v, %v", d.kills.told, err)
	}
}

func TestScopesWithoutSystemd(t *testing.T) {
	d := NewDriver(&Tree{hierarchies: []hierarchy{{dir: t.TempDir(), unified: true}}}, nil)
	leaf := Names{Systemd: true}.MonitorLeaf("/k.slice", "a")
	if err := d.Enter(t.Context(), leaf, 1); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("enter: %v", err)
	}
	if err := d.Remove(t.Context(), leaf); err != nil {
		t.Errorf("a scope of a systemd that is gone: %v", err)
	}
	if scopes, err := d.Scopes(t.Context(), nil); err != nil || len(scopes) > 0 {
		t.Errorf("scopes: %v, %v", scopes, err)
	}
}
