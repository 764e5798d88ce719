package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// settle is how long a cgroup without processes may stay busy before it counts as stuck.
const settle = 5 * time.Second

// Remove kills what is in the cgroup at path, which must be one that crid named (Invalid otherwise), and removes it
// with everything below it from every hierarchy. One that does not exist is fine, so it may be repeated. It is
// bounded by the context, and once the processes are gone by five seconds; the error is Unavailable then.
func (t *Tree) Remove(ctx context.Context, path string) error {
	cleaned, err := cleanGroup(path)
	if err == nil && !strings.HasPrefix(filepath.Base(cleaned), ours) {
		err = fmt.Errorf("it is not named %s*: %w", ours, errdef.Invalid)
	}
	if err == nil {
		err = t.remove(ctx, cleaned)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

func (t *Tree) remove(ctx context.Context, path string) error {
	var giveUp time.Time
	for pause := newPause(); ; {
		if err := t.kill(ctx, path); err != nil {
			return err
		}
		if giveUp.IsZero() {
			giveUp = time.Now().Add(settle)
		}
		err := t.rmdirAll(path)
		if !busy(err) {
			return err
		}
		// Whoever died a moment ago may still be counted, and somebody may have joined.
		if time.Now().After(giveUp) || !pause.wait(ctx) {
			return fmt.Errorf("%w: %w", errdef.Unavailable, err)
		}
	}
}

func (t *Tree) rmdirAll(path string) error {
	var failed []error
	for _, h := range t.hierarchies {
		failed = append(failed, rmdirTree(filepath.Join(h.dir, path)))
	}
	return errors.Join(failed...)
}

// rmdirTree removes the cgroups below dir and then dir.
func rmdirTree(dir string) error {
	names, err := children(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := rmdirTree(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return rmdir(dir)
}

// RemoveEmpty removes the cgroup at path, whatever its name, from the hierarchies in which nothing is in it or below
// it. Where something is, or where it does not exist, it is left as it is, without an error.
func (t *Tree) RemoveEmpty(path string) error {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return fmt.Errorf("remove empty cgroup: %w", err)
	}
	for _, h := range t.hierarchies {
		if err := rmdir(filepath.Join(h.dir, cleaned)); err != nil && !busy(err) {
			return fmt.Errorf("remove empty cgroup %s: %w", path, err)
		}
	}
	return nil
}

// rmdir removes one cgroup; absent is fine.
func rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !gone(err) {
		return fmt.Errorf("rmdir %s: %w", dir, err)
	}
	failpoint.Hit("cgroup/remove/removed")
	return nil
}

// busy tells whether err says that something is in a cgroup or below it.
func busy(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) }
