// Package pause holds the tiny program that keeps a shared PID namespace alive, and lays out the root directory in
// which it runs. It does not know who starts it; cmd/pause makes the program.
package pause

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

//go:generate go run ../../cmd/pause .

// Name is the program's path inside the root that Install lays out.
const Name = "/pause"

// mountPoints are the directories of that root: empty, for a runtime to mount on.
var mountPoints = [...]string{"dev", "etc", "proc", "sys"}

// Binary returns the program for the running architecture, a copy of the caller's own; nil where there is none.
// It ignores every signal but SIGTERM and SIGINT, which end it with code 0.
func Binary() []byte { return slices.Clone([]byte(binary)) }

// Install makes dir a root directory for the program: /pause and empty mount points, owned by the caller and
// writable by nobody else. What is there already, of another version or damaged, is replaced as a whole: nobody ever sees half
// of it, and a program that runs from it runs on. It may be repeated, not at the same time, and does nothing when all
// is well. DIR.new is its own to use.
//
// Errors: Unsupported on an architecture without the program, Unavailable when dir's file system forbids execution
// (Debian mounts /run so).
func Install(dir string) error {
	if len(binary) == 0 {
		return fmt.Errorf("install pause: there is none for this architecture: %w", errdef.Unsupported)
	}
	fresh := dir + ".new"
	err := os.RemoveAll(fresh) // an interrupted Install left it
	failpoint.Hit("pause/install/cleared")
	if err == nil && !intact(dir) {
		err = replace(dir, fresh)
	}
	if err != nil {
		return fmt.Errorf("install pause in %s: %w", dir, err)
	}
	return nil
}

// intact tells whether dir is what lay would make. It may say no to what is as good.
func intact(dir string) bool {
	for _, name := range mountPoints {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != fs.ModeDir|0o555 {
			return false
		}
	}
	program := filepath.Join(dir, Name)
	info, err := os.Lstat(program)
	if err != nil || info.Mode() != 0o555 {
		return false
	}
	found, err := os.ReadFile(program)
	return err == nil && bytes.Equal(found, []byte(binary)) && executable(dir) == nil
}

// replace lays the root out at fresh, beside dir, and puts it in dir's place.
func replace(dir, fresh string) error {
	parent := filepath.Dir(filepath.Clean(dir))
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return err
	}
	failpoint.Hit("pause/install/parent-made")
	if err := executable(parent); err != nil {
		return err
	}
	if err := lay(fresh); err != nil {
		return errors.Join(err, os.RemoveAll(fresh))
	}
	failpoint.Hit("pause/install/laid")
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, fs.ErrNotExist) {
		err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		err = fmt.Errorf("rename %s: %w", fresh, err)
	}
	failpoint.Hit("pause/install/renamed")
	err = errors.Join(err, os.RemoveAll(fresh)) // what was there before, or what could not be put there
	failpoint.Hit("pause/install/old-removed")
	return err
}

func lay(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range mountPoints {
		if err := os.Mkdir(filepath.Join(dir, name), 0o555); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o555); err != nil { // whatever the umask is
			return err
		}
	}
	program := filepath.Join(dir, Name)
	if err := os.WriteFile(program, []byte(binary), 0o555); err != nil {
		return err
	}
	if err := os.Chmod(program, 0o555); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// executable refuses a directory from which nothing can be executed.
func executable(dir string) error {
	var statfs unix.Statfs_t
	if err := unix.Statfs(dir, &statfs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if statfs.Flags&unix.ST_NOEXEC != 0 {
		return fmt.Errorf("%s is on a file system mounted noexec: %w", dir, errdef.Unavailable)
	}
	return nil
}
