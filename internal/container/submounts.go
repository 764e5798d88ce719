package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/oci/spec"
)

// lookUpFlags finds what a runtime in a user namespace has to be told of a source: the flags of its mount, which it
// may not take away, and for one that binds sources flatly what is mounted below. src is the last of the creation's.
func (c *Container) lookUpFlags(m *spec.Mount, src source, flat bool) error {
	table, err := c.creation.mountTable()
	if err != nil {
		return fmt.Errorf("look at the host's mounts: %w", err)
	}
	on, err := mountOf(src.at)
	if err != nil {
		return err
	}
	for _, t := range table {
		if uint64(t.ID) == on {
			m.Flags = lockedFlags(t)
		}
		if flat && t.Mountpoint != src.real && within(t.Mountpoint, src.real) {
			if err := c.lookUpSubmount(m, src, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookUpSubmount leaves out crid's own mounts, which a container would keep busy, and what a recursive bind mount
// would leave out: what cannot be bound, and what lies below something else.
func (c *Container) lookUpSubmount(m *spec.Mount, src source, t *mountinfo.Info) error {
	if c.m.isOwn(t.Mountpoint) || strings.Contains(t.Optional, "unbindable") {
		return nil
	}
	at, err := os.OpenFile(t.Mountpoint, unix.O_PATH|unix.O_NOFOLLOW, 0) // without O_DIRECTORY nothing is mounted by autofs
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at what is mounted below: %w", err)
	}
	on, err := mountOf(at)
	if err != nil || on != uint64(t.ID) {
		return errors.Join(err, at.Close())
	}
	below := strings.TrimPrefix(strings.TrimPrefix(t.Mountpoint, src.real), "/")
	m.Below = append(m.Below, spec.Submount{Path: below, Flags: lockedFlags(t)})
	c.creation.sources = append(c.creation.sources, source{
		at:    at,
		field: src.field,
		real:  t.Mountpoint,
		dest:  path.Join(src.dest, below),
		name:  filepath.Join(m.Source, below),
	})
	return nil
}

// lockedFlags are the flags of a mount that the kernel keeps in a user namespace, but those of access times: a remount
// leaves these alone.
func lockedFlags(t *mountinfo.Info) []string {
	return slices.DeleteFunc(strings.Split(t.Options, ","), func(o string) bool {
		return !slices.Contains([]string{"ro", "nosuid", "nodev", "noexec"}, o)
	})
}

// mountTable reads the host's mounts once for a creation; it takes milliseconds where there are thousands.
func (c *creation) mountTable() ([]*mountinfo.Info, error) {
	if c.table != nil {
		return c.table, nil
	}
	var err error
	c.table, err = mountinfo.GetMounts(nil)
	return c.table, err
}
