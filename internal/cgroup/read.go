package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// Pids returns, sorted, the processes in the cgroup at path and below it, in any hierarchy. A cgroup that does not
// exist has none. A process that lives outside crid's PID namespace appears as 0 on v2 and not at all on v1.
func (t *Tree) Pids(path string) ([]int, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	pids, err := t.pids(cleaned)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	return pids, nil
}

func (t *Tree) pids(path string) ([]int, error) {
	var all []int
	for _, h := range t.hierarchies {
		pids, err := members(filepath.Join(h.dir, path))
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// members returns the processes in the cgroup dir and below it, in one hierarchy.
func members(dir string) ([]int, error) {
	var all []int
	err := walk(dir, func(dir string) error {
		pids, err := procs(dir)
		all = append(all, pids...)
		return err
	})
	return all, err
}

// procs returns the processes in one cgroup.
func procs(dir string) ([]int, error) {
	pids, err := numbers(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return threaded(dir)
	}
	return pids, err
}

// threaded returns the processes that have threads in a threaded v2 cgroup, which lists nothing but threads. The first
// of a process may be elsewhere, and pidfd_open(2) takes no other.
func threaded(dir string) ([]int, error) {
	tids, err := numbers(filepath.Join(dir, "cgroup.threads"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, tid := range tids {
		pid := tid // 0 lives outside crid's PID namespace
		if tid > 0 {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
			if err != nil {
				continue // the thread has ended
			}
			_, rest, _ := strings.Cut(string(status), "\nTgid:")
			if _, err := fmt.Sscan(rest, &pid); err != nil {
				return nil, fmt.Errorf("parse /proc/%d/status: %w", tid, err)
			}
		}
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// numbers reads a file of pids, one a line.
func numbers(file string) ([]int, error) {
	var space [4 << 10]byte
	raw, err := slurp(file, space[:])
	if errors.Is(err, unix.EFBIG) {
		raw, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	var all []int
	for _, field := range strings.Fields(string(raw)) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// OOMKills returns how many processes of the cgroup at path and of those below it the kernel has killed for want of
// memory. v1 forgets the count of a cgroup below when that is removed. Without a memory controller there are none.
// NotFound when the cgroup does not exist, Unsupported when the kernel does not count (v1 before Linux 4.13).
func (t *Tree) OOMKills(path string) (uint64, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return 0, fmt.Errorf("count OOM kills: %w", err)
	}
	kills, err := t.oomKills(cleaned)
	if gone(err) {
		err = fmt.Errorf("%w: %w", errdef.NotFound, err)
	}
	if err != nil {
		return 0, fmt.Errorf("count OOM kills of cgroup %s: %w", path, err)
	}
	return kills, nil
}

func (t *Tree) oomKills(path string) (uint64, error) {
	i := slices.IndexFunc(t.hierarchies, func(h hierarchy) bool { return h.has("memory") })
	if i < 0 {
		return 0, nil
	}
	dir := filepath.Join(t.hierarchies[i].dir, path)
	if t.hierarchies[i].unified {
		return oomKillsV2(dir)
	}
	return oomKillsV1(dir)
}

func oomKillsV1(dir string) (uint64, error) {
	if _, err := os.Stat(dir); err != nil {
		return 0, err
	}
	var sum uint64
	err := walk(dir, func(dir string) error {
		n, err := counter(filepath.Join(dir, "memory.oom_control"), "oom_kill")
		sum += n
		return err
	})
	return sum, err
}

// oomKillsV2 reads a counter that the kernel keeps for the whole subtree.
func oomKillsV2(dir string) (uint64, error) {
	n, err := counter(filepath.Join(dir, "memory.events"), "oom_kill")
	if !gone(err) {
		return n, err
	}
	if _, err := os.Stat(dir); err != nil {
		return 0, err
	}
	return 0, nil // the cgroup is there: it has no memory controller
}

// counter returns the number behind key in a file of lines "key number".
func counter(file, key string) (uint64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), key+" "); found {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("parse %s: %w", file, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s has no %s: %w", file, key, errdef.Unsupported)
}
