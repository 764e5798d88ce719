package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/node"
)

// SmallDisk is a small filesystem of a test, which can be filled to the last byte and the last inode.
type SmallDisk struct {
	Path   string
	fstype string
	t      *testing.T
}

// ballast is what fills a SmallDisk: a file for the blocks, and a directory for the inodes.
const ballast = ".ballast"

// The filesystems of a SmallDisk: in memory, or in a file by a loop device.
const (
	Tmpfs = "tmpfs"
	Ext4  = "ext4"
	XFS   = "xfs"
	// Quota is a btrfs subvolume with a quota: what is denied there is denied as EDQUOT.
	Quota = "btrfs"
)

// smallest is what the smallest filesystem has, in MiB.
var smallest = map[string]int{Ext4: 8, XFS: 300, Quota: 128}

// NewSmallDisk mounts a filesystem of so many MiB, or the fewest that it can have, at path, until t has ended and with it
// a crid that was started later.
func NewSmallDisk(t *testing.T, fstype, path string, mib int) *SmallDisk {
	t.Helper()
	d := &SmallDisk{Path: path, fstype: fstype, t: t}
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	err := mountNew(t, fstype, path, max(mib, smallest[fstype]))
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("the kernel has no %s", fstype)
	}
	if err != nil {
		t.Fatal("mount a small disk:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Error("unmount the small disk:", err)
		}
	})
	return d
}

func mountNew(t *testing.T, fstype, path string, mib int) error {
	if fstype == Tmpfs {
		return unix.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("mode=0755,size=%dm,nr_inodes=8192", mib))
	}
	file, err := os.CreateTemp("/run", "small-disk-")
	if err != nil {
		return err
	}
	t.Cleanup(func() { // after the unmount
		if err := os.Remove(file.Name()); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(file.Truncate(int64(mib)<<20), file.Close()); err != nil {
		return err
	}
	args := map[string][]string{Ext4: {"-q", "-F", "-N", "4096", "-m", "0"}, XFS: {"-q"}, Quota: {"-q", "--mixed"}}[fstype]
	if out, err := exec.Command("mkfs."+fstype, append(args, file.Name())...).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.%s: %w: %s", fstype, err, out)
	}
	err = mountFile(file.Name(), path, fstype)
	if fstype == Quota && err == nil {
		err = limit(path, mib/2)
	}
	return err
}

// limit gives the top of a btrfs a quota.
func limit(path string, mib int) error {
	for _, args := range [][]string{{"quota", "enable", path}, {"qgroup", "limit", fmt.Sprintf("%dM", mib), path}} {
		if out, err := exec.Command("btrfs", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("btrfs %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// isFull tells what there is no more: space, or quota.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Places are where the crid that Start starts for t has its roots.
func Places(t *testing.T) (root, runroot string) {
	return node.Places(shortName(t))
}

// Fill leaves neither a byte nor an inode, also of what has been given back since the last Fill.
func (d *SmallDisk) Fill() {
	d.t.Helper()
	dir := filepath.Join(d.Path, ballast)
	if err := os.MkdirAll(dir, 0o700); err != nil && !isFull(err) {
		d.t.Fatal(err)
	}
	d.FillBlocks()
	if d.fstype == Ext4 {
		d.giveBack(dirPages) // its directories need blocks for names
	}
	for {
		f, err := os.CreateTemp(dir, "")
		if isFull(err) {
			break
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
	d.FillBlocks()
}

// dirPages are more than the names of all inodes take.
const dirPages = 128

// FillBlocks leaves no byte.
func (d *SmallDisk) FillBlocks() {
	d.t.Helper()
	f, err := os.OpenFile(d.blocks(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil { // what was deleted is free only then
		d.t.Fatal(err)
	}
	for chunk := int64(64 << 20); chunk >= pageSize; {
		info, err := f.Stat()
		if err == nil {
			err = unix.Fallocate(int(f.Fd()), 0, info.Size(), chunk)
		}
		if isFull(err) {
			chunk /= 2
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *SmallDisk) blocks() string { return filepath.Join(d.Path, ballast+"-blocks") }

// giveBack takes so many pages from the ballast.
func (d *SmallDisk) giveBack(pages int) {
	d.t.Helper()
	info, err := os.Stat(d.blocks())
	if err == nil {
		err = os.Truncate(d.blocks(), max(0, info.Size()/pageSize-int64(pages))*pageSize)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// FillBut leaves so many pages and so many inodes, at most.
func (d *SmallDisk) FillBut(pages, inodes int) {
	d.t.Helper()
	d.Fill()
	d.giveBack(pages)
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

// SmallDiskAt is the disk that NewSmallDisk mounted at path.
func SmallDiskAt(t *testing.T, path string) *SmallDisk { return &SmallDisk{Path: path, t: t} }
