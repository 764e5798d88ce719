package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

func openTestMounts(t *testing.T, r *Rootfs) *ImageMounts {
	t.Helper()
	m, err := OpenImageMounts(r)
	must(t, err)
	t.Cleanup(func() {
		if left := mountedImages(t, m); len(left) > 0 {
			t.Errorf("images left mounted: %v", left)
		}
		must(t, os.Remove(m.dir))
	})
	return m
}

func mountedImages(t *testing.T, m *ImageMounts) []string {
	t.Helper()
	ids, err := m.List()
	must(t, err)
	return ids
}

func mountImage(t *testing.T, m *ImageMounts, id string) string {
	t.Helper()
	dir, err := m.Mount(t.Context(), id)
	must(t, err)
	return dir
}

func nobody() bool   { return false }
func somebody() bool { return true }

// Images of any number of layers, none included, are read as their containers would see them, and never written.
func TestImageMounts(t *testing.T) {
	needRoot(t)
	top, bottom := tree(t, "dir/new", "both"), tree(t, "dir/old", "both/under")
	must(t, unix.Mknod(filepath.Join(top, "gone"), unix.S_IFCHR, 0))
	must(t, os.WriteFile(filepath.Join(bottom, "gone"), nil, 0o644))
	images := layersOf{"none": nil, "one": {tree(t, "file")}, "two": {top, bottom}, "many": manyLayers(t, 128)}
	for name, way := range map[string]mounter{"config": mountByConfig, "options": mountByOptions} {
		t.Run(name, func(t *testing.T) {
			r := openTestRootfs(t, images)
			r.mount = way
			m := openTestMounts(t, r)
			for id := range images {
				dir := mountImage(t, m, id)
				if again := mountImage(t, m, id); again != dir || len(mountsBelow(t, dir)) != 1 {
					t.Errorf("image %s is mounted at %s and %s, mounts %v", id, dir, again, mountsBelow(t, dir))
				}
				if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("writing to image %s: %v", id, err)
				}
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
					t.Errorf("make the mount of image %s writable: %v", id, err)
				}
				if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("writing to image %s where the mount is made writable: %v", id, err)
				}
			}
			wantFile(t, filepath.Join(m.dir, "one/file"), "file")
			wantFile(t, filepath.Join(m.dir, "two/dir/new"), "dir/new")
			wantFile(t, filepath.Join(m.dir, "two/dir/old"), "dir/old")
			wantFile(t, filepath.Join(m.dir, "two/both"), "both")
			wantAbsent(t, filepath.Join(m.dir, "two/gone"))
			if left := namesIn(t, filepath.Join(m.dir, "none")); len(left) > 0 {
				t.Errorf("an image without layers holds %v", left)
			}
			for id := range images {
				must(t, m.Unmount(t.Context(), id, nobody))
				must(t, m.Unmount(t.Context(), id, nobody))
				wantAbsent(t, filepath.Join(m.dir, id))
			}
		})
	}
}

func TestImageMountsOutliveCrid(t *testing.T) {
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	dir := mountImage(t, openTestMounts(t, r), "img")
	m, err := OpenImageMounts(r)
	must(t, err)
	if ids := mountedImages(t, m); len(ids) != 1 || ids[0] != "img" {
		t.Errorf("found %v", ids)
	}
	if again := mountImage(t, m, "img"); again != dir || len(mountsBelow(t, dir)) != 1 {
		t.Errorf("mounted at %s, then at %s", dir, again)
	}
	must(t, m.Unmount(t.Context(), "img", somebody))
	wantFile(t, filepath.Join(dir, "file"), "file")
	must(t, m.Unmount(t.Context(), "img", nobody))
}

// A mount point without a mount is what a crash leaves between the two steps, or a reboot on a disk.
func TestImageMountsHalfMade(t *testing.T) {
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	m := openTestMounts(t, r)
	must(t, os.Mkdir(filepath.Join(m.dir, "img"), 0o700))
	wantFile(t, filepath.Join(mountImage(t, m, "img"), "file"), "file")
	must(t, m.Unmount(t.Context(), "img", nobody))
}

func TestImageMountsThatFailLeaveNothing(t *testing.T) {
	r := openTestRootfs(t, layersOf{"bad": {"/nonexistent/layer"}})
	m := openTestMounts(t, r)
	_, err := m.Mount(t.Context(), "unknown")
	wantKind(t, err, errdef.NotFound, "unknown")
	_, err = m.Mount(t.Context(), "../escape")
	wantKind(t, err, errdef.Invalid, "../escape")
	if _, err = m.Mount(t.Context(), "bad"); err == nil || !strings.Contains(err.Error(), "/nonexistent/layer") {
		t.Errorf("mounting an image whose layer is not there: %v", err)
	}
	if left := append(mountedImages(t, m), mountsBelow(t, m.dir)...); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Many who mount and unmount one image never see it without its content while they use it.
func TestImageMountsAtTheSameTime(t *testing.T) {
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file"), tree(t, "other")}})
	m := openTestMounts(t, r)
	users := make(chan struct{}, 64) // holds one for each user
	var all errgroup.Group
	for range 16 {
		all.Go(func() error {
			for range 20 {
				users <- struct{}{}
				dir, err := m.Mount(t.Context(), "img")
				if err == nil {
					_, err = os.Stat(filepath.Join(dir, "file"))
				}
				<-users
				if err := errors.Join(err, m.Unmount(t.Context(), "img", func() bool { return len(users) > 0 })); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, all.Wait())
	if len(m.turns) != 0 {
		t.Errorf("%d turns are remembered", len(m.turns))
	}
}

func TestImageMountWaitsNoLongerThanItsCaller(t *testing.T) {
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	m := openTestMounts(t, r)
	_, leave, err := m.enter(t.Context(), "img")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Mount(ctx, "img"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	leave()
	if len(m.turns) != 0 {
		t.Errorf("%d turns are remembered", len(m.turns))
	}
}

func TestBelow(t *testing.T) {
	root := tree(t, "dir/sub/file", "dir/abs -> /dir/sub", "dir/up -> ../../../../dir/sub", "out -> /etc", "loop -> loop", "etc/own")
	must(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	for name, want := range map[string]string{
		"":             "",
		"dir":          "/dir",
		"dir/sub/file": "/dir/sub/file",
		"dir/abs":      "/dir/sub",
		"dir/up/file":  "/dir/sub/file",
		"out":          "/etc",
		"out/own":      "/etc/own",
	} {
		if got, err := Below(root, name); err != nil || got != root+want {
			t.Errorf("%q is %q, %v; want %q", name, got, err, root+want)
		}
	}
	for name, kind := range map[string]error{
		"none": errdef.NotFound, "out/passwd": errdef.NotFound, "dir/sub/file/x": errdef.NotFound,
		"fifo": errdef.Invalid, "loop": errdef.Invalid,
	} {
		_, err := Below(root, name)
		wantKind(t, err, kind, name)
	}
}
