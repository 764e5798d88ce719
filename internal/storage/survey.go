package storage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Entry is something that lies where root filesystems do.
type Entry struct {
	Path  string
	ID    string // of the root filesystem, or of the image that is mounted for many
	Image bool   // ID is an image's
	Mount bool   // Path is a mount point, or was made to be one
	Trash bool   // it was removed and waits to be deleted; no ID
}

// Target is where the root filesystem id is mounted. What is mounted beside it, with mapped ids, goes with it.
func (cfg RootfsConfig) Target(id string) string { return (&Rootfs{cfg: cfg}).at(id).target }

// Survey answers what lies where root filesystems do, whether anybody has opened them or not. It changes nothing;
// directories that are absent hold nothing.
func (cfg RootfsConfig) Survey() ([]Entry, error) {
	var all []Entry
	for _, in := range []struct {
		dir string
		as  Entry
	}{
		{cfg.Dir, Entry{}},
		{filepath.Join(cfg.Dir, trashName), Entry{Trash: true}},
		{cfg.MountDir, Entry{Mount: true}},
		{filepath.Join(cfg.MountDir, imagesName), Entry{Mount: true, Image: true}},
	} {
		names, err := entryNames(in.dir)
		if err := ignoreAbsent(err); err != nil {
			return nil, fmt.Errorf("list root filesystems: %w", err)
		}
		for _, name := range names {
			e := in.as
			e.Path = filepath.Join(in.dir, name)
			switch {
			case e.Trash:
			case idForm.MatchString(name):
				e.ID = name
			default:
				continue // crid's own, and not of one root filesystem
			}
			if e.Mount && !e.Image {
				e.Path = cfg.Target(name)
			}
			all = append(all, e)
		}
	}
	return all, nil
}

// Idle tells that what lies in the trash is not about to be deleted: it could not be, or came there by another hand.
func (r *Rootfs) Idle() bool { return r.trash.idle() }

// EmptyTrash has all deleted that lies in the trash, waits for that, and says what cannot be.
func (r *Rootfs) EmptyTrash(ctx context.Context) error {
	if err := r.trash.ask(ctx); err != nil {
		return fmt.Errorf("empty the trash of root filesystems: %w", err)
	}
	if stuck := r.problems.list(); len(stuck) > 0 {
		return errors.New(strings.Join(stuck, "; "))
	}
	return nil
}

// Measure sums what dir and everything in it takes on disk.
func Measure(ctx context.Context, dir string) (Usage, error) { return treeUsage(ctx, dir) }
