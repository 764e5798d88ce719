package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// TestAStoreWhoseDiskIsNotMounted: crid does not start, and makes no store in its place.
func TestAStoreWhoseDiskIsNotMounted(t *testing.T) {
	r := newRegistry(t)
	w := newDamagedWorld(t, r)
	disk, keep := filepath.Join(w.dir, "disk"), filepath.Join(w.dir, "keep")
	check(t, errors.Join(os.Mkdir(disk, 0o755), os.Mkdir(keep, 0o755), os.Mkdir(w.Root, 0o755)))
	check(t, unix.Mount("tmpfs", keep, "tmpfs", 0, ""))
	defer func() { check(t, unix.Unmount(keep, 0)) }()
	mount := func() { check(t, unix.Mount(keep, disk, "", unix.MS_BIND, "")) }
	mount()
	w.Store = filepath.Join(disk, "images")
	r.push(t, "a:1", simple(t, "a"))
	s := w.open(t)
	img := pull(t, s, r.host+"/a:1")
	check(t, s.Close())
	check(t, unix.Unmount(disk, 0))

	refused := func(why string) {
		t.Helper()
		for _, open := range []func(ImagesConfig) (*Images, error){OpenImages, ViewImages} {
			_, err := open(w.ImagesConfig)
			if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), w.Store) {
				t.Errorf("opened without its disk: %v", err)
			}
		}
	}
	refused("not in")
	if names, err := entryNames(disk); err != nil || len(names) != 0 {
		t.Errorf("in the empty directory was made %v, %v", names, err)
	}
	check(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "")) // another's
	other := w.ImagesConfig
	other.Root = filepath.Join(w.dir, "other")
	check(t, os.Mkdir(other.Root, 0o755))
	theirs, err := OpenImages(other)
	check(t, err)
	check(t, theirs.Close())
	refused("another")
	check(t, unix.Unmount(disk, 0))

	mount()
	defer func() { check(t, unix.Unmount(disk, 0)) }()
	s = w.open(t)
	if got := resolve(t, s, r.host+"/a:1"); got.ID != img.ID {
		t.Errorf("after the disk came back: %+v", got)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Mountpoint != w.Store {
		t.Errorf("usage %+v, %v", u, err)
	}
	check(t, s.Close())
	w.Store = filepath.Join(w.dir, "elsewhere") // by the operator's word, there is nothing to lose
	if n := len(list(t, w.open(t))); n != 0 {
		t.Errorf("%d images in a new store", n)
	}
}

// TestAStoreThatIsToBeEmpty: whoever removes what is remembered of the store begins anew.
func TestAStoreThatIsToBeEmpty(t *testing.T) {
	w := newDamagedWorld(t)
	w.Store = filepath.Join(w.dir, "images")
	check(t, os.Mkdir(w.Root, 0o755))
	check(t, w.open(t).Close())
	check(t, os.RemoveAll(w.Store))
	if _, err := OpenImages(w.ImagesConfig); err == nil {
		t.Fatal("a lost store was made anew")
	}
	check(t, os.Remove(w.placePath()))
	w.open(t)
}
