package container

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what /proc says of one process.
type process struct {
	parent int
	start  uint64 // field 22 of stat, clock ticks: with the pid it names one process for good
	first  bool   // it is process 1 of a PID namespace below crid's: who loses a parent there gets it instead
	doomed bool   // SIGKILL was sent to it and has not come to it: it is frozen, or sleeps in the kernel
}

// killOrphans ends the processes that execs of an earlier crid left in the container: their clients are gone,
// and nothing reads what they write.
func (c *Container) killOrphans() error {
	ref := c.Status().ref
	pids, err := c.m.deps.Cgroups.Pids(c.plan.Cgroup)
	if err != nil {
		return fmt.Errorf("look for orphaned execs: %w", err)
	}
	var errs []error
	for pid, p := range orphans(pids, []int{ref.PID, ref.MonitorPID}, readProcess) {
		c.m.log.Info("killing a process that an exec left", "container", c.id, "pid", pid)
		errs = append(errs, killExactly(pid, p.start))
	}
	return errors.Join(errs...)
}

// orphans picks from pids those that descend neither from a root nor from the first process of a PID namespace.
// What a container's own processes leave behind passes to one of these: to its process 1, to the pause, or in
// the host's PID namespace to the monitor, which is a subreaper. A child of exec passes to neither.
func orphans(pids []int, roots []int, read func(pid int) (process, bool)) map[int]process {
	const deepest = 1000 // a chain of parents ends long before, unless pids are reused while it is walked
	found := map[int]process{}
	for _, pid := range pids {
		own, ok := read(pid)
		if pid <= 0 || !ok {
			continue
		}
		at, p := pid, own
		for range deepest {
			if at == roots[0] || at == roots[1] || p.first {
				break
			}
			if p.parent <= 1 {
				found[pid] = own
				break
			}
			at = p.parent
			p, ok = read(at)
			if !ok { // the parent ended while we looked: whose the child is now cannot be told, so it is spared
				break
			}
		}
	}
	return found
}

// readProcess is false for a process that is gone.
func readProcess(pid int) (process, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, false
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return process{}, false
	}
	return parseProcess(stat, status)
}

// parseProcess reads /proc/PID/stat and /proc/PID/status.
func parseProcess(stat, status []byte) (process, bool) {
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") ")) // a name may hold anything
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(fields[1])
	start, err2 := strconv.ParseUint(fields[19], 10, 64)
	if err1 != nil || err2 != nil {
		return process{}, false
	}
	p := process{parent: parent, start: start}
	for line := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			levels := strings.Fields(pids)
			p.first = len(levels) > 1 && levels[len(levels)-1] == "1"
		}
		for _, pending := range [...]string{"SigPnd:", "ShdPnd:"} {
			if mask, ok := strings.CutPrefix(line, pending); ok {
				signals, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
				p.doomed = p.doomed || err == nil && signals&(1<<(unix.SIGKILL-1)) != 0
			}
		}
	}
	return p, true
}

// doomed tells whether an earlier crid was about to kill the container: it died between freezing what it kills and
// thawing it again.
func (c *Container) doomed() bool {
	ref := c.Status().ref
	p, ok := readProcess(ref.PID)
	return ok && p.start == ref.Start && p.doomed
}

// killExactly kills the process pid if it is still the one that began at start.
func killExactly(pid int, start uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if now, ok := readProcess(pid); !ok || now.start != start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}
