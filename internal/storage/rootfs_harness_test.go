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

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// layersOf plays the image store: directories, topmost first, by image.
type layersOf map[string][]string

func (l layersOf) Layers(_ context.Context, imageID string) ([]string, error) {
	dirs, ok := l[imageID]
	if !ok {
		return nil, fmt.Errorf("image %s: %w", imageID, errdef.NotFound)
	}
	return slices.Clone(dirs), nil
}

// openTestRootfs opens a Rootfs on temporary directories, and at the end closes it and looks for what is left.
func openTestRootfs(t testing.TB, images Layers) *Rootfs {
	t.Helper()
	needRoot(t)
	base := t.TempDir()
	return openRootfsAt(t, RootfsConfig{Dir: filepath.Join(base, "rootfs"), MountDir: filepath.Join(base, "mounts")}, images)
}

func openRootfsAt(t testing.TB, cfg RootfsConfig, images Layers) *Rootfs {
	t.Helper()
	needRoot(t)
	r, err := OpenRootfs(cfg, images)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, err := r.List()
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			if err := r.Remove(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := mountsBelow(t, cfg.MountDir); len(left) > 0 {
			t.Errorf("mounts left: %v", left)
		}
		if left := namesIn(t, cfg.MountDir); len(left) > 0 {
			t.Errorf("mount points left: %v", left)
		}
	})
	return r
}

func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(raw)) {
		if at := strings.Fields(line)[4]; at == dir || strings.HasPrefix(at, dir+"/") {
			found = append(found, at)
		}
	}
	return found
}

func namesIn(t testing.TB, dir string) []string {
	t.Helper()
	names, err := entryNames(dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// waitEmpty waits until the directory holds nothing.
func waitEmpty(t testing.TB, dir string) {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	for len(namesIn(t, dir)) > 0 {
		select {
		case <-w.Events:
		case <-t.Context().Done():
			t.Fatalf("%s still holds %v", dir, namesIn(t, dir))
		}
	}
}

// tree makes files under a new directory: a name that ends in a slash is a directory, "a -> b" a symbolic
// link, any other a file with its name as content.
func tree(t testing.TB, names ...string) string {
	t.Helper()
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	for _, name := range names {
		link, to, isLink := strings.Cut(name, " -> ")
		path := filepath.Join(root, link)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(to, path))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(name), 0o644))
		}
	}
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustMount(t testing.TB, r interface {
	Mount(context.Context, string, string, Owner) (string, error)
}, id, image string) string {
	t.Helper()
	path, err := r.Mount(t.Context(), id, image, Owner{})
	must(t, err)
	return path
}

func wantFile(t testing.TB, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, content)
	}
}

func wantAbsent(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there (%v)", path, err)
	}
}

func wantKind(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error is %v; want kind %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// tmpfs mounts a filesystem of that many KiB and answers its path.
func tmpfs(t testing.TB, kib int) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func openFiles(t testing.TB) int {
	t.Helper()
	return len(namesIn(t, "/proc/self/fd"))
}
