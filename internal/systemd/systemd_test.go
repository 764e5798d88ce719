package systemd

import (
	"context"
	"errors"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"

	"github.com/crid/crid/internal/errdef"
)

// host plays PID 1: it has units, which outlive connections to it, and counts what it is asked.
type host struct {
	mu    sync.Mutex
	units map[string]*unit
	calls []string
	dials int
	props map[string]string // of the manager

	refuse  error  // answers every call
	result  string // of jobs
	mute    bool   // jobs are done and nobody is told
	stalled bool   // jobs are not done
}

type unit struct {
	pid    int
	slice  string
	failed bool
	props  map[string]godbus.Variant
}

// line is a connection to the host.
type line struct {
	*host
	cut bool
}

func newHost() *host {
	return &host{units: map[string]*unit{}, result: "done", props: map[string]string{"ControlGroup": `""`, "Version": `"257.13"`}}
}

func (h *host) manager() *Manager {
	return &Manager{
		dial: func() (bus, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.dials++
			return &line{host: h}, nil
		},
		holds: func(pid int, name string) bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.units[name] != nil && h.units[name].pid == pid
		},
	}
}

// called enters a call; the answer to it is an error where there is to be one.
func (l *line) called(call, name string) error {
	l.calls = append(l.calls, call+" "+name)
	if l.cut {
		return godbus.ErrClosed
	}
	return l.refuse
}

func answer(name string) error { return godbus.Error{Name: "org.freedesktop.systemd1." + name} }

func (l *line) StartTransientUnitContext(_ context.Context, name, mode string, properties []dbus.Property, ch chan<- string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.called("start", name); err != nil {
		return 0, err
	}
	if l.units[name] != nil {
		return 0, answer("UnitExists")
	}
	u := &unit{props: map[string]godbus.Variant{}}
	for _, p := range properties {
		u.props[p.Name] = p.Value
	}
	u.pid, u.slice = int(u.props["PIDs"].Value().([]uint32)[0]), u.props["Slice"].Value().(string)
	l.end(ch, func() { l.units[name] = u })
	return 1, nil
}

// end does the job, unless it is to fail, and tells. The caller holds mu.
func (l *line) end(ch chan<- string, do func()) {
	if l.stalled {
		return
	}
	if l.result == "done" {
		do()
	}
	if !l.mute {
		ch <- l.result
	}
}

func (l *line) StopUnitContext(_ context.Context, name, mode string, ch chan<- string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.called("stop", name); err != nil {
		return 0, err
	}
	u := l.units[name]
	if u == nil {
		return 0, answer("NoSuchUnit")
	}
	l.end(ch, func() {
		if !u.failed {
			delete(l.units, name)
		}
	})
	return 1, nil
}

func (l *line) ResetFailedUnitContext(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.called("reset", name); err != nil {
		return err
	}
	if l.units[name] == nil {
		return answer("NoSuchUnit")
	}
	if l.units[name].failed {
		delete(l.units, name)
	}
	return nil
}

func (l *line) ListUnitsByPatternsContext(_ context.Context, _, patterns []string) ([]dbus.UnitStatus, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.called("list", patterns[0]); err != nil {
		return nil, err
	}
	found := []dbus.UnitStatus{{Name: "crid-ghost.scope", LoadState: "not-found"}}
	for name := range l.units {
		if ok, err := path.Match(patterns[0], name); err == nil && ok {
			found = append(found, dbus.UnitStatus{Name: name, LoadState: "loaded"})
		}
	}
	return found, nil
}

func (l *line) GetManagerProperty(name string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.props[name], l.called("get", name)
}

func (l *line) Connected() bool { return !l.cut }
func (l *line) Close()          { l.cut = true }

const scope, slice = "crid-mon-a.scope", "kubepods-podx.slice"

func TestAScopeIsOneCall(t *testing.T) {
	h := newHost()
	m := h.manager()
	if err := m.StartScope(t.Context(), scope, slice, 42); err != nil {
		t.Fatal(err)
	}
	u := h.units[scope]
	if u == nil || u.pid != 42 || u.slice != slice {
		t.Fatalf("the unit is %+v", u)
	}
	for name, want := range map[string]any{"DefaultDependencies": false, "Delegate": true, "CollectMode": "inactive-or-failed"} {
		if got := u.props[name].Value(); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if len(h.calls) != 1 || h.dials != 1 {
		t.Errorf("%d connections, calls %q: want one of each", h.dials, h.calls)
	}
}

func TestAScopeThatStandsInTheWayGoes(t *testing.T) {
	h := newHost()
	h.units[scope] = &unit{pid: 7, failed: true}
	if err := h.manager().StartScope(t.Context(), scope, slice, 42); err != nil {
		t.Fatal(err)
	}
	if h.units[scope].pid != 42 {
		t.Errorf("process %d is in the scope, want 42", h.units[scope].pid)
	}
}

func TestALostSignalIsNotWaitedFor(t *testing.T) {
	h := newHost()
	h.mute = true
	m := h.manager()
	if err := m.StartScope(t.Context(), scope, slice, 42); err != nil {
		t.Errorf("start: %v", err)
	}
	if err := m.Forget(t.Context(), scope); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestWhatSystemdCannotDoIsTold(t *testing.T) {
	h := newHost()
	h.result = "failed"
	if err := h.manager().StartScope(t.Context(), scope, slice, 1); !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), scope) {
		t.Errorf("a job that failed: %v", err)
	}
	h.result, h.stalled = "done", true
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := h.manager().StartScope(ctx, scope, slice, 1); !errors.Is(err, errdef.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a job that hangs: %v", err)
	}
	h.stalled, h.refuse = false, errors.New("no")
	if err := h.manager().Forget(t.Context(), scope); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("a call that is refused: %v", err)
	}
}

func TestForgetLeavesNothing(t *testing.T) {
	h := newHost()
	h.units = map[string]*unit{"lives.scope": {}, "failed.scope": {failed: true}}
	m := h.manager()
	for _, name := range []string{"lives.scope", "failed.scope", "never.scope", "failed.scope"} {
		if err := m.Forget(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(h.units) > 0 {
		t.Errorf("left: %v", h.units)
	}
}

func TestListNamesWhatIsLoaded(t *testing.T) {
	h := newHost()
	h.units = map[string]*unit{scope: {}, "other.scope": {}}
	names, err := h.manager().List(t.Context(), "crid-*.scope")
	if err != nil || len(names) != 1 || names[0] != scope {
		t.Errorf("got %q, %v", names, err)
	}
}

func TestABusThatComesBack(t *testing.T) {
	h := newHost()
	m := h.manager()
	if err := m.StartScope(t.Context(), scope, slice, 1); err != nil {
		t.Fatal(err)
	}
	m.conn.(*line).cut = true
	if err := m.Forget(t.Context(), scope); err != nil || h.dials != 2 {
		t.Errorf("after the bus was gone: %v, %d connections", err, h.dials)
	}
	if err := m.Close(); err != nil || m.conn != nil {
		t.Errorf("close: %v", err)
	}
	h.mu.Lock()
	m.dial = func() (bus, error) { return nil, errors.New("no such socket") }
	h.mu.Unlock()
	if _, err := m.List(t.Context(), "*"); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("without a bus: %v", err)
	}
}

func TestProbeAsksWhereUnitsAre(t *testing.T) {
	h := newHost()
	version, err := h.manager().ask()
	if err != nil || version != "systemd 257.13" {
		t.Errorf("got %q, %v", version, err)
	}
	h.props["ControlGroup"] = `"/docker/abc"`
	if _, err := h.manager().ask(); !errors.Is(err, errdef.Unsupported) {
		t.Errorf("systemd in a container: %v", err)
	}
}
