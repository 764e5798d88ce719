package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// spare is space that is given up on a full disk so that images can be removed from it: the store writes new files of
// its records before it deletes anything.
type spare struct {
	dir   string
	files int
	size  int // bytes of each
}

// spares are those of both halves of the store.
func spares(root, runRoot string) []spare {
	return []spare{
		{dir: filepath.Join(root, "crid-spare"), files: 16, size: 256 << 10},
		{dir: filepath.Join(runRoot, "crid-spare"), files: 8, size: 16 << 10},
	}
}

// makeRoom calls do, which ends by giving back space but needs some before. On a full disk it gets the spare; somebody
// who writes without a pause may be quicker to take it.
func (s *Images) makeRoom(do func() error) error {
	for _, sp := range s.disk.spares {
		if sp.isShort() {
			sp.give()
		}
	}
	err := do()
	if errors.Is(errdef.Disk(err), errdef.Exhausted) {
		for _, sp := range s.disk.spares {
			sp.give()
		}
		err = do()
	}
	s.keepSpares()
	return err
}

func (s *Images) keepSpares() {
	for _, sp := range s.disk.spares {
		s.problems.set(sp.dir, sp.keep())
	}
}

// isShort tells whether the filesystem has less than the spare would give.
func (sp spare) isShort() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(sp.dir, &st); err != nil {
		return false
	}
	return st.Bfree*uint64(st.Bsize) < uint64(sp.files*sp.size) || st.Files > 0 && st.Ffree < uint64(sp.files)
}

// give deletes the files. What cannot be deleted gives no space, which whoever needs it finds out.
func (sp spare) give() {
	for i := range sp.files {
		_ = os.Remove(sp.path(i))
	}
}

func (sp spare) path(i int) string { return filepath.Join(sp.dir, strconv.Itoa(i)) }

// keep makes the files that are not there, unless that would leave the disk full.
func (sp spare) keep() error {
	err := os.MkdirAll(sp.dir, 0o700)
	failpoint.Hit("storage/spare/dir-made")
	if err == nil && sp.isShort() {
		err = unix.ENOSPC
	}
	for i := 0; i < sp.files && err == nil; i++ {
		if info, failed := os.Stat(sp.path(i)); failed == nil && info.Size() == int64(sp.size) {
			continue
		}
		if err = os.WriteFile(sp.path(i), make([]byte, sp.size), 0o600); err != nil {
			_ = os.Remove(sp.path(i)) // half a file helps nobody
		}
		failpoint.Hit("storage/spare/kept")
	}
	if err != nil {
		return fmt.Errorf("keep space in %s for removing images from a full disk: %w", sp.dir, err)
	}
	return nil
}
