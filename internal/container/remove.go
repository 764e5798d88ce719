package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
)

// undoTimeout bounds the removal of one container, its kill included.
const undoTimeout = 2 * time.Minute

// errRemoved is why a creation ends when its container is to be removed.
var errRemoved = fmt.Errorf("%w: the container was removed", errdef.WrongState)

// Remove kills the container if need be, waits until its exit is on record, and erases all that there is of it,
// the record last. Concurrent calls share the outcome; ctx bounds the waiting alone. It may be repeated.
func (c *Container) Remove(ctx context.Context) error {
	return c.beginRemoval().wait(ctx)
}

// beginRemoval joins the removal in progress or begins one.
func (c *Container) beginRemoval() *flight {
	f, mine := c.takeRemoval()
	if mine && !c.m.crew.work(func(ctx context.Context) { c.runRemoval(ctx, f) }) {
		c.endRemoval(f, errClosing)
	}
	return f
}

// takeRemoval is the removal in progress; mine when there was none and the caller is to run it.
func (c *Container) takeRemoval() (f *flight, mine bool) {
	c.op.Lock()
	defer c.op.Unlock()
	if c.busy.removing != nil {
		return c.busy.removing, false
	}
	c.busy.removing = newFlight()
	return c.busy.removing, true
}

func (c *Container) runRemoval(ctx context.Context, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	c.endRemoval(f, c.remove(ctx))
}

func (c *Container) endRemoval(f *flight, err error) {
	if err != nil {
		c.op.Lock()
		c.busy.removing = nil // the next call tries again
		c.op.Unlock()
	}
	f.land(err)
}

func (c *Container) remove(ctx context.Context) (err error) {
	ctx, done := c.doing(ctx, opRemove)
	defer func() { done(err) }()
	if err := c.settleCreation(ctx, errRemoved); err != nil {
		return err
	}
	if err := c.Stop(ctx, 0); err != nil {
		return err
	}
	c.letGo.Store(true)
	reaped := c.reaped(ctx)
	if err := c.m.erase(ctx, remains{id: c.id, plan: c.plan, reaped: reaped, at: c.at}); err != nil {
		return fmt.Errorf("remove %s: %w", c, err)
	}
	c.m.forget(c)
	c.announce(event.Deleted)
	return nil
}

// reaped tells whether the runtime has dropped its state of the container in this run of crid.
func (c *Container) reaped(ctx context.Context) bool {
	c.op.Lock()
	f := c.busy.reaping
	c.op.Unlock()
	return f != nil && f.wait(ctx) == nil
}

// remains is what is left of a container. Of one without a readable record only the id is known.
type remains struct {
	id     string
	plan   Plan
	reaped bool                                                       // the runtime knows it no more
	at     func(ctx context.Context, op, step string) context.Context // is told each step; nil = nobody asks
}

// erase removes all that there is of a container, the record last. It is the one undo: of a failed creation,
// of Remove and of what is found at start-up. It stops at the first step that fails, since the next ones need
// it, and may be repeated.
func (m *Manager) erase(ctx context.Context, r remains) error {
	for _, step := range []struct {
		name string
		do   func(context.Context, remains) error
	}{
		// Without its configuration a runtime that is only just being started cannot create anything.
		{"disarm monitor", func(_ context.Context, r remains) error { return m.deps.Monitors.Disarm(r.id) }},
		{"kill processes", m.killBoth},
		{"delete runtime state", m.deleteState},
		{"remove monitor", func(ctx context.Context, r remains) error { return m.deps.Monitors.Remove(ctx, r.id) }},
		{"remove cgroups", m.removeCgroups},
		{"unmount image volumes", m.unmountImages},
		{"remove root filesystem", func(ctx context.Context, r remains) error { return m.deps.Rootfs.Remove(ctx, r.id) }},
		{"delete record", func(_ context.Context, r remains) error { return m.deps.Records.Delete(r.id) }},
	} {
		within := ctx
		if r.at != nil {
			within = r.at(ctx, opRemove, step.name)
		}
		if err := step.do(within, r); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// killBoth kills what is in the container's and in its monitor's cgroup.
func (m *Manager) killBoth(ctx context.Context, r remains) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	paths, err := m.cgroups(ctx, r)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := m.deps.Cgroups.Kill(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) removeCgroups(ctx context.Context, r remains) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	paths, err := m.cgroups(ctx, r)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := m.deps.Cgroups.Remove(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// cgroups is the container's leaf first: its monitor must not see the container end unattended. Where no record
// says which they are, they are looked for.
func (m *Manager) cgroups(ctx context.Context, r remains) ([]string, error) {
	if r.plan.Cgroup == "" {
		return m.deps.Cgroups.Find(ctx, r.id)
	}
	return []string{r.plan.Cgroup, r.plan.MonitorCgroup}, nil
}

// deleteState makes the runtime forget the container: the one that made it, or each one where that is unknown.
func (m *Manager) deleteState(ctx context.Context, r remains) error {
	if r.reaped {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reapTimeout)
	defer cancel()
	if r.plan.Handler != "" {
		h, ok := m.deps.Handlers[r.plan.Handler]
		if !ok {
			m.log.Warn("runtime state stays behind: its handler is no longer configured", "container", r.id, "handler", r.plan.Handler)
			return nil
		}
		return h.Runtime.Delete(ctx, r.id, true)
	}
	for name, h := range m.deps.Handlers {
		if err := h.Runtime.Delete(ctx, r.id, true); err != nil && !errors.Is(err, errdef.NotFound) {
			return fmt.Errorf("handler %s: %w", name, err)
		}
	}
	return nil
}
