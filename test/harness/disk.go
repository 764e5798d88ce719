package harness

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/isolate"
)

// Disk is a small disk for crid's root: a file that remembers what was written to it, a loop device on it and, mounted where
// the crid of the test will have its root, an ext4 filesystem. Of every moment it tells what a power cut could have left.
type Disk struct {
	t        *testing.T
	at       string // mount point
	base     string // the filesystem before it was mounted first
	recorded string // the file that remembers
	recorder *recorder
	n        int // makes the names of files
}

// NewDisk makes a disk of size bytes before Start.
func NewDisk(t *testing.T, size int64) *Disk {
	t.Helper()
	d := &Disk{t: t, at: filepath.Join(isolate.Scratch(), shortName(t), "root")}
	first := d.newFile()
	d.must(os.MkdirAll(d.at, 0o755))
	d.must(os.WriteFile(first, nil, 0o600))
	d.must(os.Truncate(first, size))
	// Nothing is left to be initialised later: what is written to the disk is the test's.
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", first).CombinedOutput()
	if err != nil {
		t.Fatalf("mkfs.ext4 (Debian package e2fsprogs): %v: %s", err, out)
	}
	d.base = first
	content := d.newFile()
	d.must(copySparse(content, first))
	d.recorded = d.newFile()
	d.must(os.WriteFile(d.recorded, nil, 0o600))
	d.recorder = record(t, d.recorded, content)
	d.MountWhole()
	t.Cleanup(d.Unmount)
	return d
}

func (d *Disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) newFile() string {
	d.n++
	file := filepath.Join("/run", fmt.Sprintf("%s-disk-%d", shortName(d.t), d.n))
	d.t.Cleanup(func() {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.t.Error(err)
		}
	})
	return file
}

// mount mounts the filesystem in file, replaying its journal. The loop device goes with the mount.
func (d *Disk) mount(file string) {
	d.t.Helper()
	d.must(mountFile(file, d.at, "ext4"))
}

// mountFile mounts the filesystem in a file, by a loop device that goes with the mount.
func mountFile(file, at, fstype string) error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer backing.Close()
	for {
		free, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		err = mountLoop(fmt.Sprintf("/dev/loop%d", free), backing, at, fstype)
		if !errors.Is(err, unix.EBUSY) { // somebody else was quicker
			return err
		}
	}
}

func mountLoop(dev string, backing *os.File, at, fstype string) (err error) {
	loop, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Close()) }()
	err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
		Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
	})
	if err != nil {
		return err
	}
	return unix.Mount(dev, at, fstype, 0, "")
}

// Unmount unmounts what is mounted, as an orderly end does.
func (d *Disk) Unmount() {
	d.t.Helper()
	if err := unix.Unmount(d.at, 0); err != nil {
		d.t.Error("unmount the disk:", err)
	}
}

// MountWhole mounts the disk that had no power cut.
func (d *Disk) MountWhole() {
	d.t.Helper()
	d.mount(d.recorded)
}

// Moment is now: how many writes and flushes came to the disk before.
func (d *Disk) Moment() int { return len(d.recorder.writes()) }

// Flushes are the moments between the two at which something was about to be flushed: the most can be lost then.
func (d *Disk) Flushes(from, to int) []int {
	var all []int
	for i, w := range d.recorder.writes()[from:to] {
		if w.data == nil {
			all = append(all, from+i)
		}
	}
	return all
}

// MountCut mounts, instead of what is mounted, the disk as it may be when the power failed at a moment: all that was flushed
// before is there, and of what was written since the last flush any blocks are and any are not, for a number always the
// same.
func (d *Disk) MountCut(moment int) {
	d.t.Helper()
	d.Unmount()
	file := d.newFile()
	d.must(copySparse(file, d.base))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	d.must(err)
	for _, w := range survivors(d.recorder.writes(), moment, rand.New(rand.NewPCG(7, uint64(moment)))) {
		_, err = f.WriteAt(w.data, w.at)
		d.must(err)
	}
	d.must(f.Close())
	d.mount(file)
	d.must(os.Remove(file)) // the loop device has it
}

// copySparse copies what is not a hole.
func copySparse(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		begin, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		if at, err = src.Seek(begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, at-begin)); err != nil {
			return err
		}
	}
	return nil
}

// Reboot lets a crid that does not run find what a machine finds after a power cut: the disk as MountCut has it, written
// in another boot, and nothing in the runroot.
func (d *Disk) Reboot(c *Crid, moment int) {
	d.t.Helper()
	d.MountCut(moment)
	entries, err := os.ReadDir(c.RunRoot)
	d.must(err)
	for _, e := range entries {
		d.must(os.RemoveAll(filepath.Join(c.RunRoot, e.Name())))
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	d.must(err)
	d.must(filepath.WalkDir(d.at, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "overlay" || e.Name() == "rootfs") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".json") && e.Name() != "crid-open" || !e.Type().IsRegular() {
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		other := strings.ReplaceAll(string(raw), strings.TrimSpace(string(boot)), "00000000-0000-4000-8000-000000000000")
		return os.WriteFile(path, []byte(other), 0o600)
	}))
}
