package container

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// stopping is a stop in progress that others join and may hurry.
type stopping struct {
	*flight
	sooner chan struct{} // holds a token when deadline moved

	mu       sync.Mutex // guards deadline alone, so that no stop waits for a record that is being written under op
	deadline time.Time  // when the kill is due
}

// until is when the kill is due.
func (s *stopping) until() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deadline
}

// errStopped is why a creation ends when its container is to be stopped.
var errStopped = fmt.Errorf("%w: the container was stopped", errdef.WrongState)

// Stop sends the container's stop signal and, after grace, kills all that is in it; a container that is not
// running yet is killed at once, one still being created is undone. It returns when EXITED is published, or
// with an error that names what survived. Concurrent stops share the outcome, and the earliest deadline
// counts. ctx bounds the waiting alone. It may be repeated. A container whose record cannot be read is killed at once.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	if c.unreadable() {
		return c.killUnknown(ctx)
	}
	if err := c.settleCreation(ctx, errStopped); err != nil {
		return err
	}
	s, err := c.beginStop(max(grace, 0))
	if s == nil || err != nil {
		return err
	}
	return s.wait(ctx)
}

// killUnknown ends what runs in a container of which only the id is known.
func (c *Container) killUnknown(ctx context.Context) error {
	if err := c.m.killBoth(ctx, remains{id: c.id}); err != nil {
		return fmt.Errorf("stop %s: %w", c, err)
	}
	return nil
}

// settleCreation ends a creation in progress and waits until it has succeeded nevertheless or was given up.
func (c *Container) settleCreation(ctx context.Context, cause error) error {
	if c.creation == nil || c.Status().State != Creating {
		return nil
	}
	c.creation.cancel(cause)
	select {
	case <-c.creation.done:
	case <-c.exited:
	case <-ctx.Done():
		return fmt.Errorf("wait for the creation of %s to end: %w", c, context.Cause(ctx))
	}
	return nil
}

// beginStop joins the stop in progress or begins one; nil = there is nothing to stop.
func (c *Container) beginStop(grace time.Duration) (*stopping, error) {
	c.op.Lock()
	defer c.op.Unlock()
	if c.Status().State == Exited {
		return nil, nil
	}
	deadline := time.Now().Add(grace)
	if s := c.busy.stopping; s != nil {
		s.hurry(deadline)
		return s, nil
	}
	s := &stopping{flight: newFlight(), deadline: deadline, sooner: make(chan struct{}, 1)}
	begun := c.m.crew.work(func(ctx context.Context) {
		err := c.stop(ctx, s)
		c.op.Lock()
		c.busy.stopping = nil
		c.op.Unlock()
		s.land(err)
	})
	if !begun {
		return nil, errClosing
	}
	c.busy.stopping = s
	return s, nil
}

// hurry brings the kill forward.
func (s *stopping) hurry(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !deadline.Before(s.deadline) {
		return
	}
	s.deadline = deadline
	select {
	case s.sooner <- struct{}{}:
	default:
	}
}

func (c *Container) stop(ctx context.Context, s *stopping) (err error) {
	ctx, done := c.doing(ctx, opStop)
	defer func() { done(err) }()
	c.at(ctx, opStop, "ask to end")
	if c.askToEnd(s) && c.awaitExit(s) {
		return nil
	}
	if c.m.crew.ending() && time.Now().Before(s.until()) {
		return errClosing // the container is left as it is; whoever asked asks the next crid
	}
	return c.kill(c.at(ctx, opStop, "kill"))
}

// askToEnd sends the stop signal, if there is a process that can heed it and time for that.
func (c *Container) askToEnd(s *stopping) bool {
	if c.Status().State != Running || c.proc == nil || !time.Now().Before(s.until()) {
		return false
	}
	c.noteSignal(syscall.Signal(c.plan.Signal))
	if err := c.proc.Signal(syscall.Signal(c.plan.Signal)); err != nil {
		c.m.log.Warn("stop signal not sent, killing at once", "container", c.id, "err", err)
		return false
	}
	failpoint.Hit("container/stop/asked")
	return true
}

// awaitExit waits for EXITED until the stop's deadline, which others may bring forward, or until crid ends: a grace
// may be long, and nothing is lost by not waiting for it.
func (c *Container) awaitExit(s *stopping) bool {
	for {
		timer := time.NewTimer(time.Until(s.until()))
		select {
		case <-c.exited:
			timer.Stop()
			return true
		case <-s.sooner:
			timer.Stop()
		case <-timer.C:
			return false
		case <-c.m.crew.patience.Done():
			timer.Stop()
			return false
		}
	}
}

// kill ends everything in the container and waits for EXITED.
func (c *Container) kill(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("kill %s: %w", c, context.Cause(ctx))
	}
	killing, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if c.proc != nil {
		c.noteSignal(syscall.SIGKILL)
		if err := c.proc.Signal(syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill %s: %w", c, err)
		}
		failpoint.Hit("container/kill/struck")
	}
	if err := c.m.deps.Cgroups.Kill(killing, c.plan.Cgroup); err != nil {
		return fmt.Errorf("kill %s: %w", c, err)
	}
	if c.proc == nil {
		return c.buryLost()
	}
	timer := time.NewTimer(exitTimeout)
	defer timer.Stop()
	select {
	case <-c.exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("kill %s: its processes are gone, its exit was not recorded within %s", c, exitTimeout)
	case <-ctx.Done():
		return fmt.Errorf("kill %s: wait for its exit: %w", c, context.Cause(ctx))
	}
}
