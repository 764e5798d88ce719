package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// role is what a process takes the lock for. Its word stands behind the pid in the lock file.
type role string

const (
	serving  role = ""
	checking role = "fsck" // ends by itself: a crid that starts waits for it
)

// lockedError says who has a lock.
type lockedError struct {
	pid string
	as  role
}

func (e *lockedError) Error() string {
	if e.as == checking {
		return "in use by crid fsck, pid " + e.pid
	}
	return "in use by another crid, pid " + e.pid
}

// gone tells whether who took the lock is no more. A child that was forked, and has not executed its program yet, keeps it
// then for a moment.
func (e *lockedError) gone() bool {
	pid, err := strconv.Atoi(e.pid)
	return err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// locks are those of the two roots.
type locks []*os.File

// Close lets go of all of them.
func (l locks) Close() error {
	var err error
	for _, file := range l {
		err = errors.Join(err, file.Close())
	}
	return err
}

// lockRoots locks root and runroot, both or none.
func lockRoots(p places, as role) (locks, error) {
	var held locks
	for _, dir := range []string{p.Root, p.Runroot} {
		file, err := lock(dir, as)
		if err != nil {
			return nil, errors.Join(err, held.Close())
		}
		held = append(held, file)
	}
	return held, nil
}

// lock makes dir and takes it for this process alone. The file returned holds the lock until it is closed;
// it is not inherited by children. A second crid is told who has it.
func lock(dir string, as role) (*os.File, error) {
	// Others may pass through: a container's user namespace can need to.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	failpoint.Hit("crid/lock/dir-made")
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	failpoint.Hit("crid/lock/made")
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = holder(file)
	}
	if err == nil {
		err = sign(file, as)
		failpoint.Hit("crid/lock/signed")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), file.Close())
	}
	return file, nil
}

// sign writes this process's id into its lock file, and what it is there for: over what stands there, which mostly takes
// no space. On a full disk, or beyond a quota, the lock is held with another's word, or none.
func sign(file *os.File, as role) error {
	word := fmt.Sprint(os.Getpid(), " ", as)
	_, err := fmt.Fprintf(io.NewOffsetWriter(file, 0), "%-*s\n", wordSize-1, word)
	if errors.Is(errdef.Disk(err), errdef.Exhausted) {
		err = file.Truncate(0)
	}
	if errors.Is(errdef.Disk(err), errdef.Exhausted) {
		return nil
	}
	return err
}

// wordSize is what a lock file has.
const wordSize = 32

// holder reads who has the lock. That is unknown for the moment between taking the lock and signing it.
func holder(file *os.File) *lockedError {
	raw := make([]byte, wordSize)
	n, err := file.ReadAt(raw, 0)
	pid, as, _ := strings.Cut(strings.TrimSpace(string(raw[:n])), " ")
	if pid == "" {
		pid = fmt.Sprintf("unknown (%v)", err)
	}
	return &lockedError{pid: pid, as: role(as)}
}
