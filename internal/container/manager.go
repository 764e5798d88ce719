package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crid/crid/internal/errdef"
)

// Manager knows every container.
type Manager struct {
	deps     Deps
	log      *slog.Logger
	crew     *crew
	profiles profiles

	pauseExit atomic.Pointer[func(podID string)]
	blind     error // why Load has seen no records; written by Load alone, which nothing runs beside

	mu    sync.RWMutex // guards the maps; held for their access only
	byID  map[string]*Container
	byKey map[Key]*Container
	byPod map[string]map[string]*Container
}

// New makes a manager without containers; Load finds those that are there.
func New(deps Deps) *Manager {
	return &Manager{
		deps:  deps,
		log:   deps.Log,
		crew:  newCrew(),
		byID:  map[string]*Container{},
		byKey: map[Key]*Container{},
		byPod: map[string]map[string]*Container{},
	}
}

// Hurry ends what only waits, since crid is to end: a stop that waits for a grace leaves its container as it is,
// commands of Exec are killed; whoever asked gets Unavailable. Everything else goes on. It may be repeated.
func (m *Manager) Hurry() { m.crew.hurry() }

// Close ends the watching of containers, which run on, and does what Hurry does; it waits for creations, starts,
// stops and removals in hand until ctx ends. No more are begun.
func (m *Manager) Close(ctx context.Context) error { return m.crew.close(ctx) }

// OnPauseExit names who is told, with the pod's id, that a pod's pause has exited, whatever the cause. f must
// not wait for that pod's containers.
func (m *Manager) OnPauseExit(f func(podID string)) { m.pauseExit.Store(&f) }

// Get finds a container by its id or by a prefix of it that no other has: NotFound, or Invalid for a prefix of
// several. A container that is still being created is not found, nor is a pause.
func (m *Manager) Get(id string) (*Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c, ok := m.byID[id]; ok && c.named() {
		return c, nil
	}
	var found *Container
	for known, c := range m.byID {
		if id == "" || !strings.HasPrefix(known, id) || !c.named() {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("container %s: %w: several ids begin so", id, errdef.Invalid)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("container %s: %w", id, errdef.NotFound)
	}
	return found, nil
}

// List is the containers that clients may know of: none that is still being created, no pauses.
func (m *Manager) List() []*Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]*Container, 0, len(m.byID))
	for _, c := range m.byID {
		if c.listed() {
			list = append(list, c)
		}
	}
	return list
}

// named tells whether clients may speak of the container.
func (c *Container) named() bool { return !c.plan.Pause && c.Status().State != Creating }

// unreadable tells whether the id is all that is known of the container.
func (c *Container) unreadable() bool { return c.broken != nil }

func (c *Container) listed() bool {
	return !c.unreadable() && c.named()
}

// OfPod is all containers of a pod: those being created, the pause, and those without a readable record too.
func (m *Manager) OfPod(podID string) []*Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Values(m.byPod[podID]))
}

// ImageUsers is the ids of the containers that are made of an image or have it as a volume, exited ones and those
// being created included.
func (m *Manager) ImageUsers(imageID string) []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var users []string
	for id, c := range m.byID {
		if c.plan.ImageID == imageID || c.plan.Volumes.have(imageID) {
			users = append(users, id)
		}
	}
	return users
}

// StopPod kills all containers of a pod at once, those being created included. It may be repeated.
func (m *Manager) StopPod(ctx context.Context, podID string) error {
	return m.eachOfPod(podID, func(c *Container) error { return c.Stop(ctx, 0) })
}

// RemovePod kills and removes all containers of a pod at once. It may be repeated.
func (m *Manager) RemovePod(ctx context.Context, podID string) error {
	return m.eachOfPod(podID, func(c *Container) error { return c.Remove(ctx) })
}

func (m *Manager) eachOfPod(podID string, do func(*Container) error) error {
	all := m.OfPod(podID)
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() { errs[i] = do(c) }) // ends with the caller's context
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Operation is something that is being done to a container.
type Operation struct {
	PodID, ContainerID string
	Stage              string // the step it has come to
	Since              time.Time
}

// InFlight is what is being done to containers now.
func (m *Manager) InFlight() []Operation {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var ops []Operation
	for id, c := range m.byID {
		if at := c.stage.Load(); at != nil {
			ops = append(ops, Operation{PodID: c.PodID(), ContainerID: id, Stage: at.name, Since: at.since})
		}
	}
	return ops
}

// claim puts c into the maps, unless another container has its key or id: then it returns that one.
func (m *Manager) claim(c *Container) (holder *Container, mine bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other, ok := m.byKey[c.plan.Key]; ok {
		return other, false
	}
	if other, ok := m.byID[c.id]; ok {
		return other, false
	}
	m.byID[c.id] = c
	m.byKey[c.plan.Key] = c
	m.join(c)
	return c, true
}

// join puts c with its pod, if that is known. mu is held.
func (m *Manager) join(c *Container) {
	if c.PodID() == "" {
		return
	}
	pod := m.byPod[c.PodID()]
	if pod == nil {
		pod = map[string]*Container{}
		m.byPod[c.PodID()] = pod
	}
	pod[c.id] = c
}

// forget takes c out of the maps.
func (m *Manager) forget(c *Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, c.id)
	if m.byKey[c.plan.Key] == c {
		delete(m.byKey, c.plan.Key)
	}
	pod := m.byPod[c.PodID()]
	delete(pod, c.id)
	if len(pod) == 0 {
		delete(m.byPod, c.PodID())
	}
}
