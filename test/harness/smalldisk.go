package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/node"
)

// SmallDisk is a small filesystem of a test, which can be filled to the last byte and the last inode.
type SmallDisk struct {
	Path string
	t    *testing.T
}

// ballast is what fills a SmallDisk: a file for the blocks, and a directory for the inodes.
const ballast = ".ballast"

// NewSmallDisk mounts a filesystem of so many MiB at path, until t has ended and with it a crid that was started later.
func NewSmallDisk(t *testing.T, path string, mib int) *SmallDisk {
	t.Helper()
	d := &SmallDisk{Path: path, t: t}
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("mode=0755,size=%dm,nr_inodes=8192", mib)
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		t.Fatal("mount a small disk:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error("unmount the small disk:", err)
		}
	})
	return d
}

// Places are where the crid that Start starts for t has its roots.
func Places(t *testing.T) (root, runroot string) {
	return node.Places(shortName(t))
}

// Fill leaves neither a byte nor an inode, also of what has been given back since the last Fill.
func (d *SmallDisk) Fill() {
	d.t.Helper()
	dir := filepath.Join(d.Path, ballast)
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, unix.ENOSPC) {
		d.t.Fatal(err)
	}
	d.FillBlocks()
	for {
		f, err := os.CreateTemp(dir, "")
		if errors.Is(err, unix.ENOSPC) {
			return
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// FillBlocks leaves no byte.
func (d *SmallDisk) FillBlocks() {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.Path, ballast+"-blocks"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := f.Write(chunk); errors.Is(err, unix.ENOSPC) {
			chunk = chunk[:len(chunk)/2]
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// FillBut leaves so many pages and so many inodes, at most.
func (d *SmallDisk) FillBut(pages, inodes int) {
	d.t.Helper()
	d.Fill()
	blocks := filepath.Join(d.Path, ballast+"-blocks")
	info, err := os.Stat(blocks)
	if err == nil {
		err = os.Truncate(blocks, max(0, info.Size()/pageSize-int64(pages))*pageSize)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(d.Path, ballast, "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, file := range files[:min(inodes, len(files))] {
		if err := os.Remove(file); err != nil {
			d.t.Fatal(err)
		}
	}
}

const pageSize = 4096

// Free gives back what Fill took.
func (d *SmallDisk) Free() {
	d.t.Helper()
	path := filepath.Join(d.Path, ballast)
	if err := errors.Join(os.RemoveAll(path), os.RemoveAll(path+"-blocks")); err != nil {
		d.t.Fatal(err)
	}
}
