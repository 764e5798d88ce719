package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Limits is what some files of one cgroup hold, by file name ("memory.max"). Their first word names the controller.
type Limits map[string]string

// The files in which the limits of a container are, by controller.
var (
	limitsV1 = map[string][]string{
		"cpu":     {"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"},
		"cpuset":  {"cpuset.cpus", "cpuset.mems"},
		"memory":  {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
		"hugetlb": {"hugetlb.*.limit_in_bytes"},
	}
	limitsV2 = map[string][]string{
		"cpu":     {"cpu.weight", "cpu.max"},
		"cpuset":  {"cpuset.cpus", "cpuset.mems"},
		"memory":  {"memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max"},
		"hugetlb": {"hugetlb.*.max"},
	}
)

// Limits returns the limits that the cgroup at path has of its own, with the content of the files more, as far as
// those are there. NotFound when there is no such cgroup.
func (t *Tree) Limits(path string, more ...string) (Limits, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	found := Limits{}
	seen := false
	for _, h := range t.hierarchies {
		dir := filepath.Join(h.dir, cleaned)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		seen = true
		if err := h.limits(dir, more, found); err != nil {
			return nil, fmt.Errorf("read limits of cgroup %s: %w", path, err)
		}
	}
	if !seen {
		return nil, fmt.Errorf("read limits of cgroup %s: %w", path, errdef.NotFound)
	}
	return found, nil
}

// limits adds to found what the cgroup dir of this hierarchy limits.
func (h hierarchy) limits(dir string, more []string, found Limits) error {
	patterns := slices.Clone(more)
	files := limitsV1
	if h.unified {
		files = limitsV2
	}
	for _, controller := range h.controllers {
		patterns = append(patterns, files[controller]...)
	}
	for _, pattern := range patterns {
		if !h.owns(pattern) {
			continue
		}
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("%w: %w", errdef.Invalid, err)
		}
		for _, name := range names {
			raw, err := os.ReadFile(name)
			if err != nil && !gone(err) {
				return err
			}
			if err == nil {
				found[filepath.Base(name)] = string(bytes.TrimSpace(raw))
			}
		}
	}
	return nil
}

// owns tells whether a file of that name lies in this hierarchy.
func (h hierarchy) owns(file string) bool {
	controller, _, _ := strings.Cut(file, ".")
	return h.has(controller) || h.unified && controller == "cgroup"
}

// SetLimits writes files of the cgroup at path where they hold something else. The order is found by trying: a
// limit of memory must never be above that of memory and swap, say. NotFound when the cgroup or a file does not
// exist. After an error some may have been written.
func (t *Tree) SetLimits(path string, limits Limits) error {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	left := slices.Sorted(maps.Keys(limits))
	for {
		var failed []string
		var errs []error
		for _, file := range left {
			if err := t.setLimit(cleaned, file, limits[file]); err != nil {
				failed, errs = append(failed, file), append(errs, err)
			}
		}
		if len(failed) == 0 {
			return nil
		}
		if len(failed) == len(left) {
			return fmt.Errorf("set limits of cgroup %s: %w", path, errors.Join(errs...))
		}
		left = failed
	}
}

func (t *Tree) setLimit(path, file, value string) error {
	i := slices.IndexFunc(t.hierarchies, func(h hierarchy) bool { return h.owns(file) })
	if i < 0 || strings.Contains(file, "/") {
		return fmt.Errorf("%s: this host has no such controller: %w", file, errdef.NotFound)
	}
	dir := filepath.Join(t.hierarchies[i].dir, path)
	now, err := os.ReadFile(filepath.Join(dir, file))
	if err == nil && string(bytes.TrimSpace(now)) == value {
		return nil
	}
	if gone(err) {
		return fmt.Errorf("%w: %w", errdef.NotFound, err)
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(value + "\n") { // a file of several lines is written line by line
		if err := write(dir, file, line); err != nil {
			return err
		}
		failpoint.Hit("cgroup/limits/set")
	}
	return nil
}

// Places are the CPUs and the memory nodes that the host's cgroups have to share, as lists like "0-3,8"; empty without
// a cpuset controller. They change as CPUs come and go.
func (t *Tree) Places() (cpus, mems string, err error) {
	for _, h := range t.hierarchies {
		if !h.has("cpuset") {
			continue
		}
		suffix := ""
		if h.unified {
			suffix = ".effective"
		}
		for name, into := range map[string]*string{"cpuset.cpus": &cpus, "cpuset.mems": &mems} {
			raw, err := os.ReadFile(filepath.Join(h.dir, name+suffix))
			if err != nil {
				return "", "", fmt.Errorf("read the host's cpuset: %w", err)
			}
			*into = string(bytes.TrimSpace(raw))
		}
	}
	return cpus, mems, nil
}

// MemoryInUse is how many bytes the cgroup at path uses that the kernel cannot take back by dropping caches of
// files: a limit below that kills. 0 without a memory controller, NotFound when the cgroup does not exist.
func (t *Tree) MemoryInUse(path string) (uint64, error) {
	m, err := t.Memory(path)
	if err != nil {
		return 0, err
	}
	return less(m.Usage, m.InactiveFile+m.ActiveFile), nil
}
