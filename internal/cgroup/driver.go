package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Units is the systemd that makes scopes.
type Units interface {
	StartScope(ctx context.Context, name, slice string, pid int) error // the process is in it when it returns
	Forget(ctx context.Context, name string) error                     // stopped, and not failed; unknown is fine
	List(ctx context.Context, pattern string) ([]string, error)        // of units that are loaded, whatever their state
}

// Driver is a Tree in which some cgroups are units of systemd: scopes, by their names, whatever driver is in force for new
// ones. Without Units there are no such.
type Driver struct {
	*Tree
	Units Units
	kills *ledger
}

// NewDriver returns the Driver of a Tree; units may be nil.
func NewDriver(tree *Tree, units Units) Driver { return Driver{tree, units, &ledger{}} }

// OOMKills is that of Tree, and of a scope that is gone what its slice tells, once for each kill: NotFound where that was
// not asked to be counted by an Enter in the slice. It is to be called once for each container, when that has ended.
func (d Driver) OOMKills(path string) (uint64, error) {
	slice := filepath.Dir(path)
	kills, err := d.Tree.OOMKills(path)
	switch {
	case !IsScope(path):
	case err == nil:
		d.kills.had(slice, kills)
	case errors.Is(err, errdef.NotFound):
		if kills, counted := d.kills.take(d.Tree, slice); counted {
			return kills, nil
		}
	}
	return kills, err
}

// Cradle makes the MonitorLeaf at path and opens it where it is one directory, of v2 alone: a process that is born there
// (clone3) need not be moved, for which the kernel holds up every fork and exit. Elsewhere there is none: it has to Enter.
func (d Driver) Cradle(path string) (*os.File, error) {
	if len(d.hierarchies) != 1 || !d.hierarchies[0].unified || IsScope(path) {
		return nil, nil
	}
	cleaned, err := cleanGroup(path)
	if err == nil {
		err = d.Create(path)
	}
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(d.hierarchies[0].dir, cleaned))
}

// Enter makes the MonitorLeaf at path and moves the process into it, with all its threads.
func (d Driver) Enter(ctx context.Context, path string, pid int) error {
	if !IsScope(path) {
		if err := d.Create(path); err != nil {
			return err
		}
		return d.Join(path, pid)
	}
	cleaned, err := cleanGroup(path)
	if err == nil && d.Units == nil {
		err = fmt.Errorf("%s is for systemd to make, which does not run here: %w", path, errdef.Unavailable)
	}
	if err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	d.kills.open(d.Tree, filepath.Dir(cleaned))
	name, slice := filepath.Base(cleaned), filepath.Base(filepath.Dir(cleaned))
	if err := d.Units.StartScope(ctx, name, slice, pid); err != nil {
		return fmt.Errorf("enter cgroup %s: %w", path, err)
	}
	failpoint.Hit("cgroup/enter/scope-started")
	return nil
}

// Remove is that of Tree; of a scope it also has systemd forget the unit, which stays behind when it has failed, and
// on v1 when nobody tells systemd that it is empty.
func (d Driver) Remove(ctx context.Context, path string) error {
	if err := d.Tree.Remove(ctx, path); err != nil || !IsScope(path) || d.Units == nil {
		return err
	}
	d.kills.close(d.Tree, filepath.Dir(filepath.Clean(path)))
	if err := d.Units.Forget(ctx, filepath.Base(path)); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	failpoint.Hit("cgroup/remove/unit-forgotten")
	return nil
}

// Find is that of Tree, with the scopes that systemd knows without a cgroup, as those are that have failed.
func (d Driver) Find(ctx context.Context, id string) ([]string, error) {
	found, err := d.Tree.Find(id)
	if err != nil || d.Units == nil {
		return found, err
	}
	for _, pattern := range []string{ours + id + scopeSuffix, oursMonitor + id + scopeSuffix} {
		names, err := d.Units.List(ctx, pattern)
		if err != nil {
			return nil, fmt.Errorf("look for the units of %s: %w", id, err)
		}
		for _, name := range names {
			if !hasBase(found, name) {
				found = append(found, "/"+name)
			}
		}
	}
	return found, nil
}

func hasBase(paths []string, name string) bool {
	for _, path := range paths {
		if filepath.Base(path) == name {
			return true
		}
	}
	return false
}

// Scopes returns the names of the scopes of containers and monitors that systemd knows, each to the id in it, of those
// that isID tells to be one.
func (d Driver) Scopes(ctx context.Context, isID func(id string) bool) (map[string]string, error) {
	if d.Units == nil {
		return nil, nil
	}
	names, err := d.Units.List(ctx, ours+"*"+scopeSuffix)
	if err != nil {
		return nil, fmt.Errorf("look for scopes of containers: %w", err)
	}
	found := map[string]string{}
	for _, name := range names {
		if id, ok := idOf(name); ok && isID(id) {
			found[name] = id
		}
	}
	return found, nil
}
