package container

import (
	"context"
	"fmt"
	"sync"

	"github.com/crid/crid/internal/errdef"
)

// crew is the goroutines of a Manager: all of them are started by it and none outlives it.
type crew struct {
	patience context.Context // ends as soon as crid is to end: who only waits then gives up
	hurry    context.CancelFunc
	watching context.Context // ends when crid does: containers live on
	rest     context.CancelFunc
	working  context.Context // ends when crid can wait no longer
	drop     context.CancelFunc

	mu       sync.Mutex // guards closed, and Add against Wait
	closed   bool
	workers  sync.WaitGroup
	watchers sync.WaitGroup
}

func newCrew() *crew {
	w := &crew{}
	w.patience, w.hurry = context.WithCancel(context.Background())
	w.watching, w.rest = context.WithCancel(context.Background())
	w.working, w.drop = context.WithCancel(context.Background())
	return w
}

// work starts f, which ends by itself or with its context: that of what must be finished. It tells false,
// and starts nothing, when crid is ending.
func (w *crew) work(f func(ctx context.Context)) bool { return w.start(&w.workers, w.working, f) }

// watch starts f, which may be left off once nobody works any more: work waits for what watchers see.
func (w *crew) watch(f func(ctx context.Context)) bool { return w.start(&w.watchers, w.watching, f) }

// ending tells whether crid is ending.
func (w *crew) ending() bool { return w.patience.Err() != nil }

// patient is ctx for waiting that is given up when crid ends, with the cause errClosing.
func (w *crew) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(w.patience, func() { cancel(errClosing) })
	return ctx, func() { stop(); cancel(nil) }
}

func (w *crew) start(group *sync.WaitGroup, ctx context.Context, f func(ctx context.Context)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	group.Go(func() { f(ctx) })
	return true
}

// close waits for the work in hand, until ctx ends; then it is dropped.
func (w *crew) close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.hurry()
	defer w.drop()
	defer w.rest()
	done := make(chan struct{})
	go func() { // ends with the last of the crew
		w.workers.Wait()
		w.rest()
		w.watchers.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for containers in work: %w", context.Cause(ctx))
	}
}

// errClosing is what work ends with that crid can no longer begin or wait for.
var errClosing = fmt.Errorf("crid is shutting down: %w", errdef.Unavailable)
