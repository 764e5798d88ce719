package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTrashGoesOnAfterRestart(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "upper/a/b/c"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i), "upper/a/file"), nil, 0))
	}
	var p problems
	openTrash(dir, &p).close() // at once: most of it is left
	trash := openTrash(dir, &p)
	waitEmpty(t, dir)
	trash.close()
	trash.close()
	if left := p.list(); len(left) > 0 {
		t.Error(left)
	}
}

// A container may nest directories deeper than a path can name and crid has descriptors.
func TestTrashDeepTree(t *testing.T) {
	needRoot(t)
	disk := tmpfs(t, 256<<10)
	dir, tree := filepath.Join(disk, "trash"), filepath.Join(disk, "tree")
	must(t, errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(tree, 0o700)))
	at, err := unix.Open(tree, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 5000 {
		must(t, unix.Mkdirat(at, "d", 0o700))
		must(t, unix.Mknodat(at, "f", unix.S_IFREG|0o600, 0))
		below, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = below
	}
	must(t, unix.Close(at))
	var p problems
	trash := openTrash(dir, &p)
	defer trash.close()
	must(t, trash.put(tree))
	waitEmpty(t, dir)
	wantAbsent(t, tree)
}

func TestTrashSaysWhatItCannotDelete(t *testing.T) {
	needRoot(t)
	dir, tree := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(tree, "a/mounted"), 0o755))
	must(t, unix.Mount("tmpfs", filepath.Join(tree, "a/mounted"), "tmpfs", 0, ""))
	var p problems
	trash := &trash{dir: dir, wake: make(chan struct{}, 1), problems: &p}
	must(t, trash.put(tree))
	if err := trash.empty(t.Context()); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Fatalf("deleted what is mounted: %v", err)
	}
	for _, at := range mountsBelow(t, dir) {
		must(t, unix.Unmount(at, 0))
	}
	must(t, trash.empty(t.Context()))
	if left := namesIn(t, dir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
