package container

import (
	"context"
	"fmt"
	"time"

	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/step"
)

const (
	// killTimeout bounds the wait for killed processes to be gone. Only one that sleeps in the kernel needs
	// longer than milliseconds.
	killTimeout = 10 * time.Second
	// exitTimeout bounds the wait for EXITED once all processes are gone: the monitor has eight for the log.
	exitTimeout = 15 * time.Second
	// reapTimeout bounds the runtime's `delete`.
	reapTimeout = time.Minute
	// settleTimeout is how long a runtime's `start` may go on once the process is known to be dead.
	settleTimeout = 5 * time.Second
)

// watch waits for the container's exit and publishes it. One watcher runs for each process that was found
// alive or not looked at yet; it ends with the process, or with crid.
func (c *Container) watch(ctx context.Context) {
	exit, err := c.proc.Wait(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		exit = monitor.Exit{Code: codeUnknown, At: time.Now(), Lost: true, Message: err.Error()}
	}
	c.finish(context.WithoutCancel(ctx), exit)
}

// finish publishes EXITED. Before that nothing of the container may run any more: where it has no PID
// namespace of its own, the end of its main process does not end the others.
func (c *Container) finish(ctx context.Context, exit monitor.Exit) {
	ctx, end := c.m.deps.Steps.Begin(ctx, step.Step{Kind: step.Container, Verb: opExit, ID: c.id})
	killing, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := c.m.deps.Cgroups.Kill(killing, c.plan.Cgroup); err != nil {
		c.m.log.Warn("processes outlive their container", "container", c.id, "err", err)
		exit.Message = join(exit.Message, err.Error())
	}
	exit.OOM = c.outOfMemory(exit)
	err := c.publishExit(exit)
	end(err)
	if err != nil {
		c.m.log.Warn("an exit came too late", "container", c.id, "err", err)
		return
	}
	c.reap()
	if tell := c.m.pauseExit.Load(); c.plan.Pause && tell != nil {
		(*tell)(c.PodID())
	}
}

// publishExit moves to EXITED, after a start in progress has said whether the process ever ran.
func (c *Container) publishExit(exit monitor.Exit) error {
	for {
		c.op.Lock()
		s := c.busy.starting
		if s == nil || s.over() {
			break
		}
		c.op.Unlock()
		s.settle()
	}
	defer c.op.Unlock()
	s := c.busy.starting
	return c.moveLocked(Exited, func(next *Status) {
		if s != nil && s.err != nil && next.State == Created {
			neverRan(ReasonStartError, s.err)(next)
			return
		}
		ended(next, exit)
	})
}

func (s *starting) over() bool {
	select {
	case <-s.ran:
		return true
	default:
		return false
	}
}

// settle waits for the runtime's answer to a start whose process is dead, and does not wait long.
func (s *starting) settle() {
	timer := time.AfterFunc(settleTimeout, func() { s.cancel(fmt.Errorf("the process is gone")) })
	defer timer.Stop()
	<-s.ran
}

// ended writes down how a process ended.
func ended(s *Status, exit monitor.Exit) {
	s.PID = 0
	s.FinishedAt = exit.At
	for _, before := range []time.Time{s.CreatedAt, s.StartedAt} {
		if s.FinishedAt.Before(before) {
			s.FinishedAt = before // file times come from a coarser clock
		}
	}
	s.ExitCode, s.Message = int32(exit.Code), exit.Message
	switch {
	case exit.OOM:
		s.Reason = ReasonOOMKilled
	case exit.Lost:
		s.Reason = ReasonUnrecorded
	case exit.Code == 0:
		s.Reason = ReasonCompleted
	default:
		s.Reason = ReasonError
	}
}

// reap lets the runtime drop its state of an exited container, and with it the cgroup, and unmounts the root
// filesystem: each mount slows the start of every other container. Nobody waits for it but removal, which joins.
func (c *Container) reap() {
	rt, err := c.runtime()
	if err != nil {
		return // erase says so
	}
	c.op.Lock()
	defer c.op.Unlock()
	f := newFlight()
	begun := c.m.crew.work(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, reapTimeout)
		defer cancel()
		err := rt.Delete(ctx, c.id, true)
		if err := c.unmount(); err != nil {
			c.m.log.Warn("an exited container keeps its root filesystem mounted until it is removed", "container", c.id, "err", err)
		}
		f.land(err)
	})
	if begun {
		c.busy.reaping = f
	}
}

// unmount takes away the mount that only a process needs. A pause has none.
func (c *Container) unmount() error {
	if c.plan.Pause {
		return nil
	}
	return c.m.deps.Rootfs.Unmount(c.id)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
