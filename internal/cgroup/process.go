package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a pid held by a pidfd. The file is open and in the runtime's poller.
type process struct {
	pid   int
	pidfd *os.File
}

// processes are opened together and closed together by who opened them.
type processes []process

// maxOpen bounds the pidfds held at a time: those beyond it are struck in a later round.
const maxOpen = 256

// openProcesses opens those of pids that live.
func openProcesses(pids []int) (processes, error) {
	var ps processes
	for _, pid := range pids[:min(len(pids), maxOpen)] {
		if pid == 0 {
			continue // it lives outside crid's PID namespace; v2 kills it all the same
		}
		fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
		switch {
		case errors.Is(err, unix.ESRCH): // it ended
		case errors.Is(err, unix.EMFILE) && len(ps) > 0:
			return ps, nil // the others' turn comes in a later round
		case err != nil:
			return nil, errors.Join(fmt.Errorf("open process %d: %w", pid, err), ps.Close())
		default:
			ps = append(ps, process{pid, os.NewFile(uintptr(fd), "pidfd")})
		}
	}
	return ps, nil
}

// signal sends sig to those of ps whose pid is in listed.
func (ps processes) signal(sig unix.Signal, listed []int) error {
	for _, p := range ps {
		if _, found := slices.BinarySearch(listed, p.pid); !found {
			continue
		}
		conn, err := p.pidfd.SyscallConn()
		if err != nil {
			return err
		}
		var sigErr error
		err = conn.Control(func(fd uintptr) { sigErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		if err = errors.Join(err, sigErr); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d: %w", p.pid, err)
		}
	}
	return nil
}

// wait waits until all of ps have exited, for the limit, or until ctx ends, whichever is first. It returns whether
// there was anything to wait for.
func (ps processes) wait(ctx context.Context, limit time.Duration) (waited bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, p := range ps {
		stop := context.AfterFunc(ctx, func() { _ = p.pidfd.SetReadDeadline(time.Unix(1, 0)) }) // only a closed file refuses
		n, waitErr := p.wait()
		stop()
		waited = waited || n
		if errors.Is(waitErr, os.ErrDeadlineExceeded) {
			return true, nil
		}
		if waitErr != nil {
			return waited, fmt.Errorf("wait for process %d: %w", p.pid, waitErr)
		}
	}
	return waited, nil
}

// wait waits for the exit, which makes the pidfd readable, or for the file's read deadline. It returns whether the
// process was still there.
func (p process) wait() (waited bool, err error) {
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		return false, err
	}
	var pollErr error
	err = conn.Read(func(fd uintptr) bool {
		var n int
		n, pollErr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if pollErr == syscall.EINTR {
			pollErr, n = nil, 0
		}
		waited = waited || n == 0
		return n > 0 || pollErr != nil
	})
	return waited, errors.Join(err, pollErr)
}

func (ps processes) Close() error {
	var failed []error
	for _, p := range ps {
		failed = append(failed, p.pidfd.Close())
	}
	return errors.Join(failed...)
}
