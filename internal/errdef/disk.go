package errdef

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Disk gives the kind Exhausted to an error of the kernel that says that a filesystem, or a quota, is full; others stay
// as they are. The path that such an error names says which.
func Disk(err error) error {
	if errors.Is(err, Exhausted) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: %w", Exhausted, err)
}

// What a filesystem has at the least of which nobody can say that it is full.
const (
	someBytes  = 128 << 10
	someInodes = 32
)

// Where says of an error which of the filesystems of dirs are full, and gives it the kind Exhausted if any is and it has
// none: runtimes often do not say why they could not write a file, or that they could not. It is to be asked before what
// has been written is taken away.
func Where(err error, dirs ...string) error {
	if err == nil || !errors.Is(err, Exhausted) && hasKind(err) {
		return err
	}
	var full []string
	for _, dir := range dirs {
		if isFull(dir) {
			full = append(full, dir)
		}
	}
	if len(full) == 0 {
		return err
	}
	return fmt.Errorf("%w (the filesystem of %s is full: %w)", err, strings.Join(full, " and "), Exhausted)
}

// isFull asks for space by a file without a name, where that can be done: what statfs says to be free includes what ext4
// keeps to itself and what a quota denies.
func isFull(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return false
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		err = unix.Fallocate(fd, 0, 0, someBytes)
		_ = unix.Close(fd) // nothing was written
	}
	return errors.Is(Disk(err), Exhausted) || st.Files > 0 && st.Ffree < someInodes ||
		err != nil && st.Bavail*uint64(st.Bsize) < someBytes
}

func hasKind(err error) bool {
	for _, kind := range []error{
		NotFound, Exists, Invalid, WrongState, Unavailable, Unsupported, RegistryUnavailable, SignatureInvalid, ImageVolume, RecursiveReadOnly,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Told is Disk for what a foreign program said, who has no other way to tell of the kernel's error than its text.
func Told(err error) error {
	if err == nil || errors.Is(err, Exhausted) {
		return err
	}
	text := strings.ToLower(err.Error()) // of C, of Go
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if strings.Contains(text, errno.Error()) {
			return fmt.Errorf("%w: %w", Exhausted, err)
		}
	}
	return err
}
