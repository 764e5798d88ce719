package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Kill ends every process in the cgroup at path and below it and returns when there is none; a cgroup that does
// not exist has none. It refuses (WrongState) to end crid itself, and (Invalid) a path on which nothing bears crid's
// name. When the context ends first, the error is Unavailable and names who survives and where in the kernel.
func (t *Tree) Kill(ctx context.Context, path string) error {
	cleaned, err := cleanGroup(path)
	if err == nil && !strings.Contains(cleaned, "/"+ours) {
		err = fmt.Errorf("it is not below a cgroup named %s*: %w", ours, errdef.Invalid)
	}
	if err == nil {
		err = t.kill(ctx, cleaned)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	return nil
}

// round bounds the wait for those that were struck, before it is looked again whether others were born meanwhile.
const round = time.Second

func (t *Tree) kill(ctx context.Context, path string) error {
	for pause := newPause(); ; {
		pids, err := t.pids(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("crid itself (process %d) is in it: %w", os.Getpid(), errdef.WrongState)
		}
		if ctx.Err() != nil {
			return survivors(ctx, pids)
		}
		struck, err := t.strike(path, pids)
		failpoint.Hit("cgroup/kill/thawed")
		waited, waitErr := struck.wait(ctx, round)
		err = errors.Join(err, waitErr, struck.Close())
		if err != nil {
			return err
		}
		// Nothing to wait for, yet somebody is listed: dying, but not yet taken off the list.
		if !waited && !pause.wait(ctx) {
			return survivors(ctx, pids)
		}
	}
}

// strike kills what is in the cgroup now and returns the processes to wait for.
func (t *Tree) strike(path string, pids []int) (processes, error) {
	var wait processes
	err := t.frozen(path, func() error {
		for _, h := range t.hierarchies {
			if !h.unified {
				continue
			}
			if err := killAll(filepath.Join(h.dir, path)); err != nil {
				return err
			}
		}
		var err error
		wait, err = t.signal(path, pids)
		return err
	})
	return wait, err
}

// signal sends SIGKILL to those of pids that are in the cgroup, and returns the processes to wait for.
func (t *Tree) signal(path string, pids []int) (processes, error) {
	wait, err := openProcesses(pids)
	if err != nil {
		return wait, err
	}
	// A pid may have passed to a stranger since it was read. A process whose pid is still listed after its
	// pidfd was opened is not one.
	now, err := t.pids(path)
	if err != nil {
		return wait, err
	}
	return wait, wait.signal(unix.SIGKILL, now)
}

// killAll kills the whole subtree of a v2 cgroup in one stroke, since Linux 5.14. Before, it freezes it, so that nothing
// forks away from the signals that follow: v2 lets the frozen die of them. Where neither works the signals have to suffice.
func killAll(dir string) error {
	err := write(dir, "cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		err = write(dir, "cgroup.freeze", "1")
	}
	if gone(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// frozen calls work while the cgroup is frozen by v1's freezer, if there is one, so that nothing in it forks away. v2 needs
// none: see killAll.
func (t *Tree) frozen(path string, work func() error) error {
	i := slices.IndexFunc(t.hierarchies, func(h hierarchy) bool { return h.has("freezer") })
	if i < 0 {
		return work()
	}
	dir := filepath.Join(t.hierarchies[i].dir, path)
	if err := write(dir, "freezer.state", "FROZEN"); err != nil && !gone(err) {
		return err
	}
	failpoint.Hit("cgroup/kill/frozen")
	err := work()
	failpoint.Hit("cgroup/kill/struck")
	// Thawing goes all the way down: who was frozen by others, a paused container, must wake up to die as well.
	thaw := walk(dir, func(dir string) error { return write(dir, "freezer.state", "THAWED") })
	return errors.Join(err, thaw)
}

// survivors says who is left and what holds them.
func survivors(ctx context.Context, pids []int) error {
	var told []string
	for _, pid := range pids[:min(len(pids), 5)] {
		if pid == 0 {
			told = append(told, "a process outside crid's PID namespace")
			continue
		}
		told = append(told, fmt.Sprintf("process %d (%s) waits in %s", pid, proc(pid, "comm"), proc(pid, "wchan")))
	}
	if more := len(pids) - len(told); more > 0 {
		told = append(told, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("SIGKILL is survived: %s: %w: %w", strings.Join(told, ", "), errdef.Unavailable, context.Cause(ctx))
}

// proc returns what /proc says of a process, for a message.
func proc(pid int, file string) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	text := strings.TrimSpace(string(raw))
	if err != nil || text == "" || text == "0" {
		return "unknown"
	}
	return text
}

// pause is a wait that grows, for what no event tells: that the kernel is done with a process which has exited.
type pause struct{ next time.Duration }

func newPause() *pause { return &pause{next: time.Millisecond} }

// wait returns false when ctx ended first.
func (p *pause) wait(ctx context.Context) bool {
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, 100*time.Millisecond)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
