package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// What conmon is told through its control FIFO.
const (
	resizeCommand = "1 %d %d\n" // the terminal's rows and columns
	reopenCommand = "2 0 0\n"   // reopen the log; the numbers do not matter
)

// reopenWait is how long a monitor may take to reopen its log, which is a matter of microseconds.
const reopenWait = 10 * time.Second

// ReopenLog makes the monitor write to a new file at the log path, from which the old one has been moved away,
// and returns once it exists: Unavailable when the monitor has not made it within ten seconds. A log that was not moved
// away stays: conmon would throw away what is in it. So it may be repeated, also after a restart of crid. On an error, and
// within answerTime when the client does not hear of a success, the old log may be moved back: no line is
// lost by that, unless crid has died and the monitor is between reading the command and obeying it.
func (p *Process) ReopenLog(ctx context.Context) error {
	wait := p.launcher.reopenWait
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("the monitor, process %d, has not done it in %v; is it stopped, or the disk slow? %w",
		p.ref.MonitorPID, wait, errdef.Unavailable))
	defer cancel()
	select {
	case p.reopening <- struct{}{}:
		defer func() { <-p.reopening }()
	case <-ctx.Done():
		return fmt.Errorf("reopen log of container %s: %w", p.id, context.Cause(ctx))
	}
	if err := p.reopen(ctx); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", p.id, err)
	}
	return nil
}

func (p *Process) reopen(ctx context.Context) (err error) {
	path, err := p.logPath()
	if err != nil {
		return err
	}
	if err := checkLog(path); err != nil {
		return err
	}
	// Conmon would die of a directory that does not exist; watching it finds out.
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch log directory: %w", err)
	}
	defer func() { err = errors.Join(err, watcher.Close()) }()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch log directory: %w", err)
	}
	if _, err := p.reconcile(path); err != nil {
		return err
	}
	done := func() bool { return p.writesTo(path) } // perhaps by a command that is still under way
	if done() {
		return nil
	}
	if err := p.begin(path); err != nil {
		return err
	}
	if pending, err := p.renew(ctx, path, watcher); err != nil {
		if !pending {
			err = errors.Join(err, p.abandon(path))
		}
		return err
	}
	return nil
}

// renew makes the monitor write to the new log, and waits until it does. Where it fails, pending tells whether the monitor
// may still do it.
func (p *Process) renew(ctx context.Context, path string, watcher *fsnotify.Watcher) (pending bool, err error) {
	old, closeOld, err := hold(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, closeOld()) }()
	done := func() bool { return p.writesTo(path) }
	err = p.control(ctx, func(fifo *os.File) error {
		if err := send(ctx, fifo, reopenCommand, done); err != nil {
			return err
		}
		failpoint.Hit("monitor/reopen/told")
		for !isNew(path, old) && !done() {
			select {
			case <-watcher.Events:
			case <-watcher.Errors: // events were lost: look again
			case <-p.monitorGone:
				if isNew(path, old) {
					return nil // its last lines are in it
				}
				return fmt.Errorf("the monitor has ended: %w", errdef.WrongState)
			case <-ctx.Done():
				taken, err := p.takeBack()
				pending = !taken
				return errors.Join(context.Cause(ctx), err)
			}
		}
		return nil
	})
	return pending, err
}

// checkLog refuses what conmon, which is root, would follow or wait for: a container that has the log's directory mounted
// may have put it where the old log was.
func checkLog(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file (%s): move it away: %w", path, info.Mode().Type(), errdef.WrongState)
	}
	return nil
}

// hold opens the file at path, if there is one, so that its inode cannot become that of a new file.
func hold(path string) (info fs.FileInfo, closeFile func() error, err error) {
	f, err := os.OpenFile(path, unix.O_PATH, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, func() error { return nil }, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return info, f.Close, nil
}

// writesTo tells whether the monitor has the file at path open.
func (p *Process) writesTo(path string) bool {
	at, err := os.Stat(path)
	if err != nil {
		return false
	}
	fds, err := os.ReadDir(procFile(p.monitor.pid, "fd"))
	if err != nil {
		return false // it ends
	}
	return slices.ContainsFunc(fds, func(fd fs.DirEntry) bool {
		open, err := os.Stat(procFile(p.monitor.pid, "fd/"+fd.Name()))
		return err == nil && os.SameFile(open, at)
	})
}

// isNew tells whether a file other than old is at path.
func isNew(path string, old fs.FileInfo) bool {
	now, err := os.Stat(path)
	return err == nil && (old == nil || !os.SameFile(old, now))
}

// logPath returns where the monitor logs to, as its command line says.
func (p *Process) logPath() (string, error) {
	args, err := p.arguments()
	if err != nil {
		return "", err
	}
	for _, arg := range args {
		if path, found := strings.CutPrefix(arg, "--log-path="+logDriver); found {
			return path, nil
		}
	}
	return "", fmt.Errorf("the container has no log: %w", errdef.WrongState)
}

// command writes a line to the monitor, which must be reading. It waits until the line before has been read: of
// several that it reads at once conmon 2.1.6 obeys the first, several times.
func (p *Process) command(ctx context.Context, line string) error {
	return p.control(ctx, func(fifo *os.File) error {
		return send(ctx, fifo, line, func() bool { return false })
	})
}

// control calls work with the way to the monitor, which must be reading; one work at a time.
func (p *Process) control(ctx context.Context, work func(fifo *os.File) error) error {
	select {
	case p.commanding <- struct{}{}:
		defer func() { <-p.commanding }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// Nonblocking: opening a FIFO that nobody reads fails at once.
	fifo, err := os.OpenFile(p.launcher.path(p.id, controlFile), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the monitor does not listen: %w", errdef.WrongState)
	}
	if err != nil {
		return fmt.Errorf("reach the monitor: %w", err)
	}
	return errors.Join(work(fifo), fifo.Close())
}

// send writes a line once the line before has been read, unless it is done by then.
func send(ctx context.Context, fifo *os.File, line string, done func() bool) error {
	stop := context.AfterFunc(ctx, func() { _ = fifo.SetWriteDeadline(time.Now()) }) // a FIFO takes deadlines
	defer stop()
	if err := writeAlone(fifo, line, done); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return context.Cause(ctx)
}

// takeBack takes from the monitor what it has not read yet, and tells whether there was anything.
func (p *Process) takeBack() (taken bool, err error) {
	fifo, err := os.OpenFile(p.launcher.path(p.id, controlFile), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("take a command back: %w", err)
	}
	conn, err := fifo.SyscallConn()
	var n int
	if err == nil {
		err = conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), make([]byte, os.Getpagesize())) }) // fails when it is empty
	}
	return n > 0, errors.Join(err, fifo.Close())
}

// writeAlone writes a line to a FIFO once that is empty, unless it is done by then.
func writeAlone(fifo *os.File, line string, done func() bool) error {
	conn, err := fifo.SyscallConn()
	if err != nil {
		return err
	}
	// One page: it can be written to again only once all has been read.
	var failed error
	err = conn.Control(func(fd uintptr) { _, failed = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, os.Getpagesize()) })
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("prepare the way to the monitor: %w", err)
	}
	err = conn.Write(func(fd uintptr) bool {
		if !polled(int(fd), unix.POLLOUT, 0) {
			return false
		}
		if done() {
			return true
		}
		_, failed = unix.Write(int(fd), []byte(line))
		return true
	})
	return errors.Join(err, failed)
}
