package container

import (
	"context"
	"fmt"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
)

// pauseName is what a pause is called where people look; its key has no name, as no client's container can.
const pauseName = "pause"

// PauseID is the id of the pause of a pod.
func PauseID(podID string) string { return podID + "-pause" }

// StartPause starts the process that holds a pod's shared PID namespace, once however many ask, and returns the
// path of that namespace. WrongState when the pod's pause has ended: nothing brings its namespace back.
func (m *Manager) StartPause(ctx context.Context, env spec.PodEnv) (pidns string, err error) {
	c, err := m.Create(ctx, Request{Key: Key{PodID: env.ID}, Pod: env, Pause: true, ID: PauseID(env.ID)})
	if err != nil {
		return "", err
	}
	if c.Status().State == Created {
		err = c.Start(ctx)
	}
	if s := c.Status(); s.State == Running {
		return c.pidns(), nil // also where another has started it meanwhile
	}
	if err == nil {
		err = fmt.Errorf("%s: %w: it has ended", c, errdef.WrongState)
	}
	return "", err
}

// FindPause tells what became of a pod's pause: started is false when none ever ran, dead is true when it ran
// and has ended, or when nobody can tell since its record cannot be read; otherwise pidns is the path of its PID namespace.
func (m *Manager) FindPause(podID string) (pidns string, started, dead bool) {
	m.mu.RLock()
	c := m.byID[PauseID(podID)]
	m.mu.RUnlock()
	if c == nil {
		return "", false, false
	}
	switch s := c.Status(); {
	case c.unreadable():
		return "", true, true
	case s.State == Running:
		return c.pidns(), true, false
	case s.State == Exited && !s.StartedAt.IsZero():
		return "", true, true
	}
	return "", false, false
}

func (c *Container) pidns() string { return fmt.Sprintf("/proc/%d/ns/pid", c.PID()) }
