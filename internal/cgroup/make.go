package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Create makes the cgroup at path and what is missing above it in every hierarchy. An existing one is fine. On v1
// empty cpusets on the way take their parent's CPUs and memory nodes, without which nothing could join. On v2 every
// ancestor hands down the controllers that it can give; one that it cannot give (processes are in it, it was not
// delegated) is left out, and whoever sets a limit for it later is told so by the kernel.
func (t *Tree) Create(path string) error {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	for _, h := range t.hierarchies {
		err := h.create(cleaned)
		// An ancestor may have been removed as empty between two steps, by us for another pod or by the kubelet.
		for tries := 0; gone(err) && tries < 10; tries++ {
			err = h.create(cleaned)
		}
		if err != nil {
			return fmt.Errorf("create cgroup %s: %w", path, err)
		}
	}
	return nil
}

func (h hierarchy) create(path string) error {
	dir := h.dir
	for _, name := range strings.Split(path[1:], "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		if h.unified && len(h.controllers) > 0 {
			if _, err := handDown(parent, h.controllers); err != nil {
				return err
			}
		}
		if err := os.Mkdir(dir, 0o755); err == nil {
			failpoint.Hit("cgroup/create/made")
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if h.has("cpuset") && !h.unified {
			if err := fillCpuset(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillCpuset copies the parent's CPUs and memory nodes to dir where dir has none.
func fillCpuset(parent, dir string) error {
	for _, file := range [...]string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		inherited, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := write(dir, file, string(bytes.TrimSpace(inherited))); err != nil {
			return err
		}
		failpoint.Hit("cgroup/create/cpuset-filled")
	}
	return nil
}

// handDown enables the controllers for the children of the v2 cgroup dir, and returns those that it cannot give.
func handDown(dir string, controllers []string) (withheld []string, err error) {
	gives, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, controller := range controllers {
		if !slices.Contains(strings.Fields(string(gives)), controller) {
			missing = append(missing, controller)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	// The kernel would hand down those that work by thread, and no process could be in a child then.
	if inhabited, err := inhabited(dir); err != nil || inhabited {
		return missing, err
	}
	if write(dir, "cgroup.subtree_control", "+"+strings.Join(missing, " +")) == nil {
		return nil, nil
	}
	for _, controller := range missing {
		// That was all or nothing; one by one, only what is refused is left out.
		if write(dir, "cgroup.subtree_control", "+"+controller) != nil {
			withheld = append(withheld, controller)
		}
	}
	return withheld, nil
}

// inhabited tells whether processes are in the v2 cgroup dir itself; in the root of the hierarchy they do no harm.
func inhabited(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); err != nil {
		return false, nil // it is the root
	}
	pids, err := procs(dir)
	return len(pids) > 0, err
}

// Withheld returns the controllers that the host has and that no pod can get, on v2, after having tried: the root of a cgroup
// namespace does not hand most of them down while processes are in it.
func (t *Tree) Withheld() (withheld []string, err error) {
	for _, h := range t.hierarchies {
		if !h.unified || len(h.controllers) == 0 {
			continue
		}
		if withheld, err = handDown(h.dir, h.controllers); err != nil {
			return nil, fmt.Errorf("hand down cgroup controllers: %w", err)
		}
	}
	return withheld, nil
}

// Join moves a process, with all its threads, into the cgroup at path in every hierarchy. NotFound when there is no
// such process or cgroup.
func (t *Tree) Join(path string, pid int) error {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return fmt.Errorf("join cgroup: %w", err)
	}
	if pid <= 0 { // the kernel would take 0 for the caller
		return fmt.Errorf("join cgroup %s: pid %d: %w", path, pid, errdef.Invalid)
	}
	for _, h := range t.hierarchies {
		err := write(filepath.Join(h.dir, cleaned), "cgroup.procs", strconv.Itoa(pid))
		if errors.Is(err, unix.ESRCH) || gone(err) {
			err = fmt.Errorf("%w: %w", errdef.NotFound, err)
		}
		if err != nil {
			return fmt.Errorf("join cgroup %s with process %d: %w", path, pid, err)
		}
		failpoint.Hit("cgroup/join/joined")
	}
	return nil
}

// write writes a file of the cgroup dir in one write(2), as the kernel wants it. It never creates one.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
