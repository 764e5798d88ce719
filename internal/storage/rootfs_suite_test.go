package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// rootfses is what every maker of root filesystems must do alike.
type rootfses interface {
	mountable
	Remove(ctx context.Context, id string) error
	Usage(ctx context.Context, id string) (Usage, error)
	List() ([]string, error)
}

type mountable interface {
	Mount(ctx context.Context, id, imageID string, owner Owner) (string, error)
	Unmount(id string) error
	Volume(ctx context.Context, id, dest string, owner Owner) (string, error)
}

// testRootfses is the suite for rootfses; open makes one over the given images.
func testRootfses(t *testing.T, open func(t *testing.T, images Layers) rootfses) {
	cases := []struct {
		name string
		run  func(t *testing.T, open func(t *testing.T, images Layers) rootfses)
	}{
		{"what a container writes stays its own", suiteSeparate},
		{"layers hide what they deleted", suiteWhiteouts},
		{"the root is that of the topmost layer", suiteRootAttributes},
		{"files keep owner, mode and setuid", suiteModes},
		{"mount can be repeated", suiteRepeat},
		{"unmount keeps what was written", suiteUnmount},
		{"remove can be repeated", suiteRemove},
		{"an image without layers is an empty root", suiteNoLayers},
		{"128 layers", suiteManyLayers},
		{"usage counts what was written, links once", suiteUsage},
		{"ids that are no names are refused", suiteIDs},
		{"an unknown image leaves nothing", suiteUnknownImage},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open) })
	}
}

func suiteSeparate(t *testing.T, open func(*testing.T, Layers) rootfses) {
	lower := tree(t, "etc/conf", "bin/sh")
	r := open(t, layersOf{"img": {lower}})
	a, b := mustMount(t, r, "a", "img"), mustMount(t, r, "b", "img")
	must(t, os.WriteFile(filepath.Join(a, "etc/conf"), []byte("mine"), 0o644))
	must(t, os.Remove(filepath.Join(a, "bin/sh")))
	wantFile(t, filepath.Join(a, "etc/conf"), "mine")
	wantFile(t, filepath.Join(b, "etc/conf"), "etc/conf")
	wantFile(t, filepath.Join(lower, "etc/conf"), "etc/conf")
	wantFile(t, filepath.Join(b, "bin/sh"), "bin/sh")
	wantAbsent(t, filepath.Join(a, "bin/sh"))
	ids, err := r.List()
	if err != nil || !slices.Equal(ids, []string{"a", "b"}) {
		t.Errorf("List = %v, %v", ids, err)
	}
}

func suiteWhiteouts(t *testing.T, open func(*testing.T, Layers) rootfses) {
	bottom, top := tree(t, "gone", "kept", "dir/old"), tree(t, "dir/new")
	must(t, unix.Mknod(filepath.Join(top, "gone"), unix.S_IFCHR, 0))
	must(t, unix.Setxattr(filepath.Join(top, "dir"), "trusted.overlay.opaque", []byte("y"), 0))
	r := open(t, layersOf{"img": {top, bottom}})
	root := mustMount(t, r, "a", "img")
	wantAbsent(t, filepath.Join(root, "gone"))
	wantAbsent(t, filepath.Join(root, "dir/old"))
	wantFile(t, filepath.Join(root, "kept"), "kept")
	wantFile(t, filepath.Join(root, "dir/new"), "dir/new")
}

func suiteRootAttributes(t *testing.T, open func(*testing.T, Layers) rootfses) {
	bottom, top := tree(t, "a"), tree(t, "b")
	must(t, os.Chown(top, 12, 34))
	must(t, unix.Chmod(top, 0o1711))
	must(t, unix.Setxattr(top, "user.note", []byte("hello"), 0))
	r := open(t, layersOf{"img": {top, bottom}})
	root := mustMount(t, r, "a", "img")
	var st unix.Stat_t
	must(t, unix.Stat(root, &st))
	if st.Uid != 12 || st.Gid != 34 || st.Mode&0o7777 != 0o1711 {
		t.Errorf("root is %d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
	}
	note := make([]byte, 16)
	n, err := unix.Getxattr(root, "user.note", note)
	if err != nil || string(note[:n]) != "hello" {
		t.Errorf("user.note = %q, %v", note[:max(n, 0)], err)
	}
}

func suiteModes(t *testing.T, open func(*testing.T, Layers) rootfses) {
	lower := tree(t, "bin/su")
	su := filepath.Join(lower, "bin/su")
	must(t, os.Chown(su, 7, 8))
	must(t, unix.Chmod(su, 0o6755))
	r := open(t, layersOf{"img": {lower}})
	root := mustMount(t, r, "a", "img")
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, "bin/su"), &st))
	if st.Uid != 7 || st.Gid != 8 || st.Mode&0o7777 != 0o6755 {
		t.Errorf("su is %d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
	}
	var on unix.Statfs_t
	must(t, unix.Statfs(root, &on))
	if on.Flags&(unix.ST_NOSUID|unix.ST_NOEXEC|unix.ST_NODEV|unix.ST_RDONLY) != 0 {
		t.Errorf("mounted with flags %x", on.Flags)
	}
}

func suiteRepeat(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": {tree(t, "file")}})
	first := mustMount(t, r, "a", "img")
	must(t, os.WriteFile(filepath.Join(first, "file"), []byte("written"), 0o644))
	if again := mustMount(t, r, "a", "img"); again != first {
		t.Errorf("mounted at %s, then at %s", first, again)
	}
	wantFile(t, filepath.Join(first, "file"), "written")
	if n := len(mountsBelow(t, first)); n != 1 {
		t.Errorf("%d mounts", n)
	}
	must(t, unix.Unmount(first, 0)) // as a reboot does
	again := mustMount(t, r, "a", "img")
	wantFile(t, filepath.Join(again, "file"), "written")
}

func suiteUnmount(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": {tree(t, "file")}})
	root := mustMount(t, r, "a", "img")
	must(t, os.WriteFile(filepath.Join(root, "file"), []byte("written"), 0o644))
	for range 2 {
		must(t, r.Unmount("a"))
	}
	must(t, r.Unmount("never"))
	if n := len(mountsBelow(t, root)); n != 0 {
		t.Errorf("%d mounts", n)
	}
	if u, err := r.Usage(t.Context(), "a"); err != nil || u.Bytes == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	wantFile(t, filepath.Join(mustMount(t, r, "a", "img"), "file"), "written")
}

func suiteRemove(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": {tree(t, "file")}})
	root := mustMount(t, r, "a", "img")
	for range 3 {
		must(t, r.Remove(t.Context(), "a"))
	}
	wantAbsent(t, root)
	must(t, r.Remove(t.Context(), "never"))
	if ids, err := r.List(); err != nil || len(ids) != 0 {
		t.Errorf("List = %v, %v", ids, err)
	}
	_, err := r.Usage(t.Context(), "a")
	wantKind(t, err, errdef.NotFound)
	root = mustMount(t, r, "a", "img")
	wantFile(t, filepath.Join(root, "file"), "file")
}

func suiteNoLayers(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"scratch": nil})
	root := mustMount(t, r, "a", "scratch")
	st, err := os.Stat(root)
	must(t, err)
	if st.Mode() != fs.ModeDir|0o755 || len(namesIn(t, root)) != 0 {
		t.Errorf("root is %s and holds %v", st.Mode(), namesIn(t, root))
	}
	must(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o644))
}

func suiteManyLayers(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": manyLayers(t, 128)})
	root := mustMount(t, r, "a", "img")
	wantFile(t, filepath.Join(root, "same"), "0")
	for i := range 128 {
		wantFile(t, filepath.Join(root, fmt.Sprint("own", i)), fmt.Sprint(i))
	}
}

// manyLayers makes n layers, each with a file of its own and one that it shares with all; their paths are as
// long as those of the image store.
func manyLayers(t testing.TB, n int) []string {
	t.Helper()
	base := t.TempDir()
	var dirs []string
	for i := range n {
		dir := filepath.Join(base, strings.Repeat("0", 60)+fmt.Sprintf("%04d", i), "diff")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("own", i)), []byte(fmt.Sprint(i)), 0o644))
		must(t, os.WriteFile(filepath.Join(dir, "same"), []byte(fmt.Sprint(i)), 0o644))
		dirs = append(dirs, dir)
	}
	return dirs
}

func suiteUsage(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": {tree(t, "file")}})
	root := mustMount(t, r, "a", "img")
	before, err := r.Usage(t.Context(), "a")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "big"), make([]byte, 1<<20), 0o644))
	must(t, os.Link(filepath.Join(root, "big"), filepath.Join(root, "big2")))
	after, err := r.Usage(t.Context(), "a")
	must(t, err)
	if grown := after.Bytes - before.Bytes; grown < 1<<20 || grown > 1<<20+64<<10 {
		t.Errorf("a file of 1 MiB with two names counts as %d bytes", grown)
	}
	if grown := after.Inodes - before.Inodes; grown != 1 {
		t.Errorf("a file with two names counts as %d inodes", grown)
	}
	if st, err := os.Stat(after.Mountpoint); err != nil || !st.IsDir() {
		t.Errorf("mount point %q: %v", after.Mountpoint, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Usage(cancelled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Usage: %v", err)
	}
}

func suiteIDs(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{"img": {tree(t, "file")}})
	for _, id := range []string{"", ".", "..", ".trash", "../a", "a/b", strings.Repeat("a", 200)} {
		_, err := r.Mount(t.Context(), id, "img", Owner{})
		wantKind(t, err, errdef.Invalid)
		wantKind(t, r.Remove(t.Context(), id), errdef.Invalid)
		_, err = r.Usage(t.Context(), id)
		wantKind(t, err, errdef.Invalid)
		_, err = r.Volume(t.Context(), id, "/data", Owner{})
		wantKind(t, err, errdef.Invalid)
	}
}

func suiteUnknownImage(t *testing.T, open func(*testing.T, Layers) rootfses) {
	r := open(t, layersOf{})
	_, err := r.Mount(t.Context(), "a", "nothing", Owner{})
	wantKind(t, err, errdef.NotFound, "nothing")
	if ids, err := r.List(); err != nil || len(ids) != 0 {
		t.Errorf("List = %v, %v", ids, err)
	}
}
