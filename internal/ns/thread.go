package ns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// entry takes the calling thread into other namespaces: those of flags, as for unshare(2).
type entry struct {
	flags int
	enter func() error
}

// inNew calls work on a thread that has gone into the namespaces of e and waits for it. Whatever the rest of the
// process does meanwhile happens in the namespaces where it always was.
func inNew(e entry, work func() error) error {
	done := make(chan error, 1)
	go func() { // ends with work
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is the one that cannot die. While it is kept here, the work lands on another.
			done <- inNew(e, work)
			runtime.UnlockOSThread()
			return
		}
		home, err := openHome(e.flags)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		if err = e.enter(); err == nil {
			err = work()
		}
		if home.enter() == nil {
			runtime.UnlockOSThread()
		}
		// A thread that could not go home stays locked, and the Go runtime ends it with this goroutine: nobody
		// else ever runs in the wrong namespaces. The work was done nevertheless.
		done <- errors.Join(err, home.Close())
	}()
	return <-done
}

// unsharing makes new namespaces.
func unsharing(flags int) entry {
	return entry{flags, func() error { return makingError(unix.Unshare(flags)) }}
}

// makingError gives what unshare(2) and clone(2) say its kind.
func makingError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("make namespaces: %w: %w (see /proc/sys/user/max_*_namespaces)", errdef.Exhausted, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("make namespaces: the kernel lacks one of net, ipc, uts, user, or the id mappings are none: %w", errdef.Unsupported)
	case err != nil:
		return fmt.Errorf("make namespaces: %w", err)
	}
	return nil
}

// flagOf returns the flag for setns(2) of each namespace that a thread can be in alone.
func flagOf() map[string]int {
	return map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS}
}

// home holds open the namespaces that a thread is about to leave, by their flag for setns(2).
type home map[int]*os.File

// openHome opens those namespaces of the calling thread that flags name.
func openHome(flags int) (home, error) {
	h := home{}
	for name, flag := range flagOf() {
		if flags&flag == 0 {
			continue
		}
		f, err := os.Open("/proc/thread-self/ns/" + name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open own namespace: %w", err), h.Close())
		}
		h[flag] = f
	}
	return h, nil
}

// enter moves the calling thread into every namespace of h.
func (h home) enter() error {
	for flag, f := range h {
		if err := unix.Setns(int(f.Fd()), flag); err != nil {
			return err
		}
	}
	return nil
}

func (h home) Close() error {
	var failed []error
	for _, f := range h {
		failed = append(failed, f.Close())
	}
	return errors.Join(failed...)
}
