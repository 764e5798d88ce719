package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/vbatts/tar-split/archive/tar"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"
)

// fileWindow is how many bytes of a file are looked at and written at once: they stay in the processor's nearer cache.
const fileWindow = 256 << 10

// layerFiles makes the files of a layer below a directory that nobody else sees yet. Whatever an archive contains, nothing is
// made elsewhere: the directory that a path leads to is opened with the layer's as the root of all links on the way
// (openat2's RESOLVE_IN_ROOT), and in it names are used that have no slash and are never followed.
type layerFiles struct {
	top    *os.File
	within string   // the directory of the entry before, as the archive calls it
	parent *os.File // that directory, a path only (O_PATH); nil: not open
	dirs   []dirTimes
	buffer []byte

	unsupported map[string]bool // attributes that the filesystem does not have
}

// dirTimes are set when all files are made, which changes those of their directories.
type dirTimes struct {
	name  string
	times [2]unix.Timespec
}

func openLayerFiles(dir string) (*layerFiles, error) {
	top, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &layerFiles{top: top, buffer: make([]byte, fileWindow), unsupported: map[string]bool{}}, nil
}

// close gives back the directories that are open.
func (f *layerFiles) close() {
	f.leave()
	_ = f.top.Close() // of a path
}

// add makes one file of the layer. Errors of content are passed on as they are.
func (f *layerFiles) add(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	dir, base, err := splitEntry(h.Name)
	if err != nil {
		return err
	}
	mark, isMark := strings.CutPrefix(base, archive.WhiteoutPrefix)
	if base == "." && h.Typeflag != tar.TypeDir {
		return errors.New("the layer's root is not a directory")
	}
	err = f.enter(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err = f.makeAll(dir); err == nil {
			err = f.enter(dir)
		}
	}
	if isMark {
		if err == nil {
			err = f.whiteout(base, mark)
		}
		if errors.Is(err, unix.ENOTDIR) {
			return nil // what it was in is removed already
		}
		return f.about(h.Name, err)
	}
	if err != nil {
		return f.about(h.Name, err)
	}
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse {
		return f.regular(h, base, content)
	}
	if err := f.special(h, base); err != nil {
		return f.about(h.Name, err)
	}
	return nil
}

// splitEntry is the directory of an entry and its name in that: "." for the layer's root.
func splitEntry(name string) (dir, base string, err error) {
	if clean := path.Clean(name); clean == ".." || strings.HasPrefix(clean, "../") {
		return "", "", fmt.Errorf("%q is outside of the layer", name)
	}
	dir, base = path.Split(path.Clean("/" + name))
	if base == "" {
		base = "."
	}
	return dir, base, nil
}

// about tells which entry an error is about, and where that was to be made.
func (f *layerFiles) about(name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "make", Path: filepath.Join(f.top.Name(), name), Err: err}
}

// enter opens the directory of the next entries.
func (f *layerFiles) enter(dir string) error {
	if f.parent != nil && f.within == dir {
		return nil
	}
	f.leave()
	parent, err := f.open(dir)
	if err != nil {
		return err
	}
	f.parent, f.within = parent, dir
	return nil
}

func (f *layerFiles) open(dir string) (*os.File, error) {
	return pathrs.OpenatInRoot(f.top, dir)
}

// makeAll makes a directory and those that it is in. Where a link leads to a directory that is not there, that is made. Between
// the resolution of links and the making of directories nobody changes them.
func (f *layerFiles) makeAll(dir string) error {
	resolved, err := securejoin.SecureJoin(f.top.Name(), dir)
	if err != nil {
		return err
	}
	made, err := pathrs.MkdirAllHandle(f.top, strings.TrimPrefix(resolved, f.top.Name()), 0o755)
	if err != nil {
		return err
	}
	return made.Close()
}

func (f *layerFiles) leave() {
	if f.parent != nil {
		_ = f.parent.Close() // of a path
		f.parent = nil
	}
}

// at is the descriptor of the directory of the entry.
func (f *layerFiles) at() int { return int(f.parent.Fd()) }

// reach is a path to an entry for calls that take no directory: its last part is not followed by those that follow none.
func reach(dir *os.File, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + base
}

// regular makes a file with content.
func (f *layerFiles) regular(h *tar.Header, base string, content io.Reader) error {
	var fd int
	err := f.anew(base, func() (err error) {
		fd, err = retried(func() (int, error) {
			return unix.Openat(f.at(), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		})
		return err
	})
	if err != nil {
		return f.about(h.Name, err)
	}
	defer func() { _ = unix.Close(fd) }() // what was written is flushed with the layer, and an error told then
	if err := f.fill(fd, h.Name, content); err != nil {
		return err
	}
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return f.about(h.Name, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil { // behind chown, which takes setuid away
		return f.about(h.Name, err)
	}
	if err := f.attributes(h, base, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return f.about(h.Name, err)
	}
	times := timesOf(h)
	return f.about(h.Name, unix.UtimesNanoAt(f.at(), base, times[:], unix.AT_SYMLINK_NOFOLLOW))
}

// fill writes the content of a file.
func (f *layerFiles) fill(fd int, name string, content io.Reader) error {
	for {
		n := 0
		var failed error
		for n < len(f.buffer) && failed == nil {
			var more int
			more, failed = content.Read(f.buffer[n:])
			n += more
		}
		if err := writeAll(fd, f.buffer[:n]); err != nil {
			return f.about(name, err)
		}
		if errors.Is(failed, io.EOF) {
			return nil
		}
		if failed != nil {
			return failed
		}
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := retried(func() (int, error) { return unix.Write(fd, data) })
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// retried calls what a signal may interrupt.
func retried(do func() (int, error)) (int, error) {
	for {
		if n, err := do(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// special makes what is no file with content.
func (f *layerFiles) special(h *tar.Header, base string) error {
	asLink := h.Typeflag == tar.TypeSymlink // it has no mode
	switch h.Typeflag {
	case tar.TypeDir:
		if err := f.dir(base); err != nil {
			return err
		}
		f.dirs = append(f.dirs, dirTimes{h.Name, timesOf(h)})
	case tar.TypeSymlink:
		if err := f.anew(base, func() error { return unix.Symlinkat(h.Linkname, f.at(), base) }); err != nil {
			return err
		}
	case tar.TypeLink:
		var err error
		if asLink, err = f.link(h.Linkname, base); err != nil {
			return err
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		device := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		if err := f.anew(base, func() error { return unix.Mknodat(f.at(), base, kind|0o600, device) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("its type %q is none of a layer's", h.Typeflag)
	}
	if err := unix.Fchownat(f.at(), base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !asLink {
		if err := unix.Fchmodat(f.at(), base, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	set := func(name string, value []byte) error { return unix.Lsetxattr(reach(f.parent, base), name, value, 0) }
	if err := f.attributes(h, base, set); err != nil {
		return err
	}
	times := timesOf(h)
	return unix.UtimesNanoAt(f.at(), base, times[:], unix.AT_SYMLINK_NOFOLLOW)
}

// dir makes a directory, or takes that which is there.
func (f *layerFiles) dir(base string) error {
	hid := false
	err := unix.Mkdirat(f.at(), base, 0o755)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(f.at(), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return err
		}
		hid = isWhiteout(st)
		err = f.anew(base, func() error { return unix.Mkdirat(f.at(), base, 0o755) })
	}
	if err == nil && hid { // what the layers below have there stays hidden
		err = f.hideBelow(base)
	}
	return err
}

// isWhiteout tells whether it hides from an overlay what is below.
func isWhiteout(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// opaque is the attribute of a directory with which an overlay hides all that is in the directory below.
var opaque = archive.GetOverlayXattrName("opaque")

// hideBelow makes a directory opaque.
func (f *layerFiles) hideBelow(base string) error {
	return unix.Lsetxattr(reach(f.parent, base), opaque, []byte("y"), 0)
}

// link gives a file of the layer another name. It tells whether that is a symbolic link.
func (f *layerFiles) link(target, base string) (symbolic bool, err error) {
	dir, name, err := splitEntry(target)
	if err != nil {
		return false, err
	}
	from := f.parent
	if dir != f.within {
		if from, err = f.open(dir); err != nil {
			return false, err
		}
		defer from.Close() // of a path
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("link to %q: %w", target, err)
	}
	err = f.anew(base, func() error {
		if err := unix.Linkat(int(from.Fd()), name, f.at(), base, 0); err != nil {
			return fmt.Errorf("link to %q: %w", target, err)
		}
		return nil
	})
	return st.Mode&unix.S_IFMT == unix.S_IFLNK, err
}

// whiteout hides from an overlay what the layers below have. What this layer has, before it or behind, it does not touch.
func (f *layerFiles) whiteout(base, hidden string) error {
	switch {
	case base == archive.WhiteoutOpaqueDir:
		return f.hideBelow(".")
	case strings.HasPrefix(base, archive.WhiteoutMetaPrefix):
		return nil // what AUFS kept for itself
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("it is a whiteout of no file")
	}
	err := unix.Mknodat(f.at(), hidden, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(f.at(), hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err // what is no directory hides what is below as it is
	}
	return f.hideBelow(hidden)
}

// anew makes something in the place of what an earlier entry made there.
func (f *layerFiles) anew(base string, do func() error) error {
	err := do()
	if !errors.Is(err, unix.EEXIST) || base == "." {
		return err
	}
	f.within = "" // by another way it may be this very directory's name that is removed
	if err := os.RemoveAll(reach(f.parent, base)); err != nil {
		return err
	}
	return do()
}

// attributes sets the extended attributes of an entry. Not those that belong to an overlay, which are ours, nor SELinux's label, which
// is a mount's.
func (f *layerFiles) attributes(h *tar.Header, base string, set func(name string, value []byte) error) error {
	for _, name := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		key, isAttribute := strings.CutPrefix(name, archive.PaxSchilyXattr)
		if !isAttribute || key == "security.selinux" || strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		err := set(key, []byte(h.PAXRecords[name]))
		if errors.Is(err, unix.ENOTSUP) {
			f.unsupported[key] = true
			continue
		}
		if err != nil {
			return fmt.Errorf("set its attribute %s: %w", key, err)
		}
	}
	return nil
}

// finish sets the times of directories. One that has been replaced has them no more.
func (f *layerFiles) finish() error {
	for _, d := range f.dirs {
		dir, base, err := splitEntry(d.name)
		if err == nil {
			err = f.enter(dir)
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstatat(f.at(), base, &st, unix.AT_SYMLINK_NOFOLLOW)
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if err == nil {
			err = unix.UtimesNanoAt(f.at(), base, d.times[:], unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			return f.about(d.name, err)
		}
	}
	for name := range f.unsupported {
		slog.Warn("the disk of the image store does not have an attribute of files that a layer has", "attribute", name)
	}
	return nil
}

// epoch and the end of what 64 bits have in nanoseconds bound the times of files, as the store's own unpacker has it.
var epoch, lastTime = time.Unix(0, 0), time.Unix(0, 1<<63-1)

// timesOf are the times of last access and change. The access is not before the change.
func timesOf(h *tar.Header) [2]unix.Timespec {
	var times [2]unix.Timespec
	access := h.AccessTime
	if access.Before(h.ModTime) {
		access = h.ModTime
	}
	for i, t := range []time.Time{access, h.ModTime} {
		if t.Before(epoch) || t.After(lastTime) {
			t = epoch
		}
		times[i] = unix.NsecToTimespec(t.UnixNano())
	}
	return times
}
