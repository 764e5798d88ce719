package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pidfd holds one process, which cannot be mistaken for another however pids are recycled. The Go poller watches
// it: waiting costs no thread.
type pidfd struct {
	pid  int
	file *os.File
}

// openPid opens the process pid if what is known of it now satisfies same; nil without an error when it is gone,
// or another. What is known is read after opening, when the pid can stand for one process only.
func openPid(pid int, same func(stat) bool) (*pidfd, error) {
	if pid <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &pidfd{pid: pid, file: os.NewFile(uintptr(fd), "pidfd")}
	now, err := readStat(pid)
	if err == nil && same(now) {
		return p, nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return nil, errors.Join(err, p.file.Close())
}

// startedAt is a process by its start time.
func startedAt(ticks uint64) func(stat) bool {
	return func(s stat) bool { return s.start == ticks }
}

// wait waits until the process has ended, zombie or not. It fails only when the pidfd is closed.
func (p *pidfd) wait() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool { return polled(int(fd), unix.POLLIN, 0) })
}

// ended tells whether the process has ended.
func (p *pidfd) ended() bool {
	ended := true
	err := p.control(func(fd int) error {
		ended = polled(fd, unix.POLLIN, 0)
		return nil
	})
	return err != nil || ended
}

// signal sends sig; a process that is gone is fine.
func (p *pidfd) signal(sig syscall.Signal) error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// reaped is how long the new parent of an orphan may take to reap it.
const reaped = 50 * time.Millisecond

// exitCode returns how the ended process ended, as far as the kernel tells: 6.15 keeps it for holders of a pidfd
// once the process is reaped, and a zombie has it in its stat.
func (p *pidfd) exitCode() (code int, known bool) {
	var status int32
	err := p.control(func(fd int) error {
		polled(fd, unix.POLLHUP, reaped)
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if err := unix.IoctlPidfdInfo(fd, &info); err != nil {
			return err
		}
		known, status = info.Mask&unix.PIDFD_INFO_EXIT != 0, info.Exit_code
		return nil
	})
	if err == nil && known {
		return code128(syscall.WaitStatus(status)), true
	}
	if s, err := readStat(p.pid); err == nil && s.zombie {
		return code128(s.status), true
	}
	return 0, false
}

// code128 is the exit code as shells and conmon count.
func code128(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// control calls f with the descriptor, which File.Fd would take away from the poller.
func (p *pidfd) control(f func(fd int) error) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}

// close ends wait. Repeatable, and fine for a process that is gone.
func (p *pidfd) close() error {
	if p == nil {
		return nil
	}
	if err := p.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// polled waits for an event of fd, at most for limit.
func polled(fd int, event int16, limit time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: event}}
	n, err := unix.Poll(fds, int(limit.Milliseconds()))
	return err == nil && n > 0 && fds[0].Revents&event != 0
}

// stat is what crid reads of /proc/PID/stat.
type stat struct {
	parent int
	start  uint64             // clock ticks since boot
	zombie bool               // ended, not reaped
	status syscall.WaitStatus // of a zombie
}

// Where the fields are, counted from the one behind the name.
const (
	stateField  = 0
	parentField = 1
	startField  = 19
	statusField = 49
)

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	s, err := parseStat(text)
	if err != nil {
		return stat{}, fmt.Errorf("read %s: %w", procFile(pid, "stat"), err)
	}
	return s, nil
}

func parseStat(text []byte) (stat, error) {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) <= statusField {
		return stat{}, fmt.Errorf("%d fields", len(fields))
	}
	parent, err1 := strconv.Atoi(fields[parentField])
	start, err2 := strconv.ParseUint(fields[startField], 10, 64)
	status, err3 := strconv.ParseUint(fields[statusField], 10, 32)
	return stat{
		parent: parent,
		start:  start,
		zombie: fields[stateField] == "Z",
		status: syscall.WaitStatus(status),
	}, errors.Join(err1, err2, err3)
}

// commandLine returns the arguments of pid; none for a zombie.
func commandLine(pid int) ([]string, error) {
	text, err := os.ReadFile(procFile(pid, "cmdline"))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), nil
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
