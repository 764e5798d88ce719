package isolate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroups lists the cgroups below parent in every hierarchy, as directories; an absent parent has none.
func Cgroups(parent string) ([]string, error) {
	roots, err := cgroupRoots(parent)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil // gone meanwhile
			case err == nil && d.IsDir() && path != root:
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// cgroupRoots finds the directories of a cgroup in the hierarchies. What hideUnified put in the place of one is
// none.
func cgroupRoots(path string) ([]string, error) {
	var roots []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(pattern + path)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			var s unix.Statfs_t
			if err := unix.Statfs(dir, &s); err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("stat %s: %w", dir, err)
			}
			if s.Type == unix.CGROUP_SUPER_MAGIC || s.Type == unix.CGROUP2_SUPER_MAGIC {
				roots = append(roots, dir)
			}
		}
	}
	return roots, nil
}

// KillBelow kills the processes of the cgroups below parent, and returns when there are none.
func KillBelow(parent string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		groups, err := Cgroups(parent)
		if err != nil {
			return err
		}
		killed := 0
		for _, group := range groups {
			raw, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for _, field := range strings.Fields(string(raw)) {
				pid, err := strconv.Atoi(field)
				if err != nil || pid <= 0 { // 0 stands for a process that this namespace does not have
					return fmt.Errorf("read the processes of %s: %q, %w", group, field, err)
				}
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("kill process %d of %s: %w", pid, group, err)
				}
				killed++
			}
		}
		if killed == 0 {
			return nil
		}
		<-tick.C // they are dying
	}
	return fmt.Errorf("there are still processes in the cgroups below %s", parent)
}

// removeCgroups removes parent and what is below it from every hierarchy; the processes are dead by now.
func removeCgroups(parent string) error {
	roots, err := cgroupRoots(parent)
	for _, root := range roots {
		err = errors.Join(err, removeTree(root))
	}
	return err
}

// removeTree removes a directory of a cgroup filesystem, whose files cannot be unlinked, depth first.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}
