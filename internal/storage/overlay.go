package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// overlay is one overlay to mount. It is mounted volatile: nothing of it is synced, since no container outlives
// the kernel. Without upper it is read-only, and takes two lower directories at least.
type overlay struct {
	lower  []string // topmost first
	upper  string
	work   string
	target string
	label  string // SELinux label of all in it; empty = as the layers have it
}

// params are the overlay's directories under the names that fsconfig(2) has for them.
func (o overlay) params() [][2]string {
	var params [][2]string
	if o.upper != "" {
		params = append(params, [2]string{"upperdir", o.upper}, [2]string{"workdir", o.work})
	}
	for _, dir := range o.lower {
		params = append(params, [2]string{"lowerdir+", dir})
	}
	return params
}

func (o overlay) dirs() []string {
	var dirs []string
	for _, p := range o.params() {
		dirs = append(dirs, p[1])
	}
	return dirs
}

// mounter mounts an overlay. After an error nothing is mounted.
type mounter func(overlay) error

const (
	fsconfigLimit = 255  // bytes of one parameter of fsconfig(2)
	optionsLimit  = 4095 // bytes of the options of mount(2): a page with its final NUL
)

// mountByConfig names every layer in a parameter of its own, so that their number has no limit but the
// kernel's 500. It needs the overlay parameter lowerdir+.
func mountByConfig(o overlay) error {
	params := o.params()
	if slices.ContainsFunc(params, func(p [2]string) bool { return len(p[1]) > fsconfigLimit }) {
		short, release, err := byDescriptor(o.dirs())
		if err != nil {
			return err
		}
		defer release()
		for i := range params {
			params[i][1] = short[i]
		}
	}
	config, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen overlay", err)
	}
	defer unix.Close(config)
	params = append([][2]string{{"source", "overlay"}}, params...)
	if o.label != "" {
		params = append(params, [2]string{"context", o.label})
	}
	for _, p := range params {
		if err := unix.FsconfigSetString(config, p[0], p[1]); err != nil {
			return fmt.Errorf("overlay parameter %s=%s: %w%s", p[0], p[1], err, kernelSays(config))
		}
	}
	access := unix.MOUNT_ATTR_RDONLY
	if o.upper != "" {
		access = 0
		if err := unix.FsconfigSetFlag(config, "volatile"); err != nil {
			return fmt.Errorf("overlay parameter volatile: %w%s", err, kernelSays(config))
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return fmt.Errorf("make overlay: %w%s", err, kernelSays(config))
	}
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, access)
	if err != nil {
		return fmt.Errorf("make overlay: %w%s", err, kernelSays(config))
	}
	defer unix.Close(mount)
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, o.target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", o.target, err)
	}
	return nil
}

// kernelSays is why the kernel refused, in its own words, as far as it has any.
func kernelSays(config int) string {
	var said strings.Builder
	line := make([]byte, 512)
	for {
		n, err := unix.Read(config, line)
		if err != nil || n <= 0 {
			return said.String()
		}
		if text, ok := strings.CutPrefix(string(line[:n]), "e "); ok {
			said.WriteString(": " + strings.TrimSpace(text))
		}
	}
}

// mountByOptions mounts with mount(2), for kernels before lowerdir+. All options share one page, so the
// layers are named by descriptors: about 200 fit, however long their paths.
func mountByOptions(o overlay) error {
	paths, release, err := byDescriptor(o.dirs())
	if err != nil {
		return err
	}
	defer release()
	access := uintptr(unix.MS_RDONLY)
	options, lower := "", paths
	if o.upper != "" {
		access = 0
		options, lower = fmt.Sprintf("volatile,upperdir=%s,workdir=%s,", paths[0], paths[1]), paths[2:]
	}
	options += "lowerdir=" + strings.Join(lower, ":")
	if o.label != "" {
		options += `,context="` + o.label + `"` // quoted, since categories are separated by commas
	}
	if len(options) > optionsLimit {
		return fmt.Errorf("image of %d layers: this kernel mounts about 200, one with the overlay parameter lowerdir+ has no such limit: %w", len(o.lower), errdef.Unsupported)
	}
	if err := unix.Mount("overlay", o.target, "overlay", access, options); err != nil {
		return fmt.Errorf("mount overlay at %s: %w", o.target, err)
	}
	return nil
}

// byDescriptor names directories by descriptors of this process, which are short and need no escaping.
func byDescriptor(dirs []string) (names []string, release func(), err error) {
	var open []int
	release = func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			release()
			return nil, nil, &fs.PathError{Op: "open layer", Path: dir, Err: err}
		}
		open = append(open, fd)
		names = append(names, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	return names, release, nil
}

// chooseMounter takes the first way that works here, found by mounting a small overlay. On a full disk nothing can be
// tried, and each mount finds its way anew.
func (r *Rootfs) chooseMounter() error {
	var refused []error
	for _, way := range []mounter{mountByConfig, mountByOptions} {
		err := r.tryMounter(way)
		if err == nil {
			r.mount = way
			return nil
		}
		if errors.Is(err, errdef.Exhausted) {
			r.mount = mountEither
			return nil
		}
		refused = append(refused, err)
	}
	return fmt.Errorf("overlays need Linux 5.10 with the module overlay, root, and %s on ext4, xfs with ftype=1 or btrfs: %w: %w",
		r.cfg.Dir, errors.Join(refused...), errdef.Unsupported)
}

func mountEither(o overlay) error {
	err := mountByConfig(o)
	if err != nil {
		err = mountByOptions(o)
	}
	return err
}

func (r *Rootfs) tryMounter(way mounter) error {
	p := r.at(probeName)
	if err := errors.Join(p.unmount(), os.RemoveAll(p.dir)); err != nil { // of a crash amid a probe
		return err
	}
	probe := &Rootfs{cfg: r.cfg, mount: way}
	if err := probe.mountAt(p, []string{filepath.Join(r.cfg.Dir, emptyName)}, Owner{Label: r.cfg.Label}); err != nil {
		return err
	}
	return errors.Join(p.unmount(), os.RemoveAll(p.dir))
}

// copyAttributes gives the directory to the owner, mode and attributes of from: an overlay's root has those of
// its upper directory, and must have those of the image's.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "stat layer", Path: from, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &fs.PathError{Op: "stat layer", Path: from, Err: unix.ENOTDIR}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: to, Err: err}
	}
	names, err := xattrNames(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") {
			continue
		}
		if err := copyXattr(from, to, name); err != nil {
			return err
		}
	}
	return nil
}

func xattrNames(path string) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

func copyXattr(from, to, name string) error {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Lgetxattr(from, name, buf)
	if err != nil {
		return &fs.PathError{Op: "getxattr " + name, Path: from, Err: err}
	}
	if err := unix.Lsetxattr(to, name, buf[:n], 0); err != nil {
		return &fs.PathError{Op: "setxattr " + name, Path: to, Err: err}
	}
	return nil
}

// makeEmpty makes dir as the root of a filesystem that an image says nothing about.
func makeEmpty(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	failpoint.Hit("storage/empty/made")
	err := openTo(dir, 0o755) // whatever the umask
	failpoint.Hit("storage/empty/opened")
	return err
}

// openTo sets the mode of a directory that has another. One that has it is not written to: at the end of a quota a btrfs
// refuses that, too, and crid must start there.
func openTo(dir string, mode fs.FileMode) error {
	info, err := os.Lstat(dir)
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	return os.Chmod(dir, mode)
}

// makePrivate makes dir a mount of its own that propagates nothing.
func makePrivate(dir string) error {
	mounted, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
		failpoint.Hit("storage/private/bound")
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mount %s private: %w", dir, err)
	}
	failpoint.Hit("storage/private/made")
	return nil
}

// unmount unmounts all that is mounted at the mount point target and unlinks it. A mount that is in use by
// a process that nobody knows is detached, so that it goes with its last user.
func unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err == nil {
			failpoint.Hit("storage/unmount/unmounted")
			continue // another may lie below
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // EINVAL: it is no mount point, or no longer
			return fmt.Errorf("unmount %s: %w", target, err)
		}
		err = ignoreAbsent(os.Remove(target))
		failpoint.Hit("storage/unmount/unlinked")
		return err
	}
}

// isMountPoint tells whether something is mounted at path; at a path that does not exist, nothing is.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx %s: the kernel does not tell mount points, Linux 5.10 does: %w", path, errdef.Unsupported)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}
