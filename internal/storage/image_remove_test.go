package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
)

func TestRemove(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	for _, tag := range []string{"1", "2"} {
		r.push(t, "a:"+tag, simple(t, "a"))
	}
	var img Image
	for how, ref := range map[string]func() string{
		"by tag":    func() string { return r.host + "/a:2" },
		"by digest": func() string { return img.RepoDigests[0] },
		"by id":     func() string { return img.ID },
		"by prefix": func() string { return img.ID[:10] },
	} {
		t.Run(how, func(t *testing.T) {
			pull(t, s, r.host+"/a:1")
			img = pull(t, s, r.host+"/a:2")
			_, err := s.Layers(t.Context(), img.ID) // so that there is a lease
			check(t, err)
			check(t, s.Remove(t.Context(), ref()))
			for _, name := range append(append(img.RepoTags, img.RepoDigests...), img.ID) {
				if _, err := s.Resolve(t.Context(), name); !errors.Is(err, errdef.NotFound) {
					t.Errorf("%s after removal: %v", name, err)
				}
			}
			left, err := filepath.Glob(filepath.Join(w.Root, "storage/overlay/*/diff"))
			if err != nil || len(left) != 0 {
				t.Errorf("layers left: %v, %v", left, err)
			}
		})
	}
}

func TestRemoveOfWhatIsNot(t *testing.T) {
	s := newWorld(t).open(t)
	for _, ref := range []string{strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64), "busybox", "a.b/c:1", "a.b/c@" + dig, "UPPER"} {
		check(t, s.Remove(t.Context(), ref))
	}
	if err := s.Remove(t.Context(), ""); !errors.Is(err, errdef.Invalid) {
		t.Errorf("an empty reference: %v", err)
	}
}

func TestFiveRemoveOneImage(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if err := s.Remove(t.Context(), img.ID); err != nil {
				t.Error(err)
			}
			if _, err := s.Resolve(t.Context(), img.ID); !errors.Is(err, errdef.NotFound) {
				t.Errorf("after a removal returned: %v", err)
			}
		})
	}
	all.Wait()
}

func TestRemoveOfWhatIsUsed(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	users := []string{"c1", "c2"}
	s.SetUsers(func(id string) []string {
		if id != img.ID {
			t.Errorf("asked for the users of %s", id)
		}
		return users
	})
	err := s.Remove(t.Context(), r.host+"/a:1")
	if !errors.Is(err, errdef.WrongState) || !strings.Contains(err.Error(), "c1, c2") {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(resolve(t, s, img.ID), img) {
		t.Error("a refused removal changed the image")
	}
	users = nil
	if out, ok := w.tool(t, "run", img.ID, "theirs"); !ok {
		t.Fatal(out)
	}
	if err := s.Remove(t.Context(), img.ID); !errors.Is(err, errdef.WrongState) || !strings.Contains(err.Error(), "another tool") {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(resolve(t, s, img.ID), img) {
		t.Error("a refused removal changed the image")
	}
	if out, ok := w.tool(t, "rm", "theirs"); !ok {
		t.Fatal(out)
	}
	check(t, s.Remove(t.Context(), img.ID))
}

func TestHoldKeepsRemoveAway(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	release, err := s.Hold(t.Context(), img.ID)
	check(t, err)
	again, err := s.Hold(t.Context(), img.ID)
	check(t, err)
	again()
	again() // repeated: counts once

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Remove(ctx, img.ID) }()
	waitFor(t, func() bool { return s.gates.awaited(img.ID) })
	third, err := s.Hold(t.Context(), img.ID) // a waiting removal stops nobody
	check(t, err)
	third()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() { done <- s.Remove(t.Context(), img.ID) }()
	waitFor(t, func() bool { return s.gates.awaited(img.ID) })
	release()
	check(t, <-done)
	if _, err := s.Hold(t.Context(), img.ID); !errors.Is(err, errdef.NotFound) {
		t.Errorf("hold of a removed image: %v", err)
	}
	if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, errdef.NotFound) {
		t.Errorf("layers of a removed image: %v", err)
	}
	if n := len(s.gates.all); n != 0 {
		t.Errorf("%d gates left", n)
	}
}

func TestHoldWaitsForARemovalAsLongAsItMay(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	leave, err := s.gates.exclude(t.Context(), img.ID) // as Remove does
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Hold(ctx, img.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	leave()
	release, err := s.Hold(t.Context(), img.ID)
	check(t, err)
	release()
}

// awaited tells whether a removal waits for the image's holders.
func (g *gates) awaited(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all[id] != nil && g.all[id].idle != nil
}

// TestRemoveBesidePulls removes images without end while they are pulled: a pull succeeds or may be tried again, and in
// the end the store is whole.
func TestRemoveBesidePulls(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base := layer(t, false, "base", "shared")
	r.push(t, "a:1", picture(t, "a", base, layer(t, false, "top", "a")))
	r.push(t, "b:1", picture(t, "b", base, layer(t, false, "top", "b")))
	var pulls, removals sync.WaitGroup
	pulled := make(chan struct{})
	for _, ref := range []string{r.host + "/a:1", r.host + "/b:1"} {
		pulls.Go(func() {
			for range 10 {
				img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
				if err != nil && !errors.Is(err, errdef.Unavailable) {
					t.Errorf("pull: %v", err)
				}
				if release, err := s.Hold(t.Context(), img.ID); err == nil {
					checkDirs(t, s, img.ID)
					release()
				}
			}
		})
		removals.Go(func() { // ends with the pulls
			for {
				select {
				case <-pulled:
					return
				default:
				}
				if err := s.Remove(t.Context(), ref); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	pulls.Wait()
	close(pulled)
	removals.Wait()
}

// checkDirs finds all layers of an image that is held.
func checkDirs(t *testing.T, s *Images, id string) {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	if err != nil {
		t.Errorf("layers of a held image: %v", err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("layer of a held image: %v", err)
		}
	}
}
