package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
)

// Exists tells whether there is a cgroup at path in any hierarchy.
func (t *Tree) Exists(path string) (bool, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return false, fmt.Errorf("look for cgroup: %w", err)
	}
	for _, h := range t.hierarchies {
		_, err := os.Stat(filepath.Join(h.dir, cleaned))
		if err == nil {
			return true, nil
		}
		if !gone(err) {
			return false, fmt.Errorf("look for cgroup %s: %w", path, err)
		}
	}
	return false, nil
}
