package network

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/turn"
)

const (
	// gcShare is what a collection takes of the gate: more than all ADDs and DELs that can run at one time.
	gcShare = 1 << 30
	// gcPatience is how long an ADD or DEL waits for a collection before that is interrupted: one by healthy plugins
	// takes milliseconds.
	gcPatience = time.Second
	// pluginsAtOnce is how many ADDs and DELs run at the same time for each processor. More only make the plugins wait
	// for each other: for processors, xtables' lock and that of the leases.
	pluginsAtOnce = 4
)

// errBusy is why a collection does not run, or ends before its time.
var errBusy = fmt.Errorf("pods are being attached or detached: %w", errdef.Unavailable)

// gate lets ADDs and DELs through beside each other and a garbage collection alone. Pods go first: the collection
// takes a quiet moment only, and one that lasts is interrupted, so that a plugin that hangs in it holds nobody.
type gate struct {
	sem       *semaphore.Weighted // an ADD or DEL takes 1, a collection gcShare
	interrupt atomic.Pointer[context.CancelCauseFunc]
	turns     *turn.Stage // of ADDs and DELs
}

func newGate() *gate {
	return &gate{sem: semaphore.NewWeighted(gcShare), turns: turn.New(pluginsAtOnce)}
}

// enter counts an ADD or DEL in when it is its turn.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	done, err := g.turns.Take(ctx)
	if err != nil {
		return nil, err
	}
	if err := g.pass(ctx); err != nil {
		done()
		return nil, err
	}
	return func() { g.sem.Release(1); done() }, nil
}

// pass waits for the end of a collection.
func (g *gate) pass(ctx context.Context) error {
	if g.sem.TryAcquire(1) {
		return nil
	}
	impatient := time.AfterFunc(gcPatience, func() {
		if cancel := g.interrupt.Load(); cancel != nil {
			(*cancel)(errBusy)
		}
	})
	defer impatient.Stop()
	if err := g.sem.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for the network's garbage collection: %w", err)
	}
	return nil
}

// alone begins a collection: its context ends when an ADD or DEL has waited for it too long. errBusy while one of
// them is under way.
func (g *gate) alone(ctx context.Context) (collection context.Context, leave func(), err error) {
	if !g.sem.TryAcquire(gcShare) {
		return ctx, nil, errBusy
	}
	ctx, cancel := context.WithCancelCause(ctx)
	g.interrupt.Store(&cancel)
	return ctx, func() {
		g.interrupt.Store(nil)
		g.sem.Release(gcShare)
		cancel(nil)
	}, nil
}
