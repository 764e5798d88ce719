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
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// source is the host path of a mount, held open from the look at it until the container stands: the runtime mounts
// by name, and a name can come to mean something else in between.
type source struct {
	at    *os.File // O_PATH; closed with the creation
	field string   // of the request, for messages
	real  string   // host path without symbolic links
	dest  string   // in the container, clean
	name  string   // host path that the runtime mounts by: with mapped ids another than real

	relabel bool // with the container's SELinux label
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

// mountOf answers the id of the mount that an open file is on.
func mountOf(at *os.File) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(at.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: at.Name(), Err: err}
	}
	return st.Mnt_id, nil
}

// wantPropagation refuses a source on a mount that cannot propagate as asked: what the container mounts there would never
// reach the host, or what the host mounts there never the container. It reads the table of mounts, which takes
// milliseconds where there are thousands; few containers ask for it.
func wantPropagation(at *os.File, name string, asked runtime.MountPropagation) error {
	kinds := map[runtime.MountPropagation][]string{
		runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:     {"shared:"},
		runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: {"shared:", "master:"},
	}[asked]
	if kinds == nil {
		return nil
	}
	id, err := mountOf(at)
	if err != nil {
		return err
	}
	on, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return uint64(m.ID) != id, uint64(m.ID) == id
	})
	if err != nil {
		return fmt.Errorf("find the mount of %s: %w", name, err)
	}
	if len(on) == 0 {
		return fmt.Errorf("host_path: the mount of %s is gone: %w", name, errdef.Invalid)
	}
	if !slices.ContainsFunc(kinds, func(kind string) bool { return strings.Contains(on[0].Optional, kind) }) {
		return fmt.Errorf("propagation: %v needs a shared mount, and %s lies on %s, which is none (mount --make-shared %s): %w",
			asked, name, on[0].Mountpoint, on[0].Mountpoint, errdef.Invalid)
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

// confirmMounts makes sure, before the container's program runs, that the runtime mounted what was looked at, and masked
// what it was to mask. It can tell only where the process has the root that crid mounted: in a virtual machine there is
// nothing to see. Hooks may mount over anything, so that after them it cannot tell a source that was replaced from one
// that a hook has covered. A pause has no mounts that anybody asked for. Invalid: something else is mounted.
func (c *Container) confirmMounts(pid int, s *specs.Spec) error {
	if c.plan.Pause {
		return nil
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended
	}
	if errors.Is(err, fs.ErrPermission) {
		c.m.log.Warn("what the runtime mounted cannot be looked at; a host path may have been replaced meanwhile", "container", c.id, "err", err)
		return nil
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
	if err := confirmMasks(root, s); err != nil || hooksHaveRun(s.Hooks) {
		return err
	}
	return c.creation.confirmIn(root, s)
}

// hooksHaveRun tells whether a runtime's `create` runs one of the hooks; the other stages come later.
func hooksHaveRun(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// shown is what a container has where a source was to be mounted.
type shown struct {
	there bool   // else another mount hides the place: nobody in the container gets there
	right bool   // it is the source that was looked at
	mount uint64 // id of the mount that the place is on
}

func (c *creation) confirmIn(root *os.File, s *specs.Spec) error {
	all := make([]shown, len(c.sources))
	for i, src := range c.sources {
		var err error
		if all[i], err = src.look(root); err != nil {
			return fmt.Errorf("%s: look at what was mounted: %w", src.field, badPath(err))
		}
	}
	for i, src := range c.sources {
		// By a symbolic link of the image, another of the request's mounts may lie on this one.
		covered := slices.ContainsFunc(all, func(other shown) bool { return other.right && other.mount == all[i].mount })
		if all[i].there && !all[i].right && !covered && !c.hidden(src, s) {
			return fmt.Errorf("%s: host_path was replaced while it was mounted: %w", src.field, errdef.Invalid)
		}
	}
	return nil
}

func (src source) look(root *os.File) (shown, error) {
	at, err := pathrs.OpenatInRoot(root, src.dest)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return shown{}, nil
	}
	if err != nil {
		return shown{}, err
	}
	defer at.Close()
	want, err := identityOf(int(src.at.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return shown{}, err
	}
	found, err := identityOf(int(at.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return shown{}, err
	}
	mount, err := mountOf(at)
	return shown{there: true, right: found == want, mount: mount}, err
}

// hidden tells whether something that the request did not ask for takes the place of the source: a masked path, or a
// mount of a CDI device.
func (c *creation) hidden(src source, s *specs.Spec) bool {
	if slices.ContainsFunc(s.Linux.MaskedPaths, func(p string) bool { return within(src.dest, path.Clean(p)) }) {
		return true
	}
	own := slices.IndexFunc(s.Mounts, src.is)
	return own < 0 || slices.ContainsFunc(s.Mounts[own+1:], func(m specs.Mount) bool {
		return within(src.dest, path.Clean(m.Destination)) && !slices.ContainsFunc(c.sources, func(other source) bool { return other.is(m) })
	})
}

// is tells whether the mount is that of the source.
func (src source) is(m specs.Mount) bool { return m.Destination == src.dest && m.Source == src.name }

// closeSources lets go of what was held open for confirmMounts.
func (c *creation) closeSources() {
	for _, src := range c.sources {
		src.at.Close() // nothing was written by it
	}
	c.sources = nil
}
