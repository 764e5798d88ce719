// Package cgroup makes, reads, empties and removes control groups through the file system, on cgroup v1, hybrid
// and v2, and has systemd make and forget those that are its units. It does not know pods or containers: it is handed
// paths, and destroys only what bears crid's name.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const mountRoot = "/sys/fs/cgroup"

// Tree is every hierarchy of control groups that counts, seen as one: a path names the same group in each of
// them. Paths are absolute within a hierarchy and hold no ".."; others are errdef.Invalid. It has no state of its own
// and may be used concurrently.
type Tree struct {
	hierarchies []hierarchy
	pageSizes   []string // of huge pages
}

// hierarchy is one mounted hierarchy.
type hierarchy struct {
	dir         string   // where it is mounted
	controllers []string // those that limit and count here; none for name=systemd, nor for v2 on a hybrid host
	unified     bool     // it is the v2 hierarchy
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// Open finds the hierarchies that are mounted at or directly below /sys/fs/cgroup. Without any it returns
// errdef.Unavailable.
func Open(host fact.Host) (*Tree, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	tree := &Tree{hierarchies: choose(mounts, host), pageSizes: host.PageSizes}
	if len(tree.hierarchies) == 0 {
		return nil, fmt.Errorf("find cgroup hierarchies: none is mounted below %s: %w", mountRoot, errdef.Unavailable)
	}
	return tree, nil
}

// choose picks from the mounts the hierarchies that host's mode works with, each once.
func choose(mounts []*mountinfo.Info, host fact.Host) []hierarchy {
	var chosen []hierarchy
	seen := map[[2]int]bool{} // by device: one hierarchy may be mounted twice, as for cpu and cpuacct
	for _, m := range mounts {
		if m.Mountpoint != mountRoot && filepath.Dir(m.Mountpoint) != mountRoot {
			continue
		}
		h := hierarchy{dir: m.Mountpoint, unified: m.FSType == "cgroup2"}
		named := false
		for _, option := range strings.Split(m.VFSOptions, ",") {
			named = named || option == "name=systemd"
			if !h.unified && host.HasController(option) {
				h.controllers = append(h.controllers, option)
			}
		}
		wanted := len(h.controllers) > 0 || named
		switch host.Cgroup {
		case fact.CgroupV1:
			wanted = wanted && !h.unified
		case fact.CgroupHybrid:
			wanted = wanted || h.unified
		case fact.CgroupV2:
			wanted, h.controllers = h.unified && h.dir == mountRoot, host.Controllers
		}
		device := [2]int{m.Major, m.Minor}
		if wanted && !seen[device] {
			seen[device] = true
			chosen = append(chosen, h)
		}
	}
	return chosen
}

// clean returns path as it is joined to the directory of a hierarchy.
func clean(path string) (string, error) {
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "\x00") || slices.Contains(strings.Split(path, "/"), "..") {
		return "", fmt.Errorf("cgroup path %q is not absolute or not plain: %w", path, errdef.Invalid)
	}
	return filepath.Clean(path), nil
}

// cleanGroup is clean for paths that must not be the root of the hierarchies.
func cleanGroup(path string) (string, error) {
	cleaned, err := clean(path)
	if err == nil && cleaned == "/" {
		err = fmt.Errorf("the root cgroup is not crid's: %w", errdef.Invalid)
	}
	return cleaned, err
}

// children returns the names of the cgroups directly below dir; none when dir does not exist.
func children(dir string) ([]string, error) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Nlink == 2 { // the kernel counts two links and one for each cgroup below
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// walk calls visit with dir and every cgroup below it, children after their parent. What vanishes meanwhile is
// skipped, and what is below a cgroup for which visit answers fs.SkipDir.
func walk(dir string, visit func(dir string) error) error {
	if err := visit(dir); err != nil {
		if gone(err) || errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	names, err := children(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := walk(filepath.Join(dir, name), visit); err != nil {
			return err
		}
	}
	return nil
}

// gone tells whether err says that a cgroup does not exist: its files answer ENODEV once it was removed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
