package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// Standing is one container for whoever compares what crid knows with the machine.
type Standing = fact.Standing[Record]

// Standings returns all containers, pauses, those being created, being removed and without a readable record too. A
// container is among them before it has anything, and until it has nothing any more.
func (m *Manager) Standings() []Standing {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Standing, 0, len(m.byID))
	for id, c := range m.byID {
		s := Standing{ID: id, Broken: c.broken, Busy: c.inWork()}
		if c.broken == nil {
			s.Record = c.record(c.Status())
		}
		all = append(all, s)
	}
	return all
}

// VolumeIDs are the images that the container has as volumes.
func (p Plan) VolumeIDs() []string { return p.Volumes.ids() }

// inWork tells whether something is being done to the container. Who holds op does something.
func (c *Container) inWork() bool {
	if !c.op.TryLock() {
		return true
	}
	defer c.op.Unlock()
	b := &c.busy
	return c.stage.Load() != nil || b.starting != nil && b.starting.flying() || b.stopping != nil && b.stopping.flying() ||
		b.updating.flying() || b.reaping.flying() || b.removing.flying()
}

// flying tells whether the work is there and goes on.
func (f *flight) flying() bool {
	if f == nil {
		return false
	}
	select {
	case <-f.done:
		return false
	default:
		return true
	}
}

// Rewrite stores the record of the container again, whose file somebody took away.
func (m *Manager) Rewrite(id string) error {
	m.mu.RLock()
	c := m.byID[id]
	m.mu.RUnlock()
	if c == nil || c.broken != nil {
		return nil
	}
	c.op.Lock()
	defer c.op.Unlock()
	if s := c.Status(); c.busy.removing == nil && s.State != Creating {
		if err := m.deps.Records.Put(id, c.record(s)); err != nil {
			return fmt.Errorf("write the record of %s again: %w", c, err)
		}
	}
	return nil
}

// ReopenMissingLog makes the monitor write to a new file at the path of the log.
func (m *Manager) ReopenMissingLog(ctx context.Context, id string) error {
	c, err := m.Get(id)
	if errors.Is(err, errdef.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.ReopenLog(ctx)
}

// RemoveUnreadable removes the container if its record cannot be read, and kills it before that. One that another crid
// wrote stays: it may come back.
func (m *Manager) RemoveUnreadable(ctx context.Context, id string) error {
	m.mu.RLock()
	c := m.byID[id]
	m.mu.RUnlock()
	if c == nil || c.broken == nil || errors.Is(c.broken, errdef.Unsupported) {
		return nil
	}
	return c.Remove(ctx)
}
