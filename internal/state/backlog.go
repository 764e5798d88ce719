package state

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// retryDelay is how soon records that the disk has refused are tried again.
const retryDelay = 2 * time.Second

// backlog is what the disk has refused of a Dir, until it takes it or something newer comes.
type backlog struct {
	write func(id string, raw []byte) error

	mu      sync.Mutex // guards the fields below; not held while writing
	entries map[string]*unsaved
	retry   *time.Timer
	closed  bool
}

// unsaved is one record that is not on disk.
type unsaved struct {
	raw   []byte
	since time.Time

	writing sync.Mutex // guards over, and is held while raw is written: what is newer waits for that
	over    bool       // raw is not to be written any more
	err     error      // the last; guarded by backlog.mu
}

// add keeps a record and sees to its being tried again.
func (b *backlog) add(id string, raw []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.entries == nil {
		b.entries = map[string]*unsaved{}
	}
	b.entries[id] = &unsaved{raw: raw, since: time.Now(), err: err}
	b.schedule()
}

// schedule sees to the next try. The caller holds mu.
func (b *backlog) schedule() {
	if b.retry == nil && !b.closed && len(b.entries) > 0 {
		b.retry = time.AfterFunc(retryDelay, func() { // ends by itself
			b.flush()
			b.mu.Lock()
			defer b.mu.Unlock()
			b.retry = nil
			b.schedule()
		})
	}
}

// take removes what is kept of a record, once it is not being written any more; nil when there is nothing.
func (b *backlog) take(id string) *unsaved {
	b.mu.Lock()
	e := b.entries[id]
	delete(b.entries, id)
	b.mu.Unlock()
	if e != nil {
		e.writing.Lock()
		e.over = true
		e.writing.Unlock()
	}
	return e
}

// flush tries to write all that is kept.
func (b *backlog) flush() {
	b.mu.Lock()
	all := make(map[string]*unsaved, len(b.entries))
	for id, e := range b.entries {
		all[id] = e
	}
	b.mu.Unlock()
	for id, e := range all {
		err := e.tried(func() error { return b.write(id, e.raw) })
		b.mu.Lock()
		e.err = err
		if err == nil && b.entries[id] == e {
			delete(b.entries, id)
		}
		b.mu.Unlock()
	}
}

func (e *unsaved) tried(write func() error) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	if e.over {
		return nil
	}
	return write()
}

// close tries once more. It may be repeated.
func (b *backlog) close() error {
	b.mu.Lock()
	b.closed = true
	if b.retry != nil {
		b.retry.Stop()
	}
	b.mu.Unlock()
	b.flush()
	if left := b.list(); len(left) > 0 {
		return fmt.Errorf("%d records are not on disk, among them: %w", len(left), left[0])
	}
	return nil
}

// list says what is not on disk, the oldest first.
func (b *backlog) list() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make([]string, 0, len(b.entries))
	for id := range b.entries {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y string) int { return b.entries[x].since.Compare(b.entries[y].since) })
	all := make([]error, 0, len(ids))
	for _, id := range ids {
		e := b.entries[id]
		all = append(all, fmt.Errorf("record %s is not on disk since %s: %w", id, e.since.Format(time.RFC3339), e.err))
	}
	return all
}
