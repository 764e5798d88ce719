package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// makePrivate makes dir a mount of its own that propagates nothing, so that what is mounted below it stays out
// of every other mount namespace.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	failpoint.Hit("crid/private/made")
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
		failpoint.Hit("crid/private/bound")
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mount %s private: %w", dir, err)
	}
	failpoint.Hit("crid/private/set")
	return nil
}

// dropPrivate takes the mount away again, if there is one, unless something is still mounted below it.
func dropPrivate(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}
