// Package event hands out what happens to pods and containers to any number of readers, slow ones included.
// It does not know what an event means nor who reads it.
package event

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"
)

// ErrLagged ends a subscription whose reader fell behind by more than the bus keeps: list again, then
// subscribe again. Nothing is dropped without the reader being told.
var ErrLagged = errors.New("events were missed: list again")

// Kind is what happened to a container, or to a pod where ContainerID is the pod's id.
type Kind int

// The kinds, in the order of a container's life.
const (
	Created Kind = iota
	Started
	Stopped
	Deleted
)

// Event is one thing that happened.
type Event struct {
	Kind        Kind
	PodID       string
	ContainerID string // the pod's id when the pod itself is meant
	At          time.Time
}

// Bus keeps the last events in a ring. Readers hold a position in it, so a slow one costs nothing.
type Bus[T any] struct {
	mu   sync.Mutex // guards all below; held for a copy only
	ring []T
	next uint64        // number of the event that comes next; it lands in ring[next%len]
	wake chan struct{} // closed and renewed at each Publish
	read Counts        // but Published, which is next
}

// New makes a bus that remembers the last size events.
func New[T any](size int) *Bus[T] {
	return &Bus[T]{ring: make([]T, size), wake: make(chan struct{})}
}

// Publish hands v to all readers. It never blocks.
func (b *Bus[T]) Publish(v T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ring[b.next%uint64(len(b.ring))] = v
	b.next++
	close(b.wake)
	b.wake = make(chan struct{})
}

// Counts is what a bus has done so far.
type Counts struct {
	Published uint64 // events
	Lagged    uint64 // readers that fell too far behind and were told so
	Readers   int    // there are now
}

// Counts returns what b has done so far.
func (b *Bus[T]) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.read
	c.Published = b.next
	return c
}

// Subscribe yields what is published after this call, until ctx ends. A reader that falls behind by more
// than the bus keeps gets ErrLagged as its last element.
func (b *Bus[T]) Subscribe(ctx context.Context) iter.Seq2[T, error] {
	b.mu.Lock()
	pos := b.next
	b.mu.Unlock()
	return func(yield func(T, error) bool) {
		b.count(1)
		defer b.count(-1)
		for {
			v, wake, err := b.at(pos)
			switch {
			case err != nil:
				yield(v, err)
				return
			case wake != nil:
				select {
				case <-wake:
				case <-ctx.Done():
					return
				}
			case ctx.Err() != nil || !yield(v, nil):
				return
			default:
				pos++
			}
		}
	}
}

// count counts a reader in or out.
func (b *Bus[T]) count(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read.Readers += n
}

// at returns the event numbered pos, or what to wait for when it is not there yet.
func (b *Bus[T]) at(pos uint64) (v T, wake <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch size := uint64(len(b.ring)); {
	case pos == b.next:
		return v, b.wake, nil
	case b.next-pos > size:
		b.read.Lagged++
		return v, nil, ErrLagged
	default:
		return b.ring[pos%size], nil, nil
	}
}
