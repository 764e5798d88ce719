package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// source is the host path of a mount, held open from the look at it until the container stands: the runtime mounts
// by name, and a name can come to mean something else in between.
type source struct {
	at    *os.File // O_PATH; closed with the creation
	field string   // of the request, for messages
	dest  string   // in the container, clean
}

// openSource opens a host path and answers its name without symbolic links. What is mounted by autofs gets mounted.
func openSource(name string) (at *os.File, real string, err error) {
	at, err = os.OpenFile(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) {
		at, err = os.OpenFile(name, unix.O_PATH, 0)
	}
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			at.Close()
		}
	}()
	if real, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd())); err != nil {
		return nil, "", err
	}
	opened, err := identityOf(int(at.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, "", err
	}
	if named, err := identityOf(unix.AT_FDCWD, real, unix.AT_SYMLINK_NOFOLLOW); err != nil || named != opened {
		return nil, "", fmt.Errorf("%s was replaced while it was looked at: %w", name, errdef.Invalid)
	}
	return at, real, nil
}

// identity tells one file from another as long as it is open.
type identity struct {
	major, minor uint32 // of the filesystem
	inode        uint64
}

// identityOf asks no server behind the filesystem.
func identityOf(dir int, name string, flags int) (identity, error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, name, flags|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return identity{}, &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	return identity{st.Dev_major, st.Dev_minor, st.Ino}, nil
}

// wantShared refuses a source whose mounts no other mount sees: what the container mounts there would never reach the
// host. It reads the table of mounts, which takes milliseconds where there are thousands; few containers ask for it.
func wantShared(at *os.File, name string) error {
	var st unix.Statx_t
	if err := unix.Statx(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	on, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return uint64(m.ID) != st.Mnt_id, uint64(m.ID) == st.Mnt_id
	})
	if err != nil {
		return fmt.Errorf("find the mount of %s: %w", name, err)
	}
	if len(on) == 0 {
		return fmt.Errorf("host_path: the mount of %s is gone: %w", name, errdef.Invalid)
	}
	if !strings.Contains(on[0].Optional, "shared:") {
		return fmt.Errorf("propagation: PROPAGATION_BIDIRECTIONAL needs a shared mount, and %s lies on %s, which is none "+
			"(mount --make-shared %s): %w", name, on[0].Mountpoint, on[0].Mountpoint, errdef.Invalid)
	}
	return nil
}

// badPath gives a path that cannot be its kind; other failures are the host's.
func badPath(err error) error {
	for _, wrong := range []error{unix.ENOTDIR, unix.ELOOP, unix.EEXIST, unix.ENAMETOOLONG, unix.EINVAL} {
		if errors.Is(err, wrong) {
			return fmt.Errorf("%w: %w", err, errdef.Invalid)
		}
	}
	return err
}

// confirmSources makes sure, before the container's program runs, that the runtime mounted what was looked at. It
// can tell only where the process has the root that crid mounted: in a virtual machine there is nothing to see. Hooks
// may mount over anything, so that after them it cannot tell either. Invalid: something else is mounted.
func (c *Container) confirmSources(pid int, s *specs.Spec) error {
	if len(c.creation.sources) == 0 || s.Hooks != nil {
		return nil
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended, or is not to be seen
	}
	if err != nil {
		return fmt.Errorf("look at the mounts of process %d: %w", pid, err)
	}
	defer root.Close()
	inside, err := identityOf(int(root.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	if ours, err := identityOf(unix.AT_FDCWD, s.Root.Path, 0); err != nil || ours != inside {
		return err
	}
	return c.confirmIn(root, s.Linux.MaskedPaths)
}

func (c *Container) confirmIn(root *os.File, masked []string) error {
	var known []identity
	for _, src := range c.creation.sources {
		id, err := identityOf(int(src.at.Fd()), "", unix.AT_EMPTY_PATH)
		if err != nil {
			return fmt.Errorf("%s: %w", src.field, err)
		}
		known = append(known, id)
	}
	for _, src := range c.creation.sources {
		if slices.ContainsFunc(masked, func(p string) bool { return within(src.dest, path.Clean(p)) }) {
			continue
		}
		at, err := pathrs.OpenatInRoot(root, src.dest)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // another mount hides it: nobody in the container gets there
		}
		if err != nil {
			return fmt.Errorf("%s: look at what was mounted: %w", src.field, badPath(err))
		}
		found, err := identityOf(int(at.Fd()), "", unix.AT_EMPTY_PATH)
		at.Close()
		if err != nil {
			return fmt.Errorf("%s: look at what was mounted: %w", src.field, err)
		}
		// Two of the request's mounts may lie on each other, by a symbolic link of the image.
		if !slices.Contains(known, found) {
			return fmt.Errorf("%s: host_path was replaced while it was mounted: %w", src.field, errdef.Invalid)
		}
	}
	return nil
}

// closeSources lets go of what was held open for confirmSources.
func (c *creation) closeSources() {
	for _, src := range c.sources {
		src.at.Close() // nothing was written by it
	}
	c.sources = nil
}
