package container

import (
	"context"
	"fmt"
	"sync"

	"github.com/crid/crid/internal/errdef"
)

// crew is the goroutines of a Manager: all of them are started by it and none outlives it.
type crew struct {
	watching context.Context // ends when crid does: containers live on
	rest     context.CancelFunc
	working  context.Context // ends when crid can wait no longer
	drop     context.CancelFunc

	mu     sync.Mutex // guards closed, and Add against Wait
	closed bool
	all    sync.WaitGroup
}

func newCrew() *crew {
	w := &crew{}
	w.watching, w.rest = context.WithCancel(context.Background())
	w.working, w.drop = context.WithCancel(context.Background())
	return w
}

// work starts f, which ends by itself or with its context: that of what must be finished. It tells false,
// and starts nothing, when crid is ending.
func (w *crew) work(f func(ctx context.Context)) bool { return w.start(w.working, f) }

// watch starts f, which may be left off at any time.
func (w *crew) watch(f func(ctx context.Context)) bool { return w.start(w.watching, f) }

// resting tells whether crid is ending.
func (w *crew) resting() bool { return w.watching.Err() != nil }

func (w *crew) start(ctx context.Context, f func(ctx context.Context)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.all.Go(func() { f(ctx) })
	return true
}

// close waits for the work in hand, until ctx ends; then it is dropped.
func (w *crew) close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.rest()
	defer w.drop()
	done := make(chan struct{})
	go func() { // ends with the last of the crew
		w.all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for containers in work: %w", context.Cause(ctx))
	}
}

// errClosing is what work that crid can no longer begin ends with.
func errClosing() error {
	return fmt.Errorf("crid is shutting down: %w", errdef.Unavailable)
}
