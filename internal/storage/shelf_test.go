package storage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// newShelf is a store that another crid has filled with the images, mounted read-only where it answers.
func newShelf(t *testing.T, r *fakeRegistry, images ...string) string {
	t.Helper()
	other := newWorld(t, r)
	s := other.open(t)
	for _, image := range images {
		pull(t, s, r.host+"/"+image)
	}
	check(t, s.Close())
	dir := t.TempDir()
	check(t, unix.Mount(s.root, dir, "", unix.MS_BIND, ""))
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir
}

func TestImagesOfAShelf(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	r.push(t, "b:1", simple(t, "b"))
	w.Shelves = []string{newShelf(t, r, "a:1", "b:1")}
	s := w.open(t)
	empty := du(t, s.root)
	img := resolve(t, s, r.host+"/a:1")
	if img.Store != w.Shelves[0] || !img.Pinned || len(list(t, s)) != 2 || len(s.Warnings()) != 1 { // that there is no policy
		t.Errorf("got %+v, warnings %q", img, s.Warnings())
	}
	checkLayers(t, s, img.ID, "a")
	if dirs, _ := s.Layers(t.Context(), img.ID); !strings.HasPrefix(dirs[0], w.Shelves[0]) {
		t.Errorf("layers %v", dirs)
	}
	raw, err := simple(t, "a").RawConfigFile()
	check(t, err)
	if d, err := s.Inspect(t.Context(), img.ID); err != nil || !bytes.Equal(d.Config, raw) || r.host+"/a@"+d.Digest.String() != img.RepoDigests[0] {
		t.Errorf("details %s, %v", d.Config, err)
	}
	if err := s.Remove(t.Context(), r.host+"/a:1"); !errors.Is(err, errdef.WrongState) || !strings.Contains(err.Error(), w.Shelves[0]) {
		t.Errorf("removal: %v", err)
	}
	before, _ := r.fetched()
	if again := pull(t, s, r.host+"/a:1"); again.Store != img.Store {
		t.Errorf("pulled again: %+v", again)
	}
	if after, _ := r.fetched(); after != before {
		t.Errorf("the pull fetched %d blobs of what lies on the shelf", after-before)
	}
	agrees(t, "the use of a shelf", s)
	if now := du(t, s.root); now.Bytes > empty.Bytes+64<<10 {
		t.Errorf("the shelf is counted: %d bytes after %d", now.Bytes, empty.Bytes)
	}

	r.push(t, "a:2", simple(t, "a")) // by a name that the shelf has not
	own := pull(t, s, r.host+"/a:2")
	if d, err := s.Inspect(t.Context(), own.ID); err != nil || !bytes.Equal(d.Config, raw) {
		t.Errorf("details of crid's own %s, %v", d.Config, err)
	}
	if own.ID != img.ID || own.Store != "" || own.Pinned || !slices.Equal(own.RepoTags, []string{r.host + "/a:1", r.host + "/a:2"}) || len(list(t, s)) != 2 {
		t.Errorf("in both stores: %+v", own)
	}
	checkLayers(t, s, img.ID, "a")
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.Remove(t.Context(), img.ID))
	if got := resolve(t, s, img.ID); got.Store == "" {
		t.Errorf("after the removal of crid's own: %+v", got)
	}
	r.push(t, "b:1", simple(t, "new b")) // the tag moves on
	if now := pull(t, s, r.host+"/b:1"); now.Labels["mark"] != "new b" || resolve(t, s, r.host+"/b:1").ID != now.ID {
		t.Errorf("the moved tag means %+v", now)
	}
	for _, i := range list(t, s) {
		if i.Labels["mark"] == "b" && len(i.RepoTags) != 0 {
			t.Errorf("the tag means two images: %+v", i)
		}
	}
}

// TestAShelfWhoseDiskGoes harms its own images alone, and they are back with it.
func TestAShelfWhoseDiskGoes(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	for _, mark := range []string{"a", "b", "c"} {
		r.push(t, mark+":1", simple(t, mark))
	}
	gone := newShelf(t, r, "a:1", "b:1")
	real := newShelf(t, r, "a:1", "b:1")
	w.Shelves = []string{filepath.Join(w.dir, "never"), gone, newShelf(t, r, "b:1")}
	s := w.open(t)
	own := pull(t, s, r.host+"/c:1")
	a := resolve(t, s, r.host+"/a:1")
	if got := resolve(t, s, r.host+"/b:1"); got.Store != gone {
		t.Errorf("of two shelves %s counts", got.Store)
	}
	check(t, unix.Unmount(gone, 0))
	if _, err := s.Layers(t.Context(), a.ID); !errors.Is(err, errdef.Unavailable) && !errors.Is(err, errdef.NotFound) { // the kernel tells of an unmount
		t.Errorf("layers of a shelf that is gone: %v", err)
	}
	if _, err := s.Resolve(t.Context(), a.ID); !errors.Is(err, errdef.NotFound) {
		t.Errorf("an image of a shelf that is gone: %v", err)
	}
	if text := strings.Join(s.Warnings(), "\n"); !strings.Contains(text, gone) || !strings.Contains(text, w.Shelves[0]) {
		t.Errorf("warnings %s", text)
	}
	if got := resolve(t, s, r.host+"/b:1"); got.Store != w.Shelves[2] {
		t.Errorf("the other shelf's image: %+v", got)
	}
	checkLayers(t, s, own.ID, "c")
	if again := pull(t, s, r.host+"/a:1"); again.Store != "" || again.ID != a.ID {
		t.Errorf("pulled instead: %+v", again)
	}
	check(t, s.Remove(t.Context(), a.ID))
	check(t, unix.Mount(real, gone, "", unix.MS_BIND, ""))
	waitFor(t, func() bool { // the kernel tells of a mount
		got, err := s.Resolve(t.Context(), a.ID)
		return err == nil && got.Store == gone
	})
	checkLayers(t, s, a.ID, "a")
	check(t, unix.Mount("", gone, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	images := filepath.Join(gone, "overlay-images/images.json")
	check(t, os.Rename(images, images+".away")) // what changes there is seen as on the disk before
	waitFor(t, func() bool {
		_, err := s.Resolve(t.Context(), a.ID)
		return errors.Is(err, errdef.NotFound)
	})
	check(t, os.Rename(images+".away", images))
}

// TestSignedImagesOfAShelf are used when a policy wants no signatures; when it does, a pull brings them with the image.
func TestSignedImagesOfAShelf(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", simple(t, "a"))
	r.push(t, "unsigned:1", simple(t, "b"))
	key := w.cosign(t, r.host+"/plain:1", r.host+"/signed:1")
	w.PolicyPath = w.write(t, "policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	w.Shelves = []string{newShelf(t, r, "signed:1", "unsigned:1")}
	s := w.open(t)
	strict := func(img Image) error { return s.Permit(t.Context(), Use{ImageID: img.ID, Namespace: "strict"}) }
	img, unsigned := resolve(t, s, r.host+"/signed:1"), resolve(t, s, r.host+"/unsigned:1")
	check(t, strict(img))
	w.write(t, "policies/strict.json", signedBy("sigstoreSigned", key))
	wantRefused(t, strict(img))
	wantRefused(t, strict(unsigned))
	check(t, s.Permit(t.Context(), Use{ImageID: unsigned.ID}))
	if again := pull(t, s, r.host+"/unsigned:1"); again.Store == "" {
		t.Errorf("what nobody has signed was copied: %+v", again)
	}
	if own := pull(t, s, r.host+"/signed:1"); own.Store != "" || own.ID != img.ID {
		t.Errorf("pulled with its signatures: %+v", own)
	}
	check(t, strict(img))
}

// TestADamagedShelf: what is written there comes from whoever may write to it, and harms nobody's images but its own.
func TestADamagedShelf(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "a:1", simple(t, "a"))
	for what, damage := range map[string]func(t *testing.T, dir string){
		"a list that is none": func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "overlay-images/images.json"), []byte("{"), 0o600))
		},
		"an id that climbs": func(t *testing.T, dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "overlay-images/images.json"), []byte(`[{"id":"../../etc"}]`), 0o600))
		},
		"layers in a ring": func(t *testing.T, dir string) {
			path := filepath.Join(dir, "overlay-layers/layers.json")
			raw, err := os.ReadFile(path)
			check(t, err)
			layers, err := parseList(raw, checkListedLayer)
			check(t, err)
			for i := range layers {
				if layers[i].Parent == "" {
					raw = []byte(strings.Replace(string(raw), `"id":"`+layers[i].ID+`"`, `"id":"`+layers[i].ID+`","parent":"`+layers[1-i].ID+`"`, 1))
				}
			}
			check(t, os.WriteFile(path, raw, 0o600))
		},
		"a layer that is gone": func(t *testing.T, dir string) {
			check(t, os.RemoveAll(filepath.Join(dir, "overlay")))
		},
	} {
		t.Run(what, func(t *testing.T) {
			other := newDamagedWorld(t, r)
			made := other.open(t)
			pull(t, made, r.host+"/a:1")
			check(t, made.Close())
			damage(t, made.root)
			w := newWorld(t, r)
			w.Shelves = []string{made.root}
			s := w.open(t)
			if got := list(t, s); len(got) != 0 || !strings.Contains(strings.Join(s.Warnings(), "\n"), made.root) {
				t.Errorf("images %+v, warnings %q", got, s.Warnings())
			}
			if img := pull(t, s, r.host+"/a:1"); img.Store != "" {
				t.Errorf("pulled %+v", img)
			}
		})
	}
}
