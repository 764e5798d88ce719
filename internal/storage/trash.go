package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// trash is a directory whose content one goroutine deletes. Renaming into it takes microseconds; deleting a
// container's files may take minutes.
type trash struct {
	dir      string
	next     atomic.Int64       // makes the names of entries
	wake     chan struct{}      // holds one: there is something to delete
	asks     chan chan struct{} // each is closed after a look at all that is there
	coming   atomic.Int64       // directories that are being put
	came     atomic.Int64       // directories that were put
	seen     atomic.Int64       // of came, how many the last look has dealt with
	stop     context.CancelFunc
	done     chan struct{} // closed when the goroutine has ended
	problems *problems
}

const trashBatch = 1024 // entries of a directory dealt with at a time

// openTrash starts with what an earlier life left in dir.
func openTrash(dir string, p *problems) *trash {
	ctx, stop := context.WithCancel(context.Background())
	t := &trash{dir: dir, wake: make(chan struct{}, 1), asks: make(chan chan struct{}), stop: stop, done: make(chan struct{}), problems: p}
	t.next.Store(time.Now().UnixNano())
	go t.work(ctx) // ended by close
	return t
}

// close ends the goroutine, at the latest after the file that it is deleting.
func (t *trash) close() {
	t.stop()
	<-t.done
}

// put takes the directory away from where it is; one that does not exist is away. On a disk too full for a
// rename it deletes it there and then.
func (t *trash) put(dir string) error {
	t.coming.Add(1)
	defer t.coming.Add(-1)
	err := ignoreAbsent(os.Rename(dir, t.name()))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = os.RemoveAll(dir)
	}
	t.came.Add(1)
	failpoint.Hit("storage/trash/put")
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return err
}

// idle tells that nothing which was put is still to be dealt with: what is there now stays unless somebody asks.
func (t *trash) idle() bool { return t.coming.Load() == 0 && t.seen.Load() == t.came.Load() }

// ask has all deleted that is there, and waits for that.
func (t *trash) ask(ctx context.Context) error {
	looked := make(chan struct{})
	select {
	case t.asks <- looked:
	case <-t.done:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-looked:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errClosed = fmt.Errorf("root filesystems are closed: %w", errdef.Unavailable)

// name is a path that no entry has: numbers grow from the time of start.
func (t *trash) name() string {
	return filepath.Join(t.dir, strconv.FormatInt(t.next.Add(1), 10))
}

func (t *trash) work(ctx context.Context) {
	defer close(t.done)
	var asked chan struct{}
	for {
		came := t.came.Load()
		t.problems.set(t.dir, t.empty(ctx))
		t.seen.Store(came)
		if asked != nil {
			close(asked)
			asked = nil
		}
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case asked = <-t.asks:
		}
	}
}

// empty deletes all entries that can be deleted; the error is about the first that cannot. It works level by
// level, moving directories up into the trash itself: a tree of any depth takes one descriptor and short paths,
// and what a crash interrupts goes on where it was.
func (t *trash) empty(ctx context.Context) error {
	stuck := map[string]error{}
	var first error
	for {
		names, err := entryNames(t.dir)
		if err != nil {
			return fmt.Errorf("empty trash: %w", err)
		}
		left := 0
		for _, name := range names {
			if ctx.Err() != nil {
				return nil
			}
			if stuck[name] != nil {
				continue
			}
			left++
			if err := t.clear(ctx, filepath.Join(t.dir, name)); err != nil && ctx.Err() == nil {
				stuck[name] = err
				if first == nil {
					first = fmt.Errorf("delete what was removed: %w", err)
				}
			}
		}
		if left == 0 {
			return first
		}
	}
}

// clear deletes one entry, after moving the directories in it up.
func (t *trash) clear(ctx context.Context, dir string) error {
	for {
		batch, err := readSome(dir)
		if errors.Is(err, unix.ENOTDIR) {
			return os.Remove(dir)
		}
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			err := os.Remove(dir)
			failpoint.Hit("storage/trash/cleared")
			return err
		}
		for _, e := range batch {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := t.discard(filepath.Join(dir, e.Name()), e.IsDir()); err != nil {
				return err
			}
			failpoint.Hit("storage/trash/discarded")
		}
	}
}

func (t *trash) discard(path string, isDir bool) error {
	if !isDir {
		return ignoreAbsent(os.Remove(path))
	}
	err := unix.Rmdir(path) // most are empty, as overlay's own are
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	err = os.Rename(path, t.name())
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return os.RemoveAll(path)
	}
	return err
}

// readSome reads the first entries of a directory.
func readSome(dir string) ([]fs.DirEntry, error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(trashBatch)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, err
}

func entryNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}
