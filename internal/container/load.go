package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci/spec"
)

const (
	// loaders bounds how many containers are looked at together.
	loaders = 32
	// buryTimeout is how long Load waits for a dead process's EXITED. Only where the monitor still writes the
	// log does it take longer than milliseconds.
	buryTimeout = time.Second
	// observeTimeout bounds the runtime's `state`.
	observeTimeout = 30 * time.Second
	// observeAgain is how soon a runtime that failed at it is asked again; each time later, up to observeTimeout.
	observeAgain = 200 * time.Millisecond
)

// Reasons that only a start of crid finds.
const reasonUnreadable = "RecordUnreadable"

// errNotStarted is how the look at a container that may have been started ends when it has not been.
var errNotStarted = errors.New("not started")

// Load takes up the containers that an earlier crid left: every record is read, every process opened, every
// exit found, before it returns; what has to be undone is undone behind it. Each error is about one container,
// which can still be removed. It is called once, before anything else.
func (m *Manager) Load(ctx context.Context) []error {
	var (
		mu    sync.Mutex // guards errs
		errs  []error
		wg    sync.WaitGroup
		slots = make(chan struct{}, loaders)
	)
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	for entry, err := range m.deps.Records.All() {
		if entry.ID == "" {
			err = fmt.Errorf("load containers: %w", err)
			m.blind = err
			fail(err)
			continue
		}
		slots <- struct{}{}
		wg.Go(func() { // ends by itself: all it waits for is bounded
			defer func() { <-slots }()
			if err == nil {
				err = m.adopt(ctx, entry.ID, entry.Record)
			} else {
				m.keepUnreadable(entry.ID, Key{}, err)
			}
			if err != nil {
				fail(fmt.Errorf("container %s: %w", entry.ID, err))
			}
		})
	}
	wg.Wait()
	return errs
}

// adopt makes a container of its record and finds out what became of it.
func (m *Manager) adopt(ctx context.Context, id string, rec Record) error {
	config, err := decodeConfig(rec.Config)
	if err == nil {
		err = rec.check()
	}
	if err != nil {
		m.keepUnreadable(id, rec.Key, err)
		return err
	}
	c := m.newContainer(id, rec.Plan, config)
	c.raw = rec.Config
	s := Status{Life: rec.Life, User: rec.User, ref: rec.Monitor, undo: rec.Undo, sent: syscall.Signal(rec.Sent)}
	if rec.Resources != nil {
		s.Resources = rec.Resources.LinuxContainerResources
	}
	if s.State == Created || s.State == Running {
		s.PID = s.ref.PID
	}
	c.publish(s)
	if other, mine := m.claim(c); !mine {
		err := fmt.Errorf("its record and that of %s name the same container: %w", other.id, errdef.Exists)
		m.keepUnreadable(id, rec.Key, fmt.Errorf("%w: %w", errdef.Unsupported, err))
		return err
	}
	switch {
	case rec.State == Exited:
		close(c.exited)
		return c.unmount() // crid may have ended before it came to that
	case rec.State == Creating:
		return c.abandon()
	case rec.BootID != m.deps.Host.BootID:
		return c.move(Exited, func(s *Status) {
			ended(s, monitor.Exit{Code: codeUnknown, At: time.Now(), Message: "the host went down while the container was " + string(rec.State)})
			s.Reason = ReasonReboot
		})
	}
	return c.resume(ctx)
}

// abandon undoes, behind Load, a creation that the end of crid has cut short.
func (c *Container) abandon() error {
	err := c.move(Exited, neverRan(ReasonCreate, errors.New("crid ended while the container was being created")))
	if err != nil {
		return err
	}
	c.beginRemoval()
	return nil
}

// resume watches a process again that should be there.
func (c *Container) resume(ctx context.Context) error {
	proc, err := c.m.deps.Monitors.Open(c.id, c.Status().ref)
	if err != nil {
		// What cannot be watched is ended: it must be neither RUNNING for ever nor started a second time.
		if _, stopErr := c.beginStop(0); stopErr != nil {
			return fmt.Errorf("%w; %w", err, stopErr)
		}
		return fmt.Errorf("its processes are killed because they cannot be watched: %w", err)
	}
	c.proc = proc
	alive, state := proc.Alive(), c.Status().State
	if alive && state == Created {
		c.observeStart()
	}
	c.m.crew.watch(c.watch)
	if !alive {
		c.awaitBurial(ctx)
		return nil
	}
	if c.doomed() {
		_, err := c.beginStop(0)
		c.awaitBurial(ctx)
		return err
	}
	undone := c.undoUpdate()
	if state == Running {
		return errors.Join(undone, c.killOrphans())
	}
	return undone
}

// awaitBurial gives the watcher the time to publish the exit of a process that is known to be dead, or dying.
func (c *Container) awaitBurial(ctx context.Context) {
	timer := time.NewTimer(buryTimeout)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// observeStart asks the runtime whether a container on record as created was started after all, in the moment
// before crid ended. Until the answer is there, it counts as being started.
func (c *Container) observeStart() {
	c.op.Lock()
	defer c.op.Unlock()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &starting{flight: newFlight(), ran: make(chan struct{}), cancel: cancel}
	begun := c.m.crew.work(func(life context.Context) {
		defer context.AfterFunc(life, func() { cancel(errClosing) })()
		err := c.observe(ctx)
		cancel(nil)
		c.op.Lock()
		c.busy.starting = nil
		c.op.Unlock()
		close(s.ran)
		s.land(err)
	})
	if begun {
		c.busy.starting = s
	}
}

// observe asks the runtime whether the container was started. One that fails is asked again: who takes a container that
// runs for one that does not would start it a second time, and end it when that fails.
func (c *Container) observe(ctx context.Context) error {
	ctx, done := c.m.crew.patient(ctx)
	defer done()
	for delay := observeAgain; ; delay *= 2 {
		err := c.observeOnce(ctx)
		if err == nil || errors.Is(err, errNotStarted) || errors.Is(err, errdef.NotFound) || delay > observeTimeout {
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
			c.m.log.Warn("the runtime is asked again", "container", c.id, "err", err)
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w; %w", err, context.Cause(ctx))
		}
	}
}

func (c *Container) observeOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	rt, err := c.runtime()
	if err != nil {
		return err
	}
	seen, err := rt.State(ctx, c.id)
	if err != nil {
		return fmt.Errorf("find out whether %s was started: %w", c, err)
	}
	if seen.Status != specs.StateRunning {
		return errNotStarted
	}
	return c.move(Running, func(s *Status) { s.StartedAt = time.Now() })
}

// buryLost publishes the exit of what could not be watched, once all its processes are dead.
func (c *Container) buryLost() error {
	err := c.move(Exited, func(s *Status) {
		ended(s, monitor.Exit{Code: codeUnknown, At: time.Now(), Lost: true,
			Message: "its processes could not be found again after a restart of crid, so all in its cgroup was killed"})
	})
	if err == nil {
		c.reap()
	}
	return err
}

// nameOnly is a container of which nothing but the id is known, and perhaps whose it is.
func (m *Manager) nameOnly(id string, key Key, cause error) *Container {
	c := m.newContainer(id, Plan{Key: key}, nil)
	c.broken = cause
	c.publish(Status{Life: Life{State: Exited, ExitCode: codeUnknown, Reason: reasonUnreadable, Message: cause.Error()}})
	close(c.exited)
	return c
}

// keepUnreadable makes a container known whose record cannot be read, so that it can be removed: by itself, or with its
// pod, which what it was created from names where the record does not. What is left of it is collected at once where that
// is safe: where its record is not merely of another crid, and no monitor of it is about.
func (m *Manager) keepUnreadable(id string, key Key, cause error) {
	config, about := m.deps.Monitors.Find(id)
	if key.PodID == "" {
		key = keyOf(config)
	}
	c := m.nameOnly(id, key, cause)
	m.mu.Lock()
	m.byID[id] = c
	m.join(c)
	m.mu.Unlock()
	if !about && !errors.Is(cause, errdef.Unsupported) {
		c.beginRemoval()
	}
}

// keyOf is what the configuration that a container was created from tells of its key: all but the attempt. It is zero when
// there is none.
func keyOf(config []byte) Key {
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(config, &s) != nil {
		return Key{}
	}
	return Key{PodID: s.Annotations[spec.AnnotationSandboxID], Name: s.Annotations[spec.AnnotationContainerName]}
}

// displace removes the containers of a pod without a readable record that may be the one of a key: nobody is told that
// they run, so who asks for the container again would have two of it.
func (m *Manager) displace(ctx context.Context, key Key) error {
	for _, c := range m.OfPod(key.PodID) {
		if !c.unreadable() || c.plan.Key.Name != key.Name {
			continue
		}
		if err := c.Remove(ctx); err != nil {
			return fmt.Errorf("make room for container %s: %w", key.Name, err)
		}
	}
	return nil
}

// Unreadable tells which records cannot be read, and what to do about each, for Status verbose, in no order. Their
// containers are not listed. It never waits.
func (m *Manager) Unreadable() []error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []error
	if m.blind != nil {
		all = append(all, m.blind)
	}
	for id, c := range m.byID {
		if c.unreadable() {
			rest := "it is nobody's"
			if c.PodID() != "" {
				rest = "it goes when pod " + c.PodID() + " is removed"
			}
			all = append(all, fmt.Errorf("container %s: %s, or with RemoveContainer or `crictl rm %s`: %s", id, rest, id, c.Status().Message))
		}
	}
	return all
}

// Collect removes what is left of containers that have no record: it was lost, or taken away while crid was not
// running. Their ids are those of root filesystems and what the functions of more find. Each error is about one
// of them, which is in Unreadable from then on, or about images that are mounted for no container and cannot be
// unmounted. It may run beside everything else, after Load.
func (m *Manager) Collect(ctx context.Context, more ...func() ([]string, error)) []error {
	var errs []error
	remain := map[string]bool{} // made before the look at the map: a container is in it before it has anything
	for _, list := range append(more, m.deps.Rootfs.List) {
		ids, err := list()
		if err != nil {
			errs = append(errs, fmt.Errorf("find what is left of containers: %w", err))
		}
		for _, id := range ids {
			remain[id] = true
		}
	}
	for id := range remain {
		c, mine := m.claimRemains(id)
		if !mine {
			continue
		}
		m.log.Info("removing what is left of a container that has no record", "container", id)
		if err := c.Remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove what is left of container %s: %w", id, err))
		}
	}
	if err := m.unmountUnused(ctx); err != nil {
		errs = append(errs, fmt.Errorf("unmount images that no container has as a volume: %w", err))
	}
	return errs
}

// claimRemains puts what is left of a container into the map, unless the id is that of a known one: nobody may begin to
// make one of this id, as a pod does for its pause, while it is removed.
func (m *Manager) claimRemains(id string) (c *Container, mine bool) {
	c = m.nameOnly(id, Key{}, fmt.Errorf("record of container %s: %w", id, errdef.NotFound))
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.byID[id]; known {
		return nil, false
	}
	m.byID[id] = c
	return c, true
}
