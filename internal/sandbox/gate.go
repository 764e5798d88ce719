package sandbox

import (
	"context"
	"fmt"
	"sync"

	"github.com/crid/crid/internal/errdef"
)

// errStopping is what a create in flight is cancelled with.
var errStopping = fmt.Errorf("the pod is being stopped: %w", errdef.WrongState)

// gate counts the creates in a pod. It is no mutex: any number are inside at once, and closing it does not
// wait. The zero value is open.
type gate struct {
	mu     sync.Mutex // guards all below; nothing waits under it
	closed bool
	inside map[*context.CancelCauseFunc]struct{}
	empty  chan struct{} // made by close, closed when the last has left
}

// enter counts one in and returns a context that close cancels. leave may be repeated. Once the gate is
// closed ok is false and there is nothing to leave.
func (g *gate) enter(ctx context.Context) (inner context.Context, leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ctx, nil, false
	}
	if g.inside == nil {
		g.inside = map[*context.CancelCauseFunc]struct{}{}
	}
	inner, cancel := context.WithCancelCause(ctx)
	g.inside[&cancel] = struct{}{}
	return inner, sync.OnceFunc(func() { g.leave(&cancel) }), true
}

func (g *gate) leave(cancel *context.CancelCauseFunc) {
	(*cancel)(nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.inside, cancel)
	if g.closed && len(g.inside) == 0 {
		close(g.empty)
	}
}

// close refuses all who come later and cancels those inside. The channel is closed once they have left;
// busy says whether there were any. It may be repeated.
func (g *gate) close() (empty <-chan struct{}, busy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed, g.empty = true, make(chan struct{})
		if len(g.inside) == 0 {
			close(g.empty)
		}
	}
	for cancel := range g.inside {
		(*cancel)(errStopping)
	}
	return g.empty, len(g.inside) > 0
}
