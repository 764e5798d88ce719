package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crid/crid/internal/errdef"
)

// startTimeout bounds the runtime's `start`, which takes milliseconds.
const startTimeout = time.Minute

// starting is a start in progress.
type starting struct {
	*flight
	ran    chan struct{}           // closed once the runtime has answered and err says what
	err    error                   // read only after ran
	cancel context.CancelCauseFunc // ends the runtime's call
}

// Start runs the container's process: WrongState unless it is created, or running already, as after a start whose
// answer was lost. A start that the runtime refuses leaves the container EXITED with code 128 and reason StartError.
// Concurrent calls share the outcome; ctx bounds the waiting alone.
func (c *Container) Start(ctx context.Context) error {
	for {
		s, err := c.beginStart(ctx)
		if s == nil || err != nil {
			return err
		}
		err = s.wait(ctx)
		switch {
		case errors.Is(err, errNotStarted):
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("start %s: %w", c, err)
		default:
			return err
		}
	}
}

// beginStart joins the start in progress or begins one; nil = there is nothing to start.
func (c *Container) beginStart(ctx context.Context) (*starting, error) {
	c.op.Lock()
	defer c.op.Unlock()
	switch state := c.Status().State; {
	case state == Running && c.busy.stopping == nil && c.busy.removing == nil:
		return nil, nil
	case state != Created && state != Running:
		return nil, c.wrongState("start", "it is "+string(state))
	case c.busy.stopping != nil || c.busy.removing != nil:
		return nil, c.wrongState("start", "it is being stopped")
	case c.busy.starting != nil:
		return c.busy.starting, nil
	case c.proc == nil:
		return nil, c.wrongState("start", "its process was lost; remove it")
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s := &starting{flight: newFlight(), ran: make(chan struct{}), cancel: cancel}
	begun := c.m.crew.work(func(life context.Context) {
		defer context.AfterFunc(life, func() { cancel(errClosing) })()
		s.land(c.start(ctx, s))
		cancel(nil)
	})
	if !begun {
		return nil, errClosing
	}
	c.busy.starting = s
	return s, nil
}

// start runs the runtime's `start` and sees a failed one through to EXITED. While it is in progress, the
// watcher leaves the publishing of an exit until ran is closed: a process may end before it is known to run.
func (c *Container) start(ctx context.Context, s *starting) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ctx, done := c.doing(ctx, opStart)
	defer func() { done(s.err) }()
	begun := time.Now()
	rt, err := c.runtime()
	if err == nil {
		err = rt.Start(c.at(ctx, opStart, "start process"), c.id)
	}
	if err == nil {
		c.at(ctx, opStart, "record")
		err = c.move(Running, func(s *Status) { s.StartedAt = begun })
	}
	if err != nil {
		s.err = errdef.Where(fmt.Errorf("start %s: %w", c, err), c.disks()...)
	}
	close(s.ran)
	if s.err == nil {
		return nil
	}
	if err := c.kill(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("%w; then %w", s.err, err)
	}
	return s.err
}
