// Package systemd has the systemd that runs the host make scopes for processes, and forget units. It does not know
// containers, nor the cgroups behind units.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/crid/crid/internal/errdef"
)

const (
	// jobWait bounds a unit's start or stop. PID 1 answers nobody while it reloads thousands of units.
	jobWait = 30 * time.Second
	// jobCheck is how often it is looked whether a start is over whose signal may be lost, as when systemd executes itself
	// anew.
	jobCheck = time.Second
)

// bus is a connection to systemd; *dbus.Conn is one.
type bus interface {
	StartTransientUnitContext(ctx context.Context, name, mode string, properties []dbus.Property, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
	ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error)
	connection
}

type connection interface {
	GetManagerProperty(name string) (string, error)
	Connected() bool
	Close()
}

// Manager is the host's systemd. It connects when it is first asked for something, and anew when the bus has gone. It may be
// used concurrently.
type Manager struct {
	dial  func() (bus, error)
	holds func(pid int, unit string) bool // the process is in the unit

	mu   sync.Mutex // guards conn; held while it connects
	conn bus
}

// New returns the Manager of the systemd that runs the host. It does no I/O.
func New() *Manager {
	return &Manager{holds: holds, dial: func() (bus, error) {
		// The runtimes go by the system bus, too: a systemd without one is of no use. A context would end the connection.
		return dbus.NewSystemConnectionContext(context.Background())
	}}
}

// Close ends the connection. Repeatable; what is asked later connects anew.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	return nil
}

// connect returns the connection, a new one when that has ended.
func (m *Manager) connect() (bus, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	conn, err := inTime(m.dial)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd by the system bus: %w: %w", err, errdef.Unavailable)
	}
	m.conn = conn
	return conn, nil
}

// inTime gives up on a bus that takes connections and does not answer; one that comes late is closed.
func inTime(dial func() (bus, error)) (bus, error) {
	type answer struct {
		conn bus
		err  error
	}
	dialled := make(chan answer, 1)
	go func() { // ends with the bus
		conn, err := dial()
		dialled <- answer{conn, err}
	}()
	select {
	case a := <-dialled:
		return a.conn, a.err
	case <-time.After(dialWait):
		go func() { // ends with the bus
			if late := <-dialled; late.err == nil {
				late.conn.Close()
			}
		}()
		return nil, fmt.Errorf("it has not answered for %s", dialWait)
	}
}

// call calls do, a second time when the connection turns out to have ended before do was heard.
func (m *Manager) call(do func(bus) error) error {
	for again := false; ; again = true {
		conn, err := m.connect()
		if err != nil {
			return err
		}
		err = do(conn)
		if err == nil || again || conn.Connected() && !errors.Is(err, godbus.ErrClosed) {
			return err
		}
	}
}

// StartScope makes a transient scope in the slice, which is made as well where it is missing, and moves the process into
// it: it is there when StartScope returns. That is one call. A scope of that name that is ending is waited for; one
// that lives is errdef.Exists.
func (m *Manager) StartScope(ctx context.Context, name, slice string, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, jobWait)
	defer cancel()
	properties := []dbus.Property{
		dbus.PropDescription("crid: " + strings.TrimSuffix(name, ".scope")),
		dbus.PropSlice(slice),
		dbus.PropPids(uint32(pid)),
		// It must live until everything else has ended: no Conflicts=shutdown.target.
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		// All controllers, and nothing in it is stopped because the kernel has killed one of its processes.
		{Name: "Delegate", Value: godbus.MakeVariant(true)},
		// It does not stay behind when it has failed.
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
	}
	start := func() error { return m.start(ctx, name, properties, pid) }
	err := start()
	if errors.Is(err, errdef.Exists) {
		if err = m.Forget(ctx, name); err == nil {
			err = start()
		}
	}
	if err != nil {
		return fmt.Errorf("start unit %s: %w", name, err)
	}
	return nil
}

func (m *Manager) start(ctx context.Context, name string, properties []dbus.Property, pid int) error {
	ended := make(chan string, 1)
	err := m.call(func(b bus) error {
		_, err := b.StartTransientUnitContext(ctx, name, "fail", properties, ended)
		return err
	})
	if err != nil {
		return told(err)
	}
	tick := time.NewTicker(jobCheck)
	defer tick.Stop()
	for {
		select {
		case result := <-ended:
			if result != "done" {
				return fmt.Errorf("systemd says %q; systemctl status %s may tell more: %w", result, name, errdef.Unavailable)
			}
			return nil
		case <-tick.C:
			if m.holds(pid, name) {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("systemd has not done it: %w: %w", context.Cause(ctx), errdef.Unavailable)
		}
	}
}

// holds tells whether the process is in a cgroup of the unit.
func holds(pid int, unit string) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(raw)+"\n", "/"+unit+"\n")
}

// Forget stops the unit, whose processes the caller has ended, and has systemd forget that it failed: then it is gone. One
// that is not known is fine.
func (m *Manager) Forget(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, jobWait)
	defer cancel()
	ended := make(chan string, 1)
	err := told(m.call(func(b bus) error {
		_, err := b.StopUnitContext(ctx, name, "replace", ended)
		return err
	}))
	if errors.Is(err, errdef.NotFound) {
		return nil
	}
	if err == nil {
		err = m.awaitStop(ctx, name, ended)
	}
	if err == nil {
		err = told(m.call(func(b bus) error { return b.ResetFailedUnitContext(ctx, name) }))
	}
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return fmt.Errorf("stop unit %s: %w", name, err)
	}
	return nil
}

// awaitStop waits for the answer to a stop, or until systemd does not know the unit any more.
func (m *Manager) awaitStop(ctx context.Context, name string, ended <-chan string) error {
	tick := time.NewTicker(jobCheck)
	defer tick.Stop()
	for {
		select {
		case <-ended: // however: what has failed is reset
			return nil
		case <-tick.C:
			if known, err := m.List(ctx, name); err == nil && len(known) == 0 {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("systemd has not done it: %w: %w", context.Cause(ctx), errdef.Unavailable)
		}
	}
}

// List returns the names of the units that match the glob pattern and that systemd has loaded, in whatever state.
func (m *Manager) List(ctx context.Context, pattern string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, jobWait)
	defer cancel()
	var names []string
	err := m.call(func(b bus) error {
		units, err := b.ListUnitsByPatternsContext(ctx, nil, []string{pattern})
		for _, u := range units {
			if u.LoadState != "not-found" {
				names = append(names, u.Name)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list units %s: %w", pattern, told(err))
	}
	return names, nil
}

// told gives what systemd answers its kind.
func told(err error) error {
	var answer godbus.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &answer):
		return fmt.Errorf("%w: %w", err, errdef.Unavailable)
	case answer.Name == "org.freedesktop.systemd1.NoSuchUnit":
		return fmt.Errorf("%w: %w", err, errdef.NotFound)
	case answer.Name == "org.freedesktop.systemd1.UnitExists":
		return fmt.Errorf("%w: %w", err, errdef.Exists)
	}
	return err
}
