package storage

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cstorage "go.podman.io/storage"
)

// view opens a store to be checked, for which every unused layer is old.
func (w *world) view(t *testing.T) *Images {
	t.Helper()
	s, err := ViewImages(w.ImagesConfig)
	check(t, err)
	s.leases.idle = 0
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

// faults are what Check finds, in short.
func faults(t *testing.T, s *Images, contents bool) []string {
	t.Helper()
	found, err := s.Check(t.Context(), contents)
	check(t, err)
	var all []string
	for _, f := range found {
		if f.Err == nil {
			t.Errorf("%v says nothing", f)
		}
		all = append(all, string(f.Kind)+" "+f.ID)
	}
	slices.Sort(all)
	return all
}

func TestCheckFindsAndMendsWhatNobodyHas(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	pulling := w.open(t)
	img := pull(t, pulling, r.host+"/a:1")
	_, err := pulling.Layers(t.Context(), img.ID) // takes a lease
	check(t, err)
	check(t, pulling.Close())

	s := w.view(t)
	if found := faults(t, s, true); len(found) > 0 {
		t.Fatalf("in a whole store: %v", found)
	}
	unused, err := s.store.CreateLayer("", "", nil, "", false, nil)
	check(t, err)
	lost := strings.Repeat("d", 64)
	check(t, os.MkdirAll(filepath.Join(s.root, "overlay", lost, "diff"), 0o700))
	nowhere := strings.Repeat("e", 64)
	_, err = s.store.CreateContainer("", []string{leasePrefix + nowhere}, "", "", "", &cstorage.ContainerOptions{LabelOpts: []string{"disable"}})
	check(t, err)
	want := []string{"layer unused " + unused.ID, "layer unused " + lost, "lease unneeded " + nowhere}
	slices.Sort(want)
	if found := faults(t, s, false); !slices.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
	s.pulls.layers.RLock() // a pull
	if found := faults(t, s, false); !slices.Equal(found, []string{"lease unneeded " + nowhere}) {
		t.Errorf("amid a pull: %v", found)
	}
	if err := s.Mend(t.Context(), Fault{Kind: LayerUnused, ID: unused.ID}); err == nil {
		t.Error("a layer is removed amid a pull")
	}
	s.pulls.layers.RUnlock()
	for _, f := range []Fault{{Kind: LayerUnused, ID: unused.ID}, {Kind: LayerUnused, ID: lost}, {Kind: LeaseUnneeded, ID: nowhere}} {
		check(t, s.Mend(t.Context(), f))
	}
	layers, err := s.store.Layers()
	check(t, err)
	for _, l := range layers {
		check(t, s.Mend(t.Context(), Fault{Kind: LayerUnused, ID: l.ID})) // those have a use
	}
	if found := faults(t, s, true); len(found) > 0 {
		t.Errorf("after mending: %v", found)
	}
}

func TestCheckReadsContents(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	pulling := w.open(t)
	img := pull(t, pulling, r.host+"/a:1")
	lower, err := pulling.Layers(t.Context(), img.ID)
	check(t, err)
	check(t, pulling.Close())
	s := w.view(t)
	files, err := os.ReadDir(lower[0])
	check(t, err)
	check(t, os.WriteFile(filepath.Join(lower[0], files[0].Name()), []byte("changed"), 0o600))
	if found := faults(t, s, false); len(found) > 0 {
		t.Errorf("without a look at the contents: %v", found)
	}
	if found := faults(t, s, true); !slices.Equal(found, []string{"image damaged " + img.ID}) {
		t.Errorf("found %v", found)
	}
	check(t, s.refresh())
	check(t, s.Mend(t.Context(), Fault{Kind: ImageDamaged, ID: img.ID}))
	if found := faults(t, s, true); len(found) > 0 {
		t.Errorf("after mending: %v", found)
	}
}
