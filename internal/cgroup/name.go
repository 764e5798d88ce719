package cgroup

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/crid/crid/internal/errdef"
)

const (
	ours        = "crid-"     // starts the name of every cgroup that crid may kill or remove
	oursMonitor = "crid-mon-" // of those, the monitors'

	scopeSuffix = ".scope"
	sliceSuffix = ".slice"
	rootSlice   = "-.slice"
)

// Names says where the cgroups of containers are and what they are called. The zero value is that of the cgroupfs
// driver.
type Names struct{ Systemd bool }

// String is the name of the driver.
func (n Names) String() string {
	if n.Systemd {
		return "systemd"
	}
	return "cgroupfs"
}

// Parent returns the path of the cgroup that a client names as the parent of its pod's: for the systemd driver the name
// of a slice, or its path, for cgroupfs a path that is no slice's. Others are Invalid: the client goes by another driver,
// and would look for the pod's cgroup elsewhere.
func (n Names) Parent(asked string) (string, error) {
	base := path.Base(asked)
	switch isSlice := strings.HasSuffix(base, sliceSuffix); {
	case n.Systemd && !isSlice:
		return "", fmt.Errorf("cgroup parent %q is no slice of systemd, such as kubepods-burstable.slice, and the cgroup driver of crid is systemd: set the client's to the same, or cgroup_driver in crid.toml: %w", asked, errdef.Invalid)
	case !n.Systemd && isSlice:
		return "", fmt.Errorf("cgroup parent %q is a slice of systemd, and the cgroup driver of crid is cgroupfs: set the client's to the same, or cgroup_driver in crid.toml: %w", asked, errdef.Invalid)
	case !n.Systemd:
		cleaned, err := cleanGroup(path.Join("/", asked))
		if err != nil {
			return "", err
		}
		return cleaned, nil
	}
	expanded, err := expandSlice(base)
	if err != nil {
		return "", fmt.Errorf("cgroup parent %q: %w", asked, err)
	}
	if strings.Contains(asked, "/") && path.Clean(asked) != expanded {
		return "", fmt.Errorf("cgroup parent %q: the slice %s is at %s: %w", asked, base, expanded, errdef.Invalid)
	}
	return expanded, nil
}

// expandSlice returns the path of a slice, which its name spells: a-b.slice is in a.slice.
func expandSlice(name string) (string, error) {
	stem := strings.TrimSuffix(name, sliceSuffix)
	if name == rootSlice {
		return "", fmt.Errorf("the root slice is not for containers: %w", errdef.Invalid)
	}
	expanded, prefix := "", ""
	for part := range strings.SplitSeq(stem, "-") {
		if part == "" || strings.ContainsFunc(part, notInUnit) {
			return "", fmt.Errorf("%q is no name of a slice: %w", name, errdef.Invalid)
		}
		expanded += "/" + prefix + part + sliceSuffix
		prefix += part + "-"
	}
	if len(name) > maxUnitName {
		return "", fmt.Errorf("%q is longer than systemd allows, %d bytes: %w", name, maxUnitName, errdef.Invalid)
	}
	return expanded, nil
}

// maxUnitName is the longest name that systemd gives a unit, in bytes.
const maxUnitName = 255

// notInUnit tells characters that the name of a unit does not have.
func notInUnit(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	return !letter && !strings.ContainsRune(`:_.\@`, r)
}

// Leaf returns the path of a container's cgroup.
func (n Names) Leaf(parent, id string) string { return n.leaf(parent, ours+id) }

// MonitorLeaf returns the path of the cgroup of a container's monitor.
func (n Names) MonitorLeaf(parent, id string) string { return n.leaf(parent, oursMonitor+id) }

// leaf makes a scope only in a slice: a pod that was made under cgroupfs keeps its parent when the driver changes.
func (n Names) leaf(parent, name string) string {
	if n.Systemd && strings.HasSuffix(parent, sliceSuffix) {
		name += scopeSuffix
	}
	return filepath.Join("/", parent, name)
}

// IsScope tells whether the cgroup at path, of a container or a monitor, is a scope that systemd makes.
func IsScope(path string) bool {
	name := filepath.Base(path)
	return strings.HasPrefix(name, ours) && strings.HasSuffix(name, scopeSuffix)
}

// RuntimePath is the Leaf at path as a container's configuration names it: a scope by its slice, prefix and name.
func RuntimePath(path string) string {
	if !IsScope(path) {
		return path
	}
	id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), ours), scopeSuffix)
	return filepath.Base(filepath.Dir(path)) + ":" + strings.TrimSuffix(ours, "-") + ":" + id
}

// idOf returns the id in the name of a Leaf or a MonitorLeaf, of either driver. Who calls must look whether it is one.
func idOf(name string) (id string, found bool) {
	name = strings.TrimSuffix(name, scopeSuffix)
	if id, found = strings.CutPrefix(name, oursMonitor); found {
		return id, true
	}
	return strings.CutPrefix(name, ours)
}
