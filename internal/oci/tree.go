package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// What a command starts is known by a mark in its resource limits: a soft RLIMIT_LOCKS, a limit that no kernel
// since 2.4.25 obeys, of a random value. Children inherit it however they detach themselves (a new session, a
// double fork, adoption by the container's init), the runtime sets it before the command's first instruction,
// and it works the same with every runtime and every version of cgroups. Exec sub-cgroups do not: crun 1.8.1
// leaves the process in its own cgroups when asked for one on cgroup v1.
const (
	markLimit = "RLIMIT_LOCKS"
	markLine  = "Max file locks" // of /proc/PID/limits
	lowMark   = uint64(1) << 61  // marks are random numbers from here up to twice that
)

const (
	killing  = 5 * time.Second // how long killed processes may take to die
	starting = 2 * time.Second // how long a runtime may go on starting a command that is to be killed
)

// newMark returns a value that no process has as its soft RLIMIT_LOCKS and that crid's children may set.
func newMark() (uint64, error) {
	var own unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_LOCKS, nil, &own); err != nil {
		return 0, fmt.Errorf("read limit of file locks: %w", err)
	}
	switch {
	case own.Max >= 2*lowMark:
		return lowMark + rand.Uint64N(lowMark), nil
	case own.Max > 1<<16:
		return own.Max/2 + rand.Uint64N(own.Max/2), nil
	}
	return 0, fmt.Errorf("mark the command: crid's hard limit of file locks is %d, raise it (LimitLOCKS=): %w", own.Max, errdef.Unsupported)
}

// marked returns p with mark in its limits.
func marked(p specs.Process, mark uint64) specs.Process {
	p.Rlimits = slices.DeleteFunc(slices.Clone(p.Rlimits), func(l specs.POSIXRlimit) bool { return l.Type == markLimit })
	p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: markLimit, Soft: mark, Hard: mark})
	return p
}

// process is a process held by a pidfd: its pid cannot be recycled unnoticed.
type process struct {
	pid int
	fd  *os.File
}

// marked opens the living processes in the container's cgroup that bear the mark. The caller closes them.
func (x *execution) marked() ([]*process, error) {
	pids, err := x.cgroups.Pids(x.cgroup)
	if err != nil {
		return nil, fmt.Errorf("find what the command started: %w", err)
	}
	var all []*process
	for _, pid := range pids {
		if !bears(pid, x.mark) {
			continue
		}
		p, err := openProcess(pid)
		if err != nil {
			closeAll(all)
			return nil, err
		}
		if p == nil {
			continue
		}
		// Only now does the pid stand for one process.
		if p.ended() || !bears(pid, x.mark) {
			p.close()
			continue
		}
		all = append(all, p)
	}
	return all, nil
}

// bears tells whether the process pid has the mark. A process that is gone has none.
func bears(pid int, mark uint64) bool {
	limits, err := os.ReadFile(procFile(pid, "limits"))
	return err == nil && markedLimits(limits, mark)
}

func markedLimits(limits []byte, mark uint64) bool {
	_, rest, found := bytes.Cut(limits, []byte("\n"+markLine))
	fields := bytes.Fields(rest)
	return found && len(fields) > 0 && string(fields[0]) == strconv.FormatUint(mark, 10)
}

// kill kills all that the command started, and waits until it is dead and the runtime has ended. A runtime that
// is still about to start the command is waited for: killed in the wrong millisecond, runc before 1.2 leaves a mount
// behind. Nothing tells when the command begins, hence the short looks.
func (x *execution) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), killing)
	defer cancel()
	patience := time.After(starting)
	for next := time.Millisecond; ; next = min(2*next, 20*time.Millisecond) {
		if err := x.killMarked(ctx); err != nil {
			return errors.Join(err, x.killRuntime(ctx))
		}
		select {
		case <-x.ended:
			return x.killMarked(ctx)
		case <-patience:
			return x.killRuntime(ctx)
		case <-time.After(next):
		}
	}
}

// killRuntime kills the runtime with its descendants, and what it has started meanwhile.
func (x *execution) killRuntime(ctx context.Context) error {
	young := descendants(x.cmd.Process.Pid)
	_ = x.cmd.Process.Kill() // it may have ended: then there is nothing to kill
	err := strike(young)
	closeAll(young)
	err = errors.Join(err, x.killMarked(ctx))
	select {
	case <-x.ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("kill the runtime: %w", ctx.Err()))
	}
}

// killMarked kills until nothing bears the mark. It waits for deaths only once nothing new turns up, so as not
// to be outrun by a command that forks.
func (x *execution) killMarked(ctx context.Context) error {
	struck := map[int]bool{}
	for {
		all, err := x.marked()
		if err != nil {
			return fmt.Errorf("kill what the command started: %w", err)
		}
		if len(all) == 0 {
			return nil
		}
		known := len(struck)
		for _, p := range all {
			struck[p.pid] = true
		}
		err = errors.Join(strikeGroups(all), strike(all))
		if len(struck) == known {
			err = errors.Join(err, await(ctx, all))
		}
		closeAll(all)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("kill what the command started: %w", err)
		}
	}
}

// descendants opens the children of pid, their children and so on. The caller closes them.
func descendants(pid int) []*process {
	var all []*process
	lists, _ := filepath.Glob(procFile(pid, "task/*/children")) // the pattern is well formed
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread is gone, and its children are another's
		}
		for _, child := range strings.Fields(string(children)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				continue
			}
			p, err := openProcess(n)
			if err != nil || p == nil {
				continue
			}
			if parent(n) != pid {
				p.close()
				continue
			}
			all = append(append(all, p), descendants(n)...)
		}
	}
	return all
}

// openProcess returns nil for a process that is gone.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// control calls f with the pidfd, which File.Fd would take away from the poller.
func (p *process) control(f func(fd int)) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { f(int(fd)) })
}

func (p *process) ended() bool {
	ended := true
	return p.control(func(fd int) { ended = readable(fd) }) != nil || ended
}

// gone returns a channel that is closed when the process has ended, or has been closed.
func (p *process) gone() <-chan struct{} {
	gone := make(chan struct{})
	go func() { // ends with the process, or at close
		defer close(gone)
		if conn, err := p.fd.SyscallConn(); err == nil {
			_ = conn.Read(func(fd uintptr) bool { return readable(int(fd)) }) // fails only when closed
		}
	}()
	return gone
}

// readable tells whether the process behind a pidfd has ended.
func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

func (p *process) close() {
	if p != nil {
		_ = p.fd.Close() // nothing was written
	}
}

func closeAll(all []*process) {
	for _, p := range all {
		p.close()
	}
}

// strike kills all. Those that are gone are fine.
func strike(all []*process) error {
	var failed error
	for _, p := range all {
		var sent error
		err := p.control(func(fd int) { sent = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
		if errors.Is(sent, unix.ESRCH) {
			sent = nil
		}
		if err = errors.Join(err, sent); err != nil {
			failed = errors.Join(failed, fmt.Errorf("kill process %d: %w", p.pid, err))
		}
	}
	return failed
}

// strikeGroups kills the process groups of all at a stroke, which no fork escapes. A marked process shares its
// group with its like alone, and with the runtime, which leads a session or group of its own.
func strikeGroups(all []*process) error {
	own := unix.Getpgrp()
	struck := map[int]bool{}
	var failed error
	for _, p := range all {
		group := statField(p.pid, groupField)
		if group <= 1 || group == own || struck[group] || p.ended() {
			continue
		}
		struck[group] = true
		if err := unix.Kill(-group, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = errors.Join(failed, fmt.Errorf("kill process group %d: %w", group, err))
		}
	}
	return failed
}

// await waits until all have ended.
func await(ctx context.Context, all []*process) error {
	for _, p := range all {
		select {
		case <-p.gone():
		case <-ctx.Done():
			return fmt.Errorf("process %d survived SIGKILL: %w", p.pid, ctx.Err())
		}
	}
	return nil
}

// Fields of /proc/PID/stat, counted from the one behind the name.
const (
	parentField = 1
	groupField  = 2
)

// parent returns the pid of the parent of pid, 0 when it is gone.
func parent(pid int) int { return statField(pid, parentField) }

// statField returns a field of /proc/PID/stat, 0 when the process is gone.
func statField(pid, field int) int {
	stat, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0
	}
	return parseStatField(stat, field)
}

func parseStatField(stat []byte, field int) int {
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= field {
		return 0
	}
	n, err := strconv.Atoi(fields[field])
	if err != nil {
		return 0
	}
	return n
}

// keeps tells whether the process pid holds open what the runtime copies: one of its pipes, or the terminal in
// the container whose other end the runtime has.
func keeps(pid, runtime int) bool {
	var copied []string
	for _, target := range held(runtime) {
		if strings.HasPrefix(target, "pipe:") {
			copied = append(copied, target)
		}
	}
	for _, fd := range terminals(runtime) {
		copied = append(copied, "/dev/pts/"+terminalIndex(runtime, fd))
	}
	for _, target := range held(pid) {
		if slices.Contains(copied, target) {
			return true
		}
	}
	return false
}

// terminals lists the descriptors of pid that are masters of terminals.
func terminals(pid int) []int {
	var fds []int
	for fd, target := range held(pid) {
		if strings.HasSuffix(target, "/ptmx") {
			fds = append(fds, fd)
		}
	}
	return fds
}

// held maps the descriptors of pid to what they are.
func held(pid int) map[int]string {
	dir := procFile(pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // it is gone
	}
	all := map[int]string{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all[fd] = target
		}
	}
	return all
}

// terminalIndex is the number of the terminal whose master is the descriptor fd of pid; a process that is gone
// has none.
func terminalIndex(pid, fd int) string {
	info, err := os.ReadFile(procFile(pid, "fdinfo/"+strconv.Itoa(fd)))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(info), "tty-index:")
	index, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	return index
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
