// Package state keeps one durable JSON record per object, a file each. It does not know what a record says,
// nor what follows from one that cannot be read.
package state

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// syncDelay is how long a record may stay in the page cache alone. A record exists to survive crid, not the
// kernel: syncing each one would cost 1 to 10 ms on the path of every pod.
const syncDelay = time.Second

const (
	suffix     = ".json"
	tempPrefix = ".tmp-" // of files that are being written
)

// idPattern is what an id may look like unless Named says more: it becomes a file name.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Dir is a directory of records of one type. Its methods may be called concurrently; two Puts of one id
// leave one of the two records whole.
type Dir[T any] struct {
	dir     string
	version int
	form    *regexp.Regexp // of ids
	flush   *flusher
	later   backlog
	spare   *reserve
	view    bool     // the directory may be absent
	writing sync.Map // names of the temporary files of Puts in progress
}

// Entry is one record as All finds it. Record is the zero value when the record could not be read.
type Entry[T any] struct {
	ID     string
	Record T
}

// envelope is a record's file: the version stands before the record so that it can be judged first.
type envelope struct {
	Version int             `json:"version"`
	Record  json.RawMessage `json:"record"`
}

// Open makes the directory when it is absent (0700) and removes what an interrupted Put left. version is
// the version of T that this program writes and reads.
func Open[T any](dir string, version int) (*Dir[T], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make record directory: %w", err)
	}
	failpoint.Hit("state/open/made")
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read record directory: %w", err)
	}
	for _, n := range names {
		if IsUnfinished(n.Name()) {
			if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
				return nil, fmt.Errorf("remove unfinished record: %w", err)
			}
			failpoint.Hit("state/open/cleared")
		}
	}
	d := &Dir[T]{dir: dir, version: version, form: idPattern, flush: newFlusher(dir), spare: newReserve(dir)}
	d.later.write = func(id string, raw []byte) error {
		defer d.flush.touch()
		err := d.writeWhole(id, raw)
		if err == nil {
			_ = d.spare.fill() // as far as the space goes
		}
		return err
	}
	if err := d.spare.fill(); err != nil {
		slog.Warn("on a full disk what becomes of pods and containers cannot be recorded", "dir", dir, "err", err)
	}
	return d, nil
}

// View is a Dir to be read only: it makes nothing and removes nothing. A directory that is absent has no records.
func View[T any](dir string, version int) *Dir[T] {
	return &Dir[T]{dir: dir, version: version, form: idPattern, flush: newFlusher(dir), view: true}
}

// Named says what the ids are like. Any other file is a stray, a copy that somebody made of a record too: as a record, that
// would pass for the object itself. It comes before any other use.
func (d *Dir[T]) Named(form *regexp.Regexp) *Dir[T] {
	d.form = form
	return d
}

// Path is the file of a record.
func (d *Dir[T]) Path(id string) string { return filepath.Join(d.dir, id+suffix) }

// Files lists the directory: the ids of records, and the paths of what is none. What a Put of this Dir is writing is left
// out, however long that takes; one that has ended since may be among them.
func (d *Dir[T]) Files() (ids, strays []string, err error) {
	names, err := d.names()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range names {
		id, ok := strings.CutSuffix(n.Name(), suffix)
		_, underWay := d.writing.Load(n.Name())
		switch {
		case n.Name() == ReserveName:
		case ok && d.checkID(id) == nil:
			ids = append(ids, id)
		case !underWay:
			strays = append(strays, filepath.Join(d.dir, n.Name()))
		}
	}
	return ids, strays, nil
}

func (d *Dir[T]) names() ([]fs.DirEntry, error) {
	names, err := os.ReadDir(d.dir)
	if d.view && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record directory: %w", err)
	}
	return names, nil
}

// IsUnfinished tells of a stray whether it is a record that is being written, or whose writing was cut short.
func IsUnfinished(path string) bool { return strings.HasPrefix(filepath.Base(path), tempPrefix) }

// Put stores rec under id, replacing what was there: whole or not at all. It reaches the disk at most a
// second later.
func (d *Dir[T]) Put(id string, rec T) error {
	raw, err := d.encode(id, rec)
	if err != nil {
		return err
	}
	before := d.later.take(id)
	if err := d.writeWhole(id, raw); err != nil {
		if before != nil {
			d.later.add(id, before.raw, before.err)
		}
		return fmt.Errorf("write record %s: %w", id, errdef.Disk(err))
	}
	d.flush.touch()
	return nil
}

// Keep is Put for what is true whether it can be stored or not. On a full disk a record that is there already is
// overwritten by means of a reserve. Whatever the error, the record is kept in memory and tried again until it is stored,
// replaced or deleted.
func (d *Dir[T]) Keep(id string, rec T) error {
	raw, err := d.encode(id, rec)
	if err != nil {
		return err
	}
	d.later.take(id)
	err = d.writeWhole(id, raw)
	if errors.Is(errdef.Disk(err), errdef.Exhausted) {
		err = d.keepOnFull(id, raw, err)
	}
	if err != nil {
		d.later.add(id, raw, err)
		return fmt.Errorf("write record %s, which is tried again: %w", id, errdef.Disk(err))
	}
	d.flush.touch()
	return nil
}

// keepOnFull writes what the disk has refused: into the reserve, or where that goes to new places too, in its stead.
func (d *Dir[T]) keepOnFull(id string, raw []byte, err error) error {
	failed := d.spare.replace(d.Path(id), raw)
	if failed == nil {
		return nil
	}
	if !errors.Is(errdef.Disk(failed), errdef.Exhausted) {
		return err // the reserve has space, but not for this record
	}
	return d.spare.giveFor(err, func() error { return d.writeWhole(id, raw) })
}

// Unsaved says which records are kept in memory alone, and why. It never waits.
func (d *Dir[T]) Unsaved() []error { return d.later.list() }

// slack is how much a record may grow from one state to the next within the blocks that it has.
const slack = 1 << 10

// encode makes the file of a record, with blanks at its end.
func (d *Dir[T]) encode(id string, rec T) ([]byte, error) {
	if err := d.checkID(id); err != nil {
		return nil, err
	}
	inner, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", id, err)
	}
	raw, err := json.Marshal(envelope{Version: d.version, Record: inner})
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", id, err)
	}
	return append(raw, bytes.Repeat([]byte{' '}, slack)...), nil
}

// Delete removes the record of id; an absent one is fine.
func (d *Dir[T]) Delete(id string) error {
	if err := d.checkID(id); err != nil {
		return err
	}
	d.later.take(id)
	err := os.Remove(d.Path(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record %s: %w", id, err)
	}
	failpoint.Hit("state/delete/removed")
	d.flush.touch()
	return nil
}

// All yields every record. One that cannot be read is yielded with its id and the error, and the walk goes
// on; only an unreadable directory ends it, with an entry without id.
func (d *Dir[T]) All() iter.Seq2[Entry[T], error] {
	return func(yield func(Entry[T], error) bool) {
		names, err := d.names()
		if err != nil {
			yield(Entry[T]{}, err)
			return
		}
		for _, n := range names {
			id, ok := strings.CutSuffix(n.Name(), suffix)
			if !ok || d.checkID(id) != nil {
				continue
			}
			rec, err := d.read(id)
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted meanwhile
			}
			if !yield(Entry[T]{ID: id, Record: rec}, err) {
				return
			}
		}
	}
}

// Close tries once more what the disk refused, and syncs what is pending. The Dir is not to be used afterwards; Close
// may be repeated.
func (d *Dir[T]) Close() error {
	return errors.Join(d.later.close(), d.flush.close())
}

func (d *Dir[T]) read(id string) (T, error) {
	var rec T
	path := d.Path(id)
	raw, err := os.ReadFile(path)
	if err != nil {
		return rec, fmt.Errorf("read record %s: %w", id, err)
	}
	var env envelope
	if err := json.Unmarshal(raw, &env); err != nil {
		return rec, fmt.Errorf("read record %s: %w", path, err)
	}
	if env.Version != d.version {
		return rec, fmt.Errorf("read record %s: it has version %d, this crid reads %d: %w",
			path, env.Version, d.version, errdef.Unsupported)
	}
	if len(env.Record) == 0 || string(env.Record) == "null" {
		return rec, fmt.Errorf("read record %s: nothing is recorded in it", path)
	}
	if err := json.Unmarshal(env.Record, &rec); err != nil {
		var zero T
		return zero, fmt.Errorf("read record %s: %w", path, err)
	}
	return rec, nil
}

func (d *Dir[T]) checkID(id string) error {
	if !d.form.MatchString(id) {
		return fmt.Errorf("record id %q: %w: it is not like %s", id, errdef.Invalid, d.form)
	}
	return nil
}

// writeWhole writes a record by way of a temporary file, so that a reader finds all of it or none.
func (d *Dir[T]) writeWhole(id string, content []byte) error {
	name := tempPrefix + rand.Text()
	d.writing.Store(name, nil) // before there is the file
	defer d.writing.Delete(name)
	temp := filepath.Join(d.dir, name)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	failpoint.Hit("state/put/made")
	_, err = f.Write(content)
	err = errors.Join(err, f.Close())
	failpoint.Hit("state/put/written")
	if err == nil {
		err = os.Rename(temp, d.Path(id))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	failpoint.Hit("state/put/renamed")
	return nil
}

// flusher syncs a directory's filesystem at most syncDelay after a change, once for all changes of that time.
type flusher struct {
	dir string

	mu      sync.Mutex // guards the fields below; not held while syncing
	pending *time.Timer
	closed  bool
}

func newFlusher(dir string) *flusher { return &flusher{dir: dir} }

func (f *flusher) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending != nil || f.closed {
		return
	}
	f.pending = time.AfterFunc(syncDelay, func() { // ends by itself; close waits for nothing but its own sync
		f.mu.Lock()
		f.pending = nil
		f.mu.Unlock()
		if err := f.sync(); err != nil {
			slog.Warn("records are not on disk yet", "dir", f.dir, "err", err)
		}
	})
}

func (f *flusher) close() error {
	f.mu.Lock()
	stopped := f.pending != nil && f.pending.Stop()
	f.pending, f.closed = nil, true
	f.mu.Unlock()
	if !stopped {
		return nil
	}
	return f.sync()
}

func (f *flusher) sync() error { return syncDir(f.dir) }

// syncDir writes out the filesystem that holds the records. syncfs and not fsync of each file: the records of a
// second are many small files, and their renames are wanted too.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync records: %w", err)
	}
	err = unix.Syncfs(int(d.Fd()))
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("sync records %s: %w", dir, err)
	}
	return nil
}
