package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// prepare makes the directories that w needs and the mounts that they are.
func (p *Pinner) prepare(w Want) error {
	if w.Net {
		// Shared, so that pins reach those who look at the directory from mount namespaces of their own:
		// meshes, Multus, and `ip netns` in them.
		if err := p.mountOnItself(p.netDir, 0o755, unix.MS_SHARED); err != nil {
			return err
		}
	}
	if !w.IPC && !w.UTS && w.Users.None() {
		return nil
	}
	if err := p.mountOnItself(p.dir, 0o700, unix.MS_PRIVATE); err != nil {
		return err
	}
	for _, sub := range [...]string{"ipc", "uts", "user"} {
		if err := os.MkdirAll(filepath.Join(p.dir, sub), 0o700); err != nil {
			return fmt.Errorf("make directory of namespaces: %w", err)
		}
		failpoint.Hit("ns/prepare/furnished")
	}
	return nil
}

// mountOnItself makes dir a directory that is a mount with this propagation, as far as it is not. Only the kernel
// is asked whether it is one: a mount that is none refuses its propagation with EINVAL.
func (p *Pinner) mountOnItself(dir string, mode fs.FileMode, propagation uintptr) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make directory of namespaces: %w", err)
	}
	failpoint.Hit("ns/prepare/made")
	p.mounting.Lock()
	defer p.mounting.Unlock()
	err := unix.Mount("", dir, "", propagation, "")
	if errors.Is(err, unix.EINVAL) {
		// Recursive, because `ip netns` may be doing the same right now.
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
		failpoint.Hit("ns/prepare/bound")
		err = unix.Mount("", dir, "", propagation, "")
	}
	if err != nil {
		return fmt.Errorf("set the propagation of mount %s: %w", dir, err)
	}
	failpoint.Hit("ns/prepare/propagated")
	return nil
}

// bindAll pins the namespaces of the process or thread whose they are at the paths of set, all or none. from is its
// /proc/PID/ns.
func bindAll(from string, set Set) error {
	var made []string
	for name, path := range set.pins() {
		err := bind(filepath.Join(from, name), path)
		if err == nil {
			made = append(made, path)
			continue
		}
		for _, path := range made {
			err = errors.Join(err, unbind(path))
		}
		return err
	}
	return nil
}

// bind pins a namespace at path, where nothing may be.
func bind(namespace, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("pin %s: %w", path, errdef.Exists)
	case err != nil:
		return fmt.Errorf("pin %s: %w", path, err)
	}
	err = f.Close()
	failpoint.Hit("ns/bind/made")
	if err == nil {
		err = unix.Mount(namespace, path, "", unix.MS_BIND, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", path, err), unbind(path))
	}
	failpoint.Hit("ns/bind/mounted")
	return nil
}

// unbind takes away what is mounted at path, at once from here and from the kernel when the last user is gone, and
// then path itself. Nothing there is no error.
func unbind(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	for err == nil { // until the path is a mount no more
		failpoint.Hit("ns/unbind/unmounted")
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin: %w", err)
	}
	failpoint.Hit("ns/unbind/removed")
	return nil
}
