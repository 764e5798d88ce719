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
	t, err := measureTree(ctx, dir, nil)
	return t.Usage, err
}

// treeSize is what a tree takes on disk, and which of its files have names elsewhere, too.
type treeSize struct {
	Usage
	outside map[inode]uint64 // bytes of each
}

type inode struct{ dev, ino uint64 }

// measureTree sums what dir takes, without what skip tells to leave out; nil leaves out nothing. A tree that is not
// there takes nothing.
func measureTree(ctx context.Context, dir string, skip map[string]bool) (treeSize, error) {
	var t treeSize
	names := make(map[inode]uint64) // of files with several names, how many are still to be met
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if skip[path] {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
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
		if st.Nlink > 1 && !info.IsDir() && !t.firstName(names, st) {
			return nil
		}
		t.Bytes += allocated(st)
		t.Inodes++
		return nil
	})
	return t, err
}

// firstName notes a name of a file that has several, and tells whether it is the first.
func (t *treeSize) firstName(names map[inode]uint64, st *syscall.Stat_t) bool {
	id := inode{uint64(st.Dev), st.Ino}
	left, met := names[id]
	if !met {
		left = uint64(st.Nlink)
		if t.outside == nil {
			t.outside = make(map[inode]uint64)
		}
		t.outside[id] = allocated(st)
	}
	names[id] = left - 1
	if left == 1 {
		delete(t.outside, id)
	}
	return !met
}

func allocated(st *syscall.Stat_t) uint64 { return uint64(st.Blocks) * 512 }

// add counts another tree in; a file of both counts once.
func (t *treeSize) add(other treeSize) {
	t.Bytes += other.Bytes
	t.Inodes += other.Inodes
	for id, bytes := range other.outside {
		if _, both := t.outside[id]; both {
			t.Bytes -= bytes
			t.Inodes--
			continue
		}
		if t.outside == nil {
			t.outside = make(map[inode]uint64)
		}
		t.outside[id] = bytes
	}
}
