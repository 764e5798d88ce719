package sandbox

import (
	"context"
	"errors"
	"iter"

	"github.com/crid/crid/internal/state"
)

type recordStore struct{ *link }

func (s recordStore) Put(id string, rec Record) error {
	var err error
	return errors.Join(s.call(context.Background(), "records.put "+string(rec.State), id, func() {
		err = s.records.Put(id, rec)
		s.stored[id] = true
	}), err)
}

func (s recordStore) Keep(id string, rec Record) error {
	var err error
	return errors.Join(s.keep("records.put "+string(rec.State), id, func() {
		err = s.records.Put(id, rec)
		s.stored[id] = true
	}), err)
}

func (s recordStore) Delete(id string) error {
	var err error
	return errors.Join(s.call(context.Background(), "records.delete", id, func() {
		s.must(s.leftLocked(id) == "", "the record of %s was deleted before: %s", id, s.leftLocked(id))
		err = s.records.Delete(id)
		delete(s.stored, id)
	}), err)
}

func (s recordStore) All() iter.Seq2[state.Entry[Record], error] { return s.records.All() }

type graveStore struct{ *link }

func (s graveStore) Put(id string, t Tombstone) error {
	var err error
	return errors.Join(s.call(context.Background(), "tombstones.put", id, func() {
		err = s.graves.Put(id, t)
		s.entombed[id] = true
	}), err)
}

func (s graveStore) Keep(id string, t Tombstone) error {
	var err error
	return errors.Join(s.keep("tombstones.put", id, func() {
		err = s.graves.Put(id, t)
		s.entombed[id] = true
	}), err)
}

func (s graveStore) Delete(id string) error {
	var err error
	return errors.Join(s.call(context.Background(), "tombstones.delete", id, func() {
		err = s.graves.Delete(id)
		delete(s.entombed, id)
	}), err)
}

func (s graveStore) All() iter.Seq2[state.Entry[Tombstone], error] { return s.graves.All() }

// keep is call for what a store sees to itself after an error, as long as crid lives.
func (l *link) keep(name, id string, effect func()) error {
	done := false
	once := func() { effect(); done = true }
	err := l.call(context.Background(), name, id, once)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && !done && !l.dead {
		effect()
	}
	return err
}
