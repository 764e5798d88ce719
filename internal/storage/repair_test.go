package storage

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/crid/crid/internal/errdef"
)

const aBoot, nextBoot = "11111111-aaaa", "22222222-bbbb"

// warned tells whether an operator is told of all the words in one sentence.
func warned(s *Images, words ...string) bool {
	for _, warning := range s.Warnings() {
		all := true
		for _, word := range words {
			all = all && strings.Contains(warning, word)
		}
		if all {
			return true
		}
	}
	return false
}

// glob finds what the store has below it.
func (w *world) glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(w.Root, "storage", pattern))
	check(t, err)
	return found
}

// harm is one kind of damage to a stored image.
type harm struct {
	what  string
	do    func(t *testing.T, w *world, img Image, layers []string)
	blobs int // that a pull fetches then: the configuration, twice to mend a layer, and what is damaged
	aside int // what the start sets aside
}

// onList does harm to one of the store's lists.
func onList(name string, do func(path string) error) func(*testing.T, *world, Image, []string) {
	return func(t *testing.T, w *world, _ Image, _ []string) {
		t.Helper()
		check(t, do(filepath.Join(w.Root, "storage", name)))
	}
}

func cutTo(size int64) func(string) error {
	return func(path string) error { return os.Truncate(path, size) }
}

func filledWith(text string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
}

var harms = []harm{
	{"a layer without files", func(t *testing.T, _ *world, _ Image, layers []string) {
		check(t, os.RemoveAll(layers[1]))
	}, 2, 0},
	{"nothing of two layers", func(t *testing.T, _ *world, _ Image, layers []string) {
		check(t, errors.Join(os.RemoveAll(filepath.Dir(layers[0])), os.RemoveAll(filepath.Dir(layers[1]))))
	}, 3, 0},
	{"a layer without its short name", func(t *testing.T, _ *world, _ Image, layers []string) {
		check(t, os.Truncate(filepath.Join(filepath.Dir(layers[1]), "link"), 0))
	}, 2, 0},
	{"another configuration", func(t *testing.T, w *world, img Image, _ []string) { overwrite(t, w.Root, img.ID, "not this") }, 1, 0},
	{"no configuration", func(t *testing.T, w *world, img Image, _ []string) { overwrite(t, w.Root, img.ID, "") }, 1, 0},
	{"empty manifests", func(t *testing.T, w *world, img Image, _ []string) {
		found, err := filepath.Glob(filepath.Join(w.Root, "storage/overlay-images", img.ID, "=*"))
		check(t, err)
		for _, file := range found {
			check(t, os.Truncate(file, 0))
		}
	}, 1, 0},
	{"an empty list of layers", onList("overlay-layers/layers.json", cutTo(0)), 3, 4}, // the two layers, and the lease's own
	{"a list of layers cut off", onList("overlay-layers/layers.json", cutTo(50)), 3, 4},
	{"a list of images full of NULs", onList("overlay-images/images.json", filledWith(strings.Repeat("\x00", 4096))), 1, 1},
	{"a list of no images", onList("overlay-images/images.json", filledWith("[null]")), 1, 1},
	{"a list of containers cut off", onList("overlay-containers/containers.json", cutTo(7)), 0, 1},
}

// With the image in use: what is wrong is named, containers keep what they have, and one pull mends it, without fetching
// what is well. After a reboot nothing is left of it.
func TestDamageIsMendedByAPull(t *testing.T) {
	for _, h := range harms {
		t.Run(h.what, func(t *testing.T) {
			r := newRegistry(t)
			w := newWorld(t, r)
			w.BootID = aBoot
			r.push(t, "bad:1", simple(t, "bad"))
			img, layers := w.leased(t, r.host+"/bad:1")
			running, err := os.OpenRoot(layers[0]) // as an overlay does that is mounted
			check(t, err)
			defer running.Close()
			h.do(t, w, img, layers)

			s := w.open(t)
			h.isTold(t, w, s, img.ID)
			before, _ := r.fetched()
			if got := pull(t, s, r.host+"/bad:1"); !reflect.DeepEqual(got, img) {
				t.Errorf("pulled again: %+v, want %+v", got, img)
			}
			if after, _ := r.fetched(); after-before != h.blobs {
				t.Errorf("the pull fetched %d blobs, want %d", after-before, h.blobs)
			}
			checkLayers(t, s, img.ID, "bad")
			if warned(s, img.ID) {
				t.Errorf("told after the repair: %q", s.Warnings())
			}
			if _, err := running.Stat("top"); err != nil && h.what != "nothing of two layers" {
				t.Errorf("what a container stands on: %v", err)
			}
			check(t, s.Close())

			w.BootID = nextBoot
			s = w.open(t)
			checkLayers(t, s, img.ID, "bad")
			waitFor(t, func() bool { return s.leased(t, img.ID) })
			check(t, s.Remove(t.Context(), img.ID))
			waitFor(t, func() bool { return len(w.glob(t, "crid-quarantine/*"))+len(w.glob(t, "crid-trash/*")) == 0 })
		})
	}
}

// leased pulls and uses an image, and leaves the store closed.
func (w *world) leased(t *testing.T, ref string) (img Image, layers []string) {
	t.Helper()
	s := w.open(t)
	img = pull(t, s, ref)
	layers, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.Close())
	return img, layers
}

// isTold looks what an operator and the kubelet see of the harm, before anything is pulled.
func (h harm) isTold(t *testing.T, w *world, s *Images, id string) {
	t.Helper()
	s.SetUsers(func(string) []string { return []string{"some-container"} })
	if _, err := s.Resolve(t.Context(), id); (h.blobs == 0) != (err == nil) {
		t.Errorf("the image: %v", err)
	}
	if got := w.glob(t, "crid-quarantine/"+aBoot+"/*"); len(got) != h.aside || len(got) > 0 && !warned(s, "was damaged", got[0][len(filepath.Dir(got[0]))+1:]) {
		t.Errorf("set aside %v, told %q", got, s.Warnings())
	}
	if _, ok := s.index.Load().damaged[id]; ok && !warned(s, id, "some-container", "restart") {
		t.Errorf("told %q", s.Warnings())
	}
}

func TestALayerThatVanishesIsNoticedAtItsNextUse(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	check(t, os.RemoveAll(dirs[1]))
	if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), dirs[1]) {
		t.Errorf("layers of a damaged image: %v", err)
	}
	if _, err := s.Resolve(t.Context(), img.ID); !errors.Is(err, errdef.NotFound) {
		t.Errorf("it is still offered: %v", err)
	}
	pull(t, s, r.host+"/a:1")
	checkLayers(t, s, img.ID, "a")
}

func TestLayersAreVerifiedAfterAPowerCut(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	w.BootID = aBoot
	r.push(t, "good:1", simple(t, "good"))
	r.push(t, "bad:1", picture(t, "bad", layer(t, false, "base", "shared"), layer(t, false, "top", "top of bad", "dir/empty", "")))
	r.push(t, "also:1", picture(t, "also", layer(t, false, "base", "shared")))
	bad, dirs := w.leased(t, r.host+"/bad:1")
	good, _ := w.leased(t, r.host+"/good:1")
	also, _ := w.leased(t, r.host+"/also:1")

	for what, harm := range map[string]func() error{
		"nothing":                    func() error { return nil },
		"an emptied file":            func() error { return os.Truncate(filepath.Join(dirs[1], "base"), 0) },
		"a changed file":             func() error { return os.WriteFile(filepath.Join(dirs[1], "base"), []byte("shaped"), 0o644) },
		"a lost file":                func() error { return os.Remove(filepath.Join(dirs[0], "top")) },
		"a lost file that was empty": func() error { return os.Remove(filepath.Join(dirs[0], "dir/empty")) },
		"a lost directory":           func() error { return os.RemoveAll(filepath.Join(dirs[0], "dir")) },
		"a lost recipe": func() error {
			return os.Truncate(filepath.Join(w.Root, "storage/overlay-layers", filepath.Base(filepath.Dir(dirs[0]))+".tar-split.gz"), 0)
		},
	} {
		t.Run(what, func(t *testing.T) {
			check(t, harm())
			s := w.open(t)
			if s.repair.due.Load() {
				t.Fatal("a store that was closed is verified")
			}
			check(t, s.Close())
			check(t, s.writeMark(false)) // as if crid had it open when the machine went down
			w.BootID = map[string]string{aBoot: nextBoot, nextBoot: aBoot}[w.BootID]

			s = w.open(t)
			waitFor(t, func() bool { return !s.repair.due.Load() })
			found := s.index.Load().damaged
			if what == "nothing" {
				if len(found) != 0 || len(list(t, s)) != 3 {
					t.Fatalf("damaged: %v", found)
				}
				return
			}
			shared := strings.HasSuffix(what, "ed file")
			if found[bad.ID] == nil || found[good.ID] != nil || shared != (found[also.ID] != nil) {
				t.Fatalf("damaged: %v", found)
			}
			if len(w.glob(t, "crid-quarantine/"+w.BootID+"/*")) != 1 || !warned(s, "was damaged") || !warned(s, bad.ID, "pull it again") {
				t.Errorf("set aside %v, told %q", w.glob(t, "crid-quarantine/*/*"), s.Warnings())
			}
			pull(t, s, r.host+"/bad:1")
			if len(list(t, s)) != 3 || len(s.index.Load().damaged) != 0 {
				t.Errorf("after the pull %d images are well, damaged: %v", len(list(t, s)), s.index.Load().damaged)
			}
			layers, err := s.layerMap()
			check(t, err)
			for _, l := range layers {
				check(t, s.verifyLayer(t.Context(), l))
			}
		})
	}
}

func TestVerificationIsTakenUpAgain(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	w.BootID = aBoot
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	pull(t, s, r.host+"/a:1")
	check(t, s.Close())
	for _, mark := range []string{"", "{", `{"boot":"` + aBoot + `","due":true}`, `{"boot":"` + nextBoot + `"}`} {
		check(t, os.WriteFile(s.markPath(), []byte(mark), 0o600))
		s := w.open(t)
		waitFor(t, func() bool { return !s.repair.due.Load() })
		check(t, s.Close())
		if _, err := os.Stat(s.markPath()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after %q the mark of a closed store: %v", mark, err)
		}
	}
	s = w.open(t)
	s.noteDue(true) // and is closed before it has verified
	check(t, s.Close())
	s = w.open(t)
	waitFor(t, func() bool { return !s.repair.due.Load() })
}

// withoutTop is a stored image that has lost its topmost layer, whose blob is top.
func withoutTop(t *testing.T) (r *fakeRegistry, s *Images, img Image, top string) {
	t.Helper()
	r = newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	img, dirs := w.leased(t, r.host+"/a:1")
	check(t, os.RemoveAll(dirs[0]))
	return r, w.open(t), img, blobOf(t, layer(t, false, "top", "top of a"))
}

// A layer that the registry no longer has as it was leaves the image damaged, and says so.
func TestARegistryThatChangedItsLayerMendsNothing(t *testing.T) {
	r, s, img, top := withoutTop(t)
	other := layer(t, false, "top", "something else")
	r.push(t, "other:1", picture(t, "other", other))
	r.set(func(r *fakeRegistry) {
		r.hold = func(w http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, top) {
				http.Redirect(w, req, strings.Replace(req.URL.Path, top, blobOf(t, other), 1), http.StatusTemporaryRedirect)
				return true
			}
			return false
		}
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), "mend layer") {
		t.Errorf("pull: %v", err)
	}
	r.set(func(r *fakeRegistry) { r.hold = nil })
	pull(t, s, r.host+"/a:1")
	checkLayers(t, s, img.ID, "a")
	layers, err := s.layerMap()
	check(t, err)
	if len(layers) != 3 { // the image's two and its lease's own
		t.Errorf("%d layers are stored", len(layers))
	}
}

// A record that names other layers than the registry's image has, as another tool may have written it, gives way to the
// pull, but not under a container.
func TestARecordThatNamesOtherLayersGivesWay(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	img, layers := w.leased(t, r.host+"/a:1")
	path := filepath.Join(w.Root, "storage/overlay-images/images.json")
	raw, err := os.ReadFile(path)
	check(t, err)
	top := filepath.Base(filepath.Dir(layers[0]))
	check(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(raw), top, strings.Repeat("0", 64))), 0o600))
	s := w.open(t)
	s.SetUsers(func(string) []string { return []string{"some-container"} })
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); !errors.Is(err, errdef.WrongState) || !strings.Contains(err.Error(), "some-container") {
		t.Errorf("pull of an image in use: %v", err)
	}
	s.SetUsers(func(string) []string { return nil })
	if got := pull(t, s, r.host+"/a:1"); !reflect.DeepEqual(got, img) {
		t.Errorf("pulled again: %+v, want %+v", got, img)
	}
	checkLayers(t, s, img.ID, "a")
}

func blobOf(t *testing.T, l v1.Layer) string {
	t.Helper()
	h, err := l.Digest()
	check(t, err)
	return h.Hex
}

// A pull that ends amid the mending of a layer leaves the layer missing, not half there.
func TestAPullThatEndsAmidMending(t *testing.T) {
	r, s, img, top := withoutTop(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, top) {
				cancel()
				<-req.Context().Done()
				return true
			}
			return false
		}
	})
	if _, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("pull: %v", err)
	}
	r.set(func(r *fakeRegistry) { r.hold = nil })
	if s.index.Load().damaged[img.ID] == nil {
		t.Error("the image is well though its layer is missing")
	}
	pull(t, s, r.host+"/a:1")
	checkLayers(t, s, img.ID, "a")
}
