package storage

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/crid/crid/internal/errdef"
)

// stocked is a store with one image for each mark, tagged example.com/MARK:1.
func stocked(t *testing.T, s *Images, marks ...string) (ids []string) {
	t.Helper()
	for _, mark := range marks {
		ids = append(ids, load(t, s, legacySave(t, map[string]v1.Image{"example.com/" + mark + ":1": simple(t, mark)}), "")[0].ID)
	}
	return ids
}

func TestATagMovesAtOnce(t *testing.T) {
	s := newWorld(t).open(t)
	ids := stocked(t, s, "a", "b")
	stop, done := make(chan struct{}), sync.WaitGroup{}
	done.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if img, err := s.Resolve(t.Context(), "example.com/moving:1"); err == nil && !slices.Contains(ids, img.ID) || err != nil && !errors.Is(err, errdef.NotFound) {
				t.Errorf("the tag means %s, %v", img.ID, err)
			}
		}
	})
	for i := range 6 {
		img, err := s.Tag(t.Context(), ids[i%2], []string{"example.com/moving:1", "short"})
		check(t, err)
		if !slices.Contains(img.RepoTags, "docker.io/library/short:latest") || resolve(t, s, "example.com/moving:1").ID != ids[i%2] {
			t.Errorf("after move %d: %v", i, img.RepoTags)
		}
		if other := resolve(t, s, ids[(i+1)%2]); len(other.RepoTags) != 1 {
			t.Errorf("after move %d the other has %v", i, other.RepoTags)
		}
	}
	close(stop)
	done.Wait()
	for _, bad := range []string{"", "UPPER CASE", "example.com/x@sha256:" + ids[0]} {
		if _, err := s.Tag(t.Context(), ids[0], []string{bad}); !errors.Is(err, errdef.Invalid) {
			t.Errorf("a tag %q: %v", bad, err)
		}
	}
	if _, err := s.Tag(t.Context(), "example.com/absent:1", []string{"x"}); !errors.Is(err, errdef.NotFound) {
		t.Errorf("a tag for nothing: %v", err)
	}
}

func TestDrop(t *testing.T) {
	w := newWorld(t)
	w.Pinned = []string{"example.com/pinned:1"}
	s := w.open(t)
	ids := stocked(t, s, "a", "used", "pinned")
	s.SetUsers(func(id string) []string {
		if id == ids[1] {
			return []string{"container-1"}
		}
		return nil
	})
	_, err := s.Tag(t.Context(), ids[0], []string{"example.com/a:2"})
	check(t, err)
	_, err = s.Tag(t.Context(), ids[1], []string{"example.com/used:2"})
	check(t, err)
	for _, c := range []struct {
		ref   string
		force bool
		kind  error
		gone  bool
	}{
		{"example.com/absent:1", true, errdef.NotFound, false},
		{ids[0], false, errdef.WrongState, false}, // several tags
		{"example.com/a:2", false, nil, false},    // a name among others
		{"example.com/a:1", false, nil, true},     // the last
		{"example.com/used:2", false, nil, false}, // takes nothing from the container
		{"example.com/used:1", false, errdef.WrongState, false},
		{ids[1], true, errdef.WrongState, false}, // force does not help
		{"example.com/pinned:1", false, errdef.WrongState, false},
		{"example.com/pinned:1", true, nil, true},
	} {
		r, err := s.Drop(t.Context(), c.ref, c.force)
		if !errors.Is(err, c.kind) || r.Gone != c.gone && err == nil {
			t.Errorf("drop %s, force %v: %+v, %v", c.ref, c.force, r, err)
		}
		if c.ref == ids[1] && !strings.Contains(err.Error(), "container-1") {
			t.Errorf("who uses it is not said: %v", err)
		}
	}
	if all := list(t, s); len(all) != 1 || all[0].ID != ids[1] {
		t.Errorf("left: %v", all)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	w.Pinned = []string{"example.com/pinned:1"}
	s := w.open(t)
	ids := stocked(t, s, "tagged", "used", "pinned")
	dangling := load(t, s, plainDir(t, simple(t, "dangling")), "")[0].ID
	s.SetUsers(func(id string) []string {
		if id == ids[1] {
			return []string{"container-1"}
		}
		return nil
	})
	for _, c := range []struct {
		all, dry bool
		want     []string
		left     int
	}{
		{false, true, []string{dangling}, 4},
		{true, true, []string{dangling, ids[0]}, 4},
		{false, false, []string{dangling}, 3},
		{true, false, []string{ids[0]}, 2},
		{true, false, nil, 2},
	} {
		var got []string
		check(t, s.Prune(t.Context(), c.all, c.dry, func(r Removal) error {
			got = append(got, r.Image.ID)
			return nil
		}))
		if slices.Sort(c.want); !slices.Equal(got, c.want) || len(list(t, s)) != c.left {
			t.Errorf("all %v, dry %v: %v, %d left; want %v, %d", c.all, c.dry, got, len(list(t, s)), c.want, c.left)
		}
	}
}

func TestVerifyFindsWhatWasChanged(t *testing.T) {
	s := newDamagedWorld(t).open(t)
	ids := stocked(t, s, "well", "changed", "lost")
	spoil := func(id string, do func(dir string) error) {
		t.Helper()
		layers, err := s.Layers(t.Context(), id)
		check(t, err)
		check(t, do(layers[0]))
	}
	spoil(ids[1], func(dir string) error { return os.WriteFile(filepath.Join(dir, "top"), []byte("other of it"), 0o600) })
	spoil(ids[2], os.RemoveAll)
	verify := func(refs ...string) map[string]Verification {
		found := map[string]Verification{}
		check(t, s.Verify(t.Context(), refs, func(v Verification) error {
			found[v.Image.ID] = v
			return nil
		}))
		return found
	}
	all := verify()
	if v := all[ids[0]]; len(all) != 3 || len(v.Faults)+len(v.Unknown) > 0 || v.Layers != 2 {
		t.Errorf("%d images; of the one that is well: %+v", len(all), v)
	}
	for _, id := range ids[1:] {
		if v := all[id]; len(v.Faults) != 1 || v.Layers != 1 || !slices.Equal(v.Image.RepoTags, []string{"example.com/" + map[string]string{ids[1]: "changed", ids[2]: "lost"}[id] + ":1"}) {
			t.Errorf("of a spoilt image: %+v", v)
		}
	}
	check(t, s.reexamine()) // finds the lost one, which is then no longer offered
	if v := verify("example.com/lost:1", ids[0]); len(v) != 2 || len(v[ids[2]].Faults) == 0 {
		t.Errorf("by their names: %+v", v)
	}
	if err := s.Verify(t.Context(), []string{"absent"}, nil); !errors.Is(err, errdef.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	load(t, s, legacySave(t, map[string]v1.Image{"example.com/lost:1": simple(t, "lost")}), "")
	if v := verify(ids[2]); len(v[ids[2]].Faults) > 0 {
		t.Errorf("after it was loaded again: %+v", v)
	}
	err := s.Save(t.Context(), SaveRequest{Refs: []string{ids[1]}, Format: OCIArchive}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "differs") {
		t.Errorf("a changed layer was saved: %v", err)
	}
}
