package cgroup

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Leaves returns, sorted, the ids that have a Leaf or a MonitorLeaf directly below parent in any hierarchy. A
// parent that does not exist has none.
func (t *Tree) Leaves(parent string) ([]string, error) {
	path, err := clean(parent)
	if err != nil {
		return nil, fmt.Errorf("list cgroups below %s: %w", parent, err)
	}
	var ids []string
	for _, h := range t.hierarchies {
		names, err := children(filepath.Join(h.dir, path))
		if err != nil {
			return nil, fmt.Errorf("list cgroups below %s: %w", parent, err)
		}
		for _, name := range names {
			id, found := strings.CutPrefix(name, oursMonitor)
			if !found {
				id, found = strings.CutPrefix(name, ours)
			}
			if found {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
