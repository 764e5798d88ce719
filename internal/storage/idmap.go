package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Owner is in whose user namespace files are used. The zero value is the host's, where nothing is mapped.
type Owner struct {
	UserNS   string // path of the namespace
	UID, GID int    // its root, as the host has it
	Label    string // SELinux label that all of a root filesystem has; empty = what each file has of its own
}

// MapMount makes the open file or directory source, and what is mounted below it, appear at the path that it answers, with
// the ids of owner: what source's own files have as 0 is owner's root there, and what is written there as owner's root
// is 0 on the disk. What is mounted below source keeps its own ids. It stays until Unmap or Remove of id; each call
// makes another. Mounts that come to source later reach it, those made in it stay in it.
//
// Unsupported: the filesystem of source cannot map ids.
func (r *Rootfs) MapMount(_ context.Context, id string, source *os.File, owner Owner) (string, error) {
	p, err := r.place(id)
	if err != nil {
		return "", err
	}
	users, err := os.Open(owner.UserNS)
	if err != nil {
		return "", fmt.Errorf("map the ids of %s: %w", source.Name(), err)
	}
	defer users.Close()
	target, err := mappedTarget(p, source, owner)
	if err == nil {
		err = mapOpen(source, target, unix.AT_RECURSIVE, users)
	}
	if err != nil {
		return "", fmt.Errorf("map the ids of %s: %w", source.Name(), err)
	}
	return target, nil
}

// MapImage mounts the image, to be read, with the ids of owner at the path that it answers. It stays until Unmap or
// Remove of id; each call makes another.
func (r *Rootfs) MapImage(ctx context.Context, id, imageID string, owner Owner) (string, error) {
	p, err := r.place(id)
	if err != nil {
		return "", err
	}
	lower, err := r.images.Layers(ctx, imageID)
	if err != nil {
		return "", fmt.Errorf("mount image: %w", err)
	}
	if missing := 2 - len(lower); missing > 0 {
		lower = append(lower, r.fillers()[:missing]...)
	}
	if lower, err = mapLayers(p, lower, owner); err != nil {
		return "", fmt.Errorf("mount image %s: %w", imageID, err)
	}
	target, err := mappedDir(p, owner)
	if err == nil {
		err = r.mount(overlay{lower: lower, target: target, label: r.cfg.Label})
		failpoint.Hit("storage/map/image-mounted")
	}
	if err != nil {
		return "", fmt.Errorf("mount image %s: %w", imageID, errdef.Disk(err))
	}
	return target, nil
}

// Unmap takes away what MapMount and MapImage made for id; containers that have mounted it keep it. It may be repeated.
func (r *Rootfs) Unmap(id string) error {
	p, err := r.place(id)
	if err != nil {
		return err
	}
	if err := p.unmap(); err != nil {
		return fmt.Errorf("unmap ids for %s: %w", id, err)
	}
	return nil
}

// ProbeMapped tries whether root filesystems can have mapped ids here, and whether files of dirs and of a tmpfs can. Unsupported, with
// the reason, when not.
func (r *Rootfs) ProbeMapped(ctx context.Context, owner Owner, dirs ...string) (err error) {
	p := r.at(probeName)
	clear := func() error { return errors.Join(p.unmap(), p.unmount(), os.RemoveAll(p.dir)) }
	if err := clear(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clear()) }()
	if err := r.mountAt(p, []string{filepath.Join(r.cfg.Dir, emptyName)}, owner); err != nil {
		return fmt.Errorf("an overlay of layers with mapped ids (Linux 5.19): %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(p.target, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: p.target, Err: err}
	}
	if int(st.Uid) != owner.UID || int(st.Gid) != owner.GID {
		return fmt.Errorf("an overlay of layers with mapped ids shows owner %d:%d, not %d:%d: %w", st.Uid, st.Gid, owner.UID, owner.GID, errdef.Unsupported)
	}
	users, err := os.Open(owner.UserNS)
	if err != nil {
		return err
	}
	defer users.Close()
	if err := probeMemory("tmpfs", users); err != nil {
		return fmt.Errorf("a tmpfs, where the kubelet has secrets and tokens (Linux 6.3): %w", err)
	}
	for _, dir := range dirs {
		target, err := mappedDir(p, owner)
		if err == nil {
			err = mapTree(dir, target, users)
		}
		if err != nil {
			return fmt.Errorf("map the ids of %s: %w", dir, err)
		}
	}
	return ctx.Err()
}

// unmapAll takes away what an earlier life left mounted for containers that it was making.
func (r *Rootfs) unmapAll() error {
	names, err := entryNames(r.cfg.MountDir)
	for _, name := range names {
		if idForm.MatchString(name) {
			err = errors.Join(err, r.at(name).unmap())
		}
	}
	return err
}

// unmap unmounts all that is mounted in dir and removes it. It may be repeated.
func unmap(dir string) error {
	names, err := entryNames(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		err = errors.Join(err, unmount(filepath.Join(dir, name)))
	}
	err = errors.Join(err, ignoreAbsent(os.Remove(dir)))
	failpoint.Hit("storage/unmap/removed")
	return err
}

// mapLayers mounts the directories that layers lie in, with mapped ids, and answers the layers' paths there.
// Layers of one store lie side by side, so that one mount serves them all.
func mapLayers(p place, layers []string, owner Owner) ([]string, error) {
	users, err := os.Open(owner.UserNS)
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	defer users.Close()
	at := map[string]string{} // where a directory is mounted
	var mapped []string
	for _, layer := range layers {
		base, err := baseOf(layer)
		if err != nil {
			return nil, err
		}
		if at[base] == "" {
			target, err := mappedDir(p, owner)
			if err != nil {
				return nil, err
			}
			if err := mapTree(base, target, users); err != nil {
				return nil, fmt.Errorf("map the ids of layers in %s: %w", base, err)
			}
			at[base] = target
		}
		mapped = append(mapped, filepath.Join(at[base], strings.TrimPrefix(layer, base)))
	}
	return mapped, nil
}

// baseOf is the directory two above the layer, where stores have their layers, or less when those are other mounts.
func baseOf(layer string) (string, error) {
	base := filepath.Clean(layer)
	on, err := mountOf(base)
	if err != nil {
		return "", err
	}
	for range 2 {
		up, err := mountOf(filepath.Dir(base))
		if err != nil {
			return "", err
		}
		if up != on {
			break
		}
		base = filepath.Dir(base)
	}
	return base, nil
}

// mountOf answers the id of the mount that path is on.
func mountOf(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Mnt_id, nil
}

// mappedDir makes a mount point for a directory, behind the owner's door.
func mappedDir(p place, owner Owner) (string, error) {
	target, err := mappedName(p, owner)
	if err != nil {
		return "", err
	}
	return target, os.Mkdir(target, 0o700)
}

// mappedTarget makes a mount point for source, behind the owner's door.
func mappedTarget(p place, source *os.File, owner Owner) (string, error) {
	info, err := source.Stat()
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return mappedDir(p, owner)
	}
	target, err := mappedName(p, owner)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return "", err
	}
	failpoint.Hit("storage/map/file-made")
	return target, f.Close()
}

// mappedName is a name that nothing has in p.mapped, which it makes with the owner's door.
func mappedName(p place, owner Owner) (string, error) {
	if err := p.open(owner); err != nil {
		return "", err
	}
	if err := os.Mkdir(p.mapped, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	failpoint.Hit("storage/map/dir-made")
	names, err := entryNames(p.mapped)
	return filepath.Join(p.mapped, strconv.Itoa(len(names))), err
}

// mapTree is mapOpen of a directory that nobody but crid changes.
func mapTree(source, target string, users *os.File) error {
	at, err := os.OpenFile(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer at.Close()
	return mapOpen(at, target, 0, users)
}

// mapOpen mounts a copy of source at target: with mounts below it when recurse is AT_RECURSIVE.
func mapOpen(source *os.File, target string, recurse uint, users *os.File) error {
	failpoint.Hit("storage/map/target-made")
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|recurse)
	if err != nil {
		return fmt.Errorf("copy mount: %w", kernelLacks(err))
	}
	defer unix.Close(tree)
	slave := unix.MountAttr{Propagation: unix.MS_SLAVE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|recurse, &slave); err != nil {
		return fmt.Errorf("set propagation: %w", kernelLacks(err))
	}
	if err := mapIDs(tree, users); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount at %s: %w", target, err)
	}
	failpoint.Hit("storage/map/mounted")
	return nil
}

// mapIDs gives a mount that nobody sees yet the ids of users.
func mapIDs(mount int, users *os.File) error {
	mapped := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &mapped)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("its filesystem, %s, cannot map ids on this kernel, or has mapped ids already: %w", typeOf(mount), errdef.Unsupported)
	}
	if err != nil {
		return fmt.Errorf("set id mapping: %w", kernelLacks(err))
	}
	return nil
}

// probeMemory tries to map the ids of a filesystem of a type that lies in memory. It is never visible.
func probeMemory(kind string, users *os.File) error {
	made, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open filesystem: %w", kernelLacks(err))
	}
	defer unix.Close(made)
	if err := unix.FsconfigCreate(made); err != nil {
		return fmt.Errorf("make filesystem: %w", err)
	}
	mount, err := unix.Fsmount(made, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount filesystem: %w", err)
	}
	defer unix.Close(mount)
	return mapIDs(mount, users)
}

// kernelLacks gives a system call that is not there its kind.
func kernelLacks(err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("mapped ids need Linux 5.12: %w", errdef.Unsupported)
	}
	return err
}

// typeOf names the type of a filesystem by its magic number.
func typeOf(fd int) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "of unknown type"
	}
	return fmt.Sprintf("of type %#x", st.Type)
}
