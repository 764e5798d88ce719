package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
)

var (
	errInjected = errors.New("injected")
	errCrashed  = errors.New("crid is dead")
)

// host is all that a container touches, in one place: it counts the calls, fails those it is told to fail, and
// knows at the end what is left. It outlives the managers that use it, as a machine outlives crid.
type host struct {
	t   *testing.T
	dir string // records, logs, root filesystems, bundles

	mu       sync.Mutex
	calls    int
	wrong    func(n int, call string) verdict // what becomes of the n-th call
	mains    map[string]*mainProcess          // by container id
	cgroups  map[string]bool
	rootfs   map[string]bool
	images   imageState
	mounted  map[string]bool                 // of rootfs
	states   map[string]specs.ContainerState // what the runtime keeps
	pid      int
	starts   map[string]int // `start` calls that took effect, by container id
	script   script
	observed []string // violations of what must never happen
}

// script is how the processes of a test behave.
type script struct {
	ignoreTerm bool             // only SIGKILL ends them
	stubborn   bool             // not even that
	endAtStart *monitor.Exit    // the process ends as soon as it is started
	startError error            // the runtime's `start` answers this
	oomKills   uint64           // of every cgroup
	noCount    error            // there is no such count
	onSignal   func(sig string) // is told each signal
	limits     cgroup.Limits    // of every cgroup
	inUse      uint64           // bytes of memory, of every cgroup
}

type verdict int

const (
	right verdict = iota
	failBefore
	failAfter // the call takes effect and is reported to have failed
	crash     // the call never returns and has no effect
)

// mainProcess is a container's main process with its monitor.
type mainProcess struct {
	h         *host
	id, name  string
	cgroup    string
	monitor   string // the monitor's cgroup
	systemd   bool   // that made the cgroup
	ref       monitor.Ref
	alive     bool
	monitored bool          // the monitor lives
	over      chan struct{} // closed once exit is there to be read
	exit      monitor.Exit
	told      cgroup.Limits // what the runtime remembers of updates
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), pid: 1000}
	h.wipe()
	h.wrong = func(int, string) verdict { return right }
	return h
}

// wipe is what a reboot does. Root filesystems stay.
func (h *host) wipe() {
	h.mains, h.cgroups, h.states = map[string]*mainProcess{}, map[string]bool{}, map[string]specs.ContainerState{}
	h.starts, h.mounted, h.images = map[string]int{}, map[string]bool{}, imageState{mounted: map[string]bool{}}
	if h.rootfs == nil {
		h.rootfs = map[string]bool{}
	}
}

// session is one crid on the host: when it crashes, its calls have no effect any more.
type session struct {
	*host
	dead    chan struct{} // closed to let the calls of a crashed session return, at the end of a test
	crashed chan struct{} // closed by the crash
	once    *sync.Once
}

func (h *host) boot() session {
	return session{h, make(chan struct{}), make(chan struct{}), &sync.Once{}}
}

// do runs effect as one call of the host.
func (s session) do(call string, effect func() error) error {
	select {
	case <-s.crashed:
		<-s.dead
		return errCrashed
	default:
	}
	s.mu.Lock()
	s.calls++
	what := s.wrong(s.calls, call)
	defer s.mu.Unlock()
	switch what {
	case failBefore:
		return fmt.Errorf("%s: %w", call, errInjected)
	case crash:
		s.once.Do(func() { close(s.crashed) })
		s.mu.Unlock()
		<-s.dead
		s.mu.Lock()
		return errCrashed
	}
	err := effect()
	if what == failAfter {
		return errors.Join(err, fmt.Errorf("%s: %w", call, errInjected))
	}
	return err
}

// end is the end of a main process. The caller holds mu.
func (p *mainProcess) end(exit monitor.Exit) {
	if !p.alive {
		return
	}
	p.alive = false
	p.exit = exit
	p.exit.At = time.Now()
	if !p.monitored {
		p.exit = monitor.Exit{Code: 255, At: time.Now(), Lost: true, Message: "the monitor is gone"}
	}
	close(p.over)
}

// strike kills what is in a cgroup. The caller holds mu.
func (h *host) strike(path string) (survivor *mainProcess) {
	for _, p := range h.mains {
		switch {
		case p.cgroup == path && p.alive && h.script.stubborn:
			survivor = p
		case p.cgroup == path:
			p.end(monitor.Exit{Code: 137})
		case p.monitor == path:
			p.monitored = false
		}
	}
	return survivor
}

// --- the runtime

type fakeRuntime struct{ session }

func (f fakeRuntime) Config() oci.Config {
	return oci.Config{Name: "fake", Path: "/bin/fake", Root: "/run/fake"}
}

func (f fakeRuntime) Start(_ context.Context, id string) error {
	return f.do("runtime start", func() error {
		if f.states[id] != specs.StateCreated || f.mains[id] == nil || !f.mains[id].alive {
			return fmt.Errorf("cannot start a container that is %q", f.states[id])
		}
		if f.script.startError != nil {
			return f.script.startError
		}
		f.states[id] = specs.StateRunning
		f.starts[id]++
		if f.script.endAtStart != nil {
			f.mains[id].end(*f.script.endAtStart)
		}
		return nil
	})
}

func (f fakeRuntime) State(_ context.Context, id string) (specs.State, error) {
	var seen specs.State
	err := f.do("runtime state", func() error {
		status, ok := f.states[id]
		if !ok {
			return fmt.Errorf("state of %s: %w", id, errdef.NotFound)
		}
		seen = specs.State{ID: id, Status: status}
		return nil
	})
	return seen, err
}

func (f fakeRuntime) Delete(_ context.Context, id string, force bool) error {
	return f.do("runtime delete", func() error {
		if p := f.mains[id]; p != nil {
			if p.alive && (!force || f.strike(p.cgroup) != nil) {
				return fmt.Errorf("delete %s: it runs", id)
			}
			delete(f.cgroups, p.cgroup)
		}
		delete(f.states, id)
		return nil
	})
}

func (f fakeRuntime) Exec(ctx context.Context, id string, e oci.Exec) (oci.ExecResult, error) {
	if e.Process.Args[0] == "sleep" {
		<-ctx.Done()
		return oci.ExecResult{}, ctx.Err()
	}
	return oci.ExecResult{Stdout: []byte(strings.Join(e.Process.Args, " "))}, f.do("runtime exec", func() error {
		if f.states[id] != specs.StateRunning {
			return fmt.Errorf("exec in %s: it is %q", id, f.states[id])
		}
		return nil
	})
}

func (f fakeRuntime) Stream(ctx context.Context, id string, e oci.Exec, s oci.Streams) (int, error) {
	result, err := f.Exec(ctx, id, e)
	if err == nil {
		_, err = s.Stdout.Write(result.Stdout)
	}
	return result.ExitCode, err
}

// --- monitors

type fakeMonitors struct{ session }

func (f fakeMonitors) Start(_ context.Context, s monitor.Spec) (Process, monitor.Ref, error) {
	var p *mainProcess
	err := f.do("monitor start", func() error {
		var config specs.Spec
		if err := json.Unmarshal(s.Config, &config); err != nil {
			return err
		}
		for _, other := range f.mains {
			if other.alive && other.name == s.Name {
				f.observed = append(f.observed, fmt.Sprintf("%s and %s are both alive as %q", other.id, s.ID, s.Name))
			}
		}
		bundle := f.bundle(s.ID)
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			return err
		}
		f.pid += 2
		p = &mainProcess{h: f.host, id: s.ID, name: s.Name, cgroup: config.Linux.CgroupsPath, monitor: s.Cgroup, systemd: s.SystemdCgroup,
			ref:   monitor.Ref{PID: f.pid, Start: 1, MonitorPID: f.pid + 1, MonitorStart: 1},
			alive: true, monitored: true, over: make(chan struct{})}
		f.mains[s.ID] = p
		f.cgroups[p.cgroup], f.cgroups[p.monitor] = true, true
		f.states[s.ID] = specs.StateCreated
		return os.WriteFile(filepath.Join(bundle, "config.json"), s.Config, 0o600)
	})
	if err != nil {
		return nil, monitor.Ref{}, err
	}
	return fakeProcess{f.session, p}, p.ref, nil
}

func (h *host) bundle(id string) string { return filepath.Join(h.dir, "monitor", id) }

func (f fakeMonitors) Open(id string, ref monitor.Ref) (Process, error) {
	var p *mainProcess
	err := f.do("monitor open", func() error {
		p = f.mains[id]
		if p == nil || p.ref != ref {
			return fmt.Errorf("process of %s: %w", id, errdef.NotFound)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return fakeProcess{f.session, p}, nil
}

func (f fakeMonitors) Find(id string) (config []byte, about bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	config, err := os.ReadFile(filepath.Join(f.bundle(id), "config.json"))
	if err != nil {
		config = nil
	}
	p := f.mains[id]
	return config, p != nil && p.monitored
}

func (f fakeMonitors) Remove(_ context.Context, id string) error {
	return f.do("monitor remove", func() error {
		if p := f.mains[id]; p != nil {
			if p.alive {
				return fmt.Errorf("the container of monitor %s lives", id)
			}
			delete(f.mains, id)
		}
		return os.RemoveAll(f.bundle(id))
	})
}

func (f fakeMonitors) Disarm(id string) error {
	return f.do("monitor disarm", func() error {
		if err := os.Remove(filepath.Join(f.bundle(id), "config.json")); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}

type fakeProcess struct {
	session
	p *mainProcess
}

func (f fakeProcess) Bundle() string { return f.bundle(f.p.id) }

func (f fakeProcess) Alive() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.p.alive
}

func (f fakeProcess) Wait(ctx context.Context) (monitor.Exit, error) {
	if err := f.do("wait", func() error { return nil }); err != nil {
		return monitor.Exit{}, err
	}
	select {
	case <-f.p.over:
		return f.p.exit, nil
	case <-ctx.Done():
		return monitor.Exit{}, ctx.Err()
	}
}

func (f fakeProcess) Signal(sig syscall.Signal) error {
	return f.do("signal", func() error {
		if f.script.onSignal != nil {
			f.script.onSignal(sig.String())
		}
		if sig == syscall.SIGKILL && !f.script.stubborn || sig != syscall.SIGKILL && !f.script.ignoreTerm {
			f.p.end(monitor.Exit{Code: 128 + int(sig)})
		}
		return nil
	})
}

func (f fakeProcess) Attach(ctx context.Context, s monitor.Streams) error {
	_, err := f.Wait(ctx)
	return err
}

func (f fakeProcess) ReopenLog(context.Context) error {
	return f.do("reopen log", func() error { return nil })
}

// --- root filesystems, cgroups, records

type fakeRootfs struct{ session }

func (f fakeRootfs) Mount(_ context.Context, id, _ string, _ storage.Owner) (string, error) {
	dir := filepath.Join(f.dir, "rootfs", id)
	return dir, f.do("rootfs mount", func() error {
		f.rootfs[id], f.mounted[id] = true, true
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("web:x:33:34::/srv:\n"), 0o644)
	})
}

func (f fakeRootfs) Volume(_ context.Context, id, dest string, _ storage.Owner) (string, error) {
	dir := filepath.Join(f.dir, "volumes", id, dest)
	return dir, f.do("rootfs volume", func() error { return os.MkdirAll(dir, 0o755) })
}

func (f fakeRootfs) Unmount(id string) error {
	return f.do("rootfs unmount", func() error {
		if p := f.mains[id]; p != nil && p.alive {
			f.observed = append(f.observed, "the root filesystem of a living container was unmounted")
		}
		delete(f.mounted, id)
		return nil
	})
}

func (f fakeRootfs) Remove(_ context.Context, id string) error {
	return f.do("rootfs remove", func() error {
		if p := f.mains[id]; p != nil && p.alive {
			f.observed = append(f.observed, "the root filesystem of a living container was removed")
		}
		delete(f.rootfs, id)
		delete(f.mounted, id)
		return os.RemoveAll(filepath.Join(f.dir, "rootfs", id))
	})
}

func (f fakeRootfs) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.rootfs)), nil
}

type countedRecords struct {
	session
	dir *state.Dir[Record]
}

func (r countedRecords) Put(id string, rec Record) error {
	return r.do("record put "+string(rec.State), func() error { return r.dir.Put(id, rec) })
}

// Keep sees to it itself after an error, as a state.Dir does.
func (r countedRecords) Keep(id string, rec Record) error {
	err := r.do("record put "+string(rec.State), func() error { return r.dir.Put(id, rec) })
	if errors.Is(err, errInjected) {
		return errors.Join(err, r.dir.Put(id, rec))
	}
	return err
}

func (r countedRecords) Delete(id string) error {
	return r.do("record delete", func() error { return r.dir.Delete(id) })
}

func (r countedRecords) All() iter.Seq2[state.Entry[Record], error] { return r.dir.All() }
