package errdef

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
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
		var st syscall.Statfs_t
		if syscall.Statfs(dir, &st) == nil && (st.Bfree*uint64(st.Bsize) < someBytes || st.Files > 0 && st.Ffree < someInodes) {
			full = append(full, dir)
		}
	}
	if len(full) == 0 {
		return err
	}
	return fmt.Errorf("%w (the filesystem of %s is full: %w)", err, strings.Join(full, " and "), Exhausted)
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
