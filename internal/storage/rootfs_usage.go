package storage

import (
	"context"
	"fmt"
	"os"
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
	return r.measure(ctx, p.dir)
}

// Total measures what all root filesystems take on disk, with those removed and not deleted yet.
func (r *Rootfs) Total(ctx context.Context) (Usage, error) {
	return r.measure(ctx, r.cfg.Dir)
}

func (r *Rootfs) measure(ctx context.Context, dir string) (Usage, error) {
	u, err := treeUsage(ctx, dir)
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	u.Mountpoint = r.cfg.Dir
	return u, nil
}
