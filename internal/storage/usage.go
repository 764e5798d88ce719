package storage

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// treeUsage sums what dir and everything in it takes on disk; hard links count once, what vanishes on the way
// or lies deeper than a path can say not at all.
func treeUsage(ctx context.Context, dir string) (Usage, error) {
	var u Usage
	type inode struct{ dev, ino uint64 }
	linked := make(map[inode]bool) // files with several names
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if id := (inode{uint64(st.Dev), st.Ino}); st.Nlink > 1 && !info.IsDir() {
			if linked[id] {
				return nil
			}
			linked[id] = true
		}
		u.Bytes += uint64(st.Blocks) * 512
		u.Inodes++
		return nil
	})
	return u, err
}
