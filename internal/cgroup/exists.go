package cgroup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// Find returns the paths of the Leaf and the MonitorLeaf of id wherever they are, the Leaf first. It looks at every
// cgroup of the machine: it is for what no record tells of.
func (t *Tree) Find(id string) ([]string, error) {
	var found []string
	for _, name := range []string{ours + id, ours + id + scopeSuffix, oursMonitor + id, oursMonitor + id + scopeSuffix} {
		for _, h := range t.hierarchies {
			err := walk(h.dir, func(dir string) error {
				path := strings.TrimPrefix(dir, h.dir)
				if filepath.Base(dir) == name && !slices.Contains(found, path) {
					found = append(found, path)
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("look for the cgroups of %s: %w", id, err)
			}
		}
	}
	return found, nil
}

// Survey returns the paths of all cgroups that are a Leaf or a MonitorLeaf of an id that is one, to that id. It looks at
// every cgroup of the machine but those below a leaf: they are its container's.
func (t *Tree) Survey(isID func(id string) bool) (map[string]string, error) {
	found := map[string]string{}
	for _, h := range t.hierarchies {
		err := walk(h.dir, func(dir string) error {
			if id, named := idOf(filepath.Base(dir)); named && isID(id) {
				found[strings.TrimPrefix(dir, h.dir)] = id
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for cgroups of containers: %w", err)
		}
	}
	return found, nil
}
