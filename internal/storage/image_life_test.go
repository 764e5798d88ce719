package storage

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRestart(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	w.Pinned = []string{r.host + "/b"}
	s := w.open(t)
	r.push(t, "a:1", indexOf(t, "application/vnd.oci.image.index.v1+json", asOCI(simple(t, "a"))))
	r.push(t, "b:latest", simple(t, "b"))
	pull(t, s, r.host+"/a:1")
	b := pull(t, s, r.host+"/b")
	if !b.Pinned || resolve(t, s, r.host+"/a:1").Pinned {
		t.Error("the pinned image is the wrong one")
	}
	before := list(t, s)
	layers, err := s.Layers(t.Context(), b.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, b.ID) })
	check(t, s.Close())
	check(t, s.Close()) // may be repeated

	s = w.open(t)
	if !reflect.DeepEqual(list(t, s), before) {
		t.Errorf("after a restart: %+v, want %+v", list(t, s), before)
	}
	after, err := s.Layers(t.Context(), b.ID)
	if err != nil || !slices.Equal(after, layers) || !s.leased(t, b.ID) {
		t.Errorf("layers %v, %v; leased %v", after, err, s.leased(t, b.ID))
	}
	check(t, s.Remove(t.Context(), b.ID))
}

// leased tells whether the store has crid's lease on the image.
func (s *Images) leased(t *testing.T, id string) bool {
	t.Helper()
	_, err := s.store.Container(leasePrefix + id)
	return err == nil
}

func TestLeaseKeepsOtherToolsAway(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	r.push(t, "b:1", simple(t, "b"))
	a, b := pull(t, s, r.host+"/a:1"), pull(t, s, r.host+"/b:1")
	_, err := s.Layers(t.Context(), a.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, a.ID) })
	if out, ok := w.tool(t, "rmi", a.ID); ok {
		t.Errorf("another tool removed an image in use: %s", out)
	}
	if out, ok := w.tool(t, "rmi", b.ID); !ok {
		t.Fatal(out)
	}
	waitFor(t, func() bool { return len(list(t, s)) == 1 }) // crid sees what the tool did
	if out, ok := w.tool(t, "tag", a.ID, "localhost/theirs:1"); !ok {
		t.Fatal(out)
	}
	waitFor(t, func() bool { return len(list(t, s)[0].RepoTags) == 2 })
	if got := resolve(t, s, "localhost/theirs:1"); got.ID != a.ID || len(got.RepoDigests) != 2 {
		t.Errorf("the tool's tag: %+v", got)
	}
}

func TestIdleLeaseIsDropped(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).openIdle(t, 40*time.Millisecond)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	var used atomic.Bool
	used.Store(true)
	s.SetUsers(func(string) []string {
		if used.Load() {
			return []string{"c1"}
		}
		return nil
	})
	_, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.dropIdleLeases(t.Context()))
	if !s.leased(t, img.ID) {
		t.Error("the lease of a used image was dropped")
	}
	used.Store(false)
	waitFor(t, func() bool { return !s.leased(t, img.ID) })
	if len(list(t, s)) != 1 {
		t.Error("the image went with its lease")
	}
}

func TestFailedPullLeavesNothing(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.openIdle(t, 200*time.Millisecond)
	r.push(t, "a:1", simple(t, "a"))
	h, err := layer(t, false, "top", "top of a").Digest()
	check(t, err)
	r.set(func(r *fakeRegistry) {
		r.hold = func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, h.Hex) {
				return false
			}
			if _, err := io.WriteString(w, "not what the digest says"); err != nil {
				t.Error(err)
			}
			return true
		}
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); err == nil {
		t.Fatal("a false layer was accepted")
	}
	if len(list(t, s)) != 0 {
		t.Error("a failed pull left an image")
	}
	waitFor(t, func() bool {
		layers, err := s.layerMap()
		check(t, err)
		return len(layers) == 0
	})
}

// overwrite replaces the stored configuration of an image, or removes it.
func overwrite(t *testing.T, root, id, text string) {
	t.Helper()
	dir := filepath.Join(root, "storage/overlay-images", id)
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		check(t, err)
		if !strings.Contains(string(data), `"diff_ids"`) {
			continue
		}
		if text == "" {
			check(t, os.Remove(filepath.Join(dir, e.Name())))
		} else {
			check(t, os.WriteFile(filepath.Join(dir, e.Name()), []byte(text), 0o600))
		}
		return
	}
	t.Fatal("no configuration in ", dir)
}

func TestUsage(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	none, err := s.Usage(t.Context())
	check(t, err)
	if want, err := filepath.EvalSymlinks(filepath.Join(w.Root, "storage")); err != nil || none.Mountpoint != want {
		t.Errorf("mount point %s, want %s, %v", none.Mountpoint, want, err)
	}
	r.push(t, "a:1", picture(t, "big", layer(t, false, "a", strings.Repeat("x", 1<<20), "b", "small")))
	img := pull(t, s, r.host+"/a:1")
	settled := func(bytes, inodes uint64) bool {
		u, err := s.Usage(t.Context())
		check(t, err)
		return u.Bytes >= bytes && u.Inodes >= inodes && u.Bytes < bytes+1<<17 && u.Inodes < inodes+40
	}
	waitFor(t, func() bool { return settled(none.Bytes+1<<20, none.Inodes+3) })
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	var files int
	check(t, filepath.WalkDir(dirs[0], func(string, fs.DirEntry, error) error { files++; return nil }))
	if files != 3 {
		t.Errorf("%d files in the layer", files)
	}
	check(t, s.Remove(t.Context(), img.ID))
	waitFor(t, func() bool { return settled(none.Bytes, none.Inodes) })
}

// TestGarbageGoesByItself: at the start goes what cannot be of use any more, later what nobody has wanted for the idle time.
func TestGarbageGoesByItself(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	kept := pull(t, s, r.host+"/a:1")
	for _, parent := range []string{"", kept.ID} { // the second a container's of another tool: not garbage
		if parent == "" {
			_, err := s.store.CreateLayer("", "", nil, "", false, nil)
			check(t, err)
			continue
		}
		_, err := s.store.CreateContainer("", []string{"theirs"}, parent, "", "", nil)
		check(t, err)
	}
	check(t, s.Close())
	garbage := []string{"crid-scratch/half", "crid-trash/1/file", "crid-quarantine/another-boot/file", "overlay/identity-probe/file"}
	for _, path := range garbage {
		check(t, os.MkdirAll(filepath.Join(s.root, filepath.Dir(path)), 0o700))
		check(t, os.WriteFile(filepath.Join(s.root, path), []byte("garbage"), 0o600))
	}
	s = w.openIdle(t, 200*time.Millisecond)
	for _, path := range garbage {
		waitFor(t, func() bool { _, err := os.Lstat(filepath.Join(s.root, path)); return errors.Is(err, fs.ErrNotExist) })
	}
	waitFor(t, func() bool {
		layers, err := s.layerMap()
		check(t, err)
		return len(layers) == 3 // the image's two, and the container's
	})
	checkLayers(t, s, kept.ID, "a")
	if _, err := s.store.Container("theirs"); err != nil {
		t.Errorf("another tool's container: %v", err)
	}
}
