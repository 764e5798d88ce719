package state

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// ReserveName is a file of each Dir that is no record.
const ReserveName = ".reserve"

const reserveSize = 64 << 10 // more than nearly all records have

// reserve is a file whose blocks a record can be written to when the disk has none to give: the record's file and the
// reserve change places, twice. It neither takes from the disk nor gives to it, so that nobody can snatch what is freed.
// On filesystems that write to new places what is overwritten it is given back before the record is written.
type reserve struct {
	path string
	mu   sync.Mutex // a record at a time goes by it; held while that is written, on a disk that is full
}

func newReserve(dir string) *reserve { return &reserve{path: filepath.Join(dir, ReserveName)} }

// fill makes the reserve as large as it should be.
func (r *reserve) fill() error {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("reserve space for records: %w", err)
	}
	failpoint.Hit("state/reserve/made")
	info, err := f.Stat()
	if err == nil && info.Size() < reserveSize {
		_, err = f.WriteAt(bytes.Repeat([]byte{' '}, int(reserveSize-info.Size())), info.Size())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reserve space for records: %w", err)
	}
	failpoint.Hit("state/reserve/filled")
	return nil
}

// replace makes content what the record's file at path holds, which must exist.
func (r *reserve) replace(path string, content []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	content = bytes.TrimRight(content, " ")
	if err := overwrite(r.path, content); err != nil {
		return err
	}
	if err := r.exchange(path); err != nil {
		return err
	}
	// The record is stored. What it was in before mostly has room for it too, and the reserve stays as it was.
	if overwrite(r.path, content) == nil {
		return r.exchange(path)
	}
	_ = r.fill() // it is less than it was until the disk has space again
	return nil
}

// giveFor gives the reserve back to the disk and calls write; what is left then is the reserve. err is the answer when
// there is nothing to give.
func (r *reserve) giveFor(err error, write func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if os.Remove(r.path) != nil {
		return err
	}
	if failed := syncDir(filepath.Dir(r.path)); failed != nil { // what was deleted is free, and no quota's, only then
		return errors.Join(err, failed)
	}
	defer r.fill() // as far as the space goes
	return write()
}

func (r *reserve) exchange(path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, r.path, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	failpoint.Hit("state/reserve/exchanged")
	return os.NewSyscallError("exchange record", err)
}

// overwrite writes content and blanks, which JSON allows at its end, over all that a file holds; its blocks must suffice.
// It is synced, since the exchange may reach the disk before.
func overwrite(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // synced before
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if int64(len(content)) > max(st.Size, st.Blocks*512) {
		return fmt.Errorf("write %s: the record does not fit in", path)
	}
	blanks := max(0, int(st.Size)-len(content))
	if _, err := f.WriteAt(append(bytes.Clone(content), bytes.Repeat([]byte{' '}, blanks)...), 0); err != nil {
		return err
	}
	err = f.Sync()
	failpoint.Hit("state/reserve/overwritten")
	return err
}
