package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
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
	u := Usage{Mountpoint: r.cfg.Dir}
	type inode struct{ dev, ino uint64 }
	counted := map[inode]bool{} // of files with several names only
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			return unmeasurable(err)
		}
		info, err := e.Info()
		if err != nil {
			return unmeasurable(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !info.IsDir() {
			file := inode{uint64(st.Dev), st.Ino}
			if counted[file] {
				return nil
			}
			counted[file] = true
		}
		u.Bytes += uint64(st.Blocks) * 512
		u.Inodes++
		return nil
	})
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return u, nil
}

// unmeasurable passes over what vanished meanwhile, and what a container nested deeper than a path can say.
func unmeasurable(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) {
		return nil
	}
	return err
}
