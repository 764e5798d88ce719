package storage

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Usage measures what the root filesystem id takes on disk: what its container wrote, with the content of its
// volumes. It reads every directory; ctx ends it. NotFound when there is none.
func (r *Rootfs) Usage(ctx context.Context, id string) (Usage, error) {
	p, err := r.place(id)
	if err != nil {
		return Usage{}, err
	}
	if _, err := os.Lstat(p.dir); err != nil {
		return Usage{}, fmt.Errorf("measure root filesystem %s: %w", id, absentKind(err))
	}
	u, err := r.measure(ctx, p.dir)
	u.Mountpoint, u.At = r.cfg.Dir, time.Now()
	return u, err
}

// Total tells what all root filesystems take on disk, with those removed and not deleted yet. It answers from memory,
// and waits for the first measurement after start. On the filesystem of the image store it goes by the store's name, so
// that who compares the two sees one.
func (r *Rootfs) Total(ctx context.Context) (Usage, error) { return r.total.read(ctx) }

func (r *Rootfs) measureAll(ctx context.Context) (Usage, error) {
	u, err := r.measure(ctx, r.cfg.Dir)
	u.Mountpoint = r.cfg.Dir
	if r.cfg.ImageStore != "" && sameFilesystem(r.cfg.Dir, r.cfg.ImageStore) {
		u.Mountpoint = r.cfg.ImageStore
	}
	return u, err
}

func sameFilesystem(a, b string) bool {
	var one, other unix.Stat_t
	return unix.Stat(a, &one) == nil && unix.Stat(b, &other) == nil && one.Dev == other.Dev
}

func (r *Rootfs) measure(ctx context.Context, dir string) (Usage, error) {
	u, err := treeUsage(ctx, dir)
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return u, nil
}
