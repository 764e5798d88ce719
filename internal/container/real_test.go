package container

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	hostroom "github.com/crid/crid/internal/host"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/pause"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
	"github.com/crid/crid/test/bundle"
	"github.com/crid/crid/test/isolate"
)

func TestMain(m *testing.M) { isolate.Tests(m.Run) }

// machine is the real parts that containers are made of: a runtime, conmon, cgroups. Only root filesystems are
// plain directories, and there are no images.
type machine struct {
	t        *testing.T
	dir      string
	handler  string
	launcher *monitor.Launcher
	tree     *cgroup.Tree
	host     fact.Host
}

// eachRuntime runs test with each runtime, and then looks for what is left.
func eachRuntime(t *testing.T, test func(t *testing.T, h *machine)) {
	isolate.NeedRoot(t, "it makes containers")
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { test(t, newMachine(t, name)) })
	}
}

func newMachine(t *testing.T, handler string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp(isolate.Scratch(), "machine-")
	if err != nil {
		t.Fatal(err)
	}
	found, err := hostroom.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if found.Cgroup == fact.CgroupHybrid {
		found.Cgroup = fact.CgroupV1 // isolate hides its v2 hierarchy
	}
	tree, err := cgroup.Open(found)
	if err != nil {
		t.Fatal(err)
	}
	h := &machine{t: t, dir: dir, handler: handler, tree: tree, host: found}
	t.Cleanup(h.wantNothingLeft)
	return h
}

func (h *machine) wantNothingLeft() {
	for _, dir := range []string{"records", "monitor", "exits", "rootfs", "runtime"} {
		entries, err := os.ReadDir(filepath.Join(h.dir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Error(err)
		}
		for _, e := range entries {
			if e.Name() != state.ReserveName {
				h.t.Errorf("left behind: %s/%s", dir, e.Name())
			}
		}
	}
	if left, err := isolate.Cgroups(isolate.CgroupParent()); err != nil || len(left) > 0 {
		h.t.Errorf("left behind: cgroups %q, %v", left, err)
	}
}

type realMonitors struct{ *monitor.Launcher }

func (r realMonitors) Start(ctx context.Context, s monitor.Spec) (Process, monitor.Ref, error) {
	p, err := r.Launcher.Start(ctx, s)
	if err != nil {
		return nil, monitor.Ref{}, err
	}
	return p, p.Ref(), nil
}

func (r realMonitors) Open(id string, ref monitor.Ref) (Process, error) {
	return r.Launcher.Open(id, ref)
}

// plainRootfs makes root filesystems of busybox.
type plainRootfs struct{ dir string }

func (p plainRootfs) Mount(_ context.Context, id, _ string, _ storage.Owner) (string, error) {
	dir := filepath.Join(p.dir, id)
	return dir, bundle.Rootfs(dir)
}
func (p plainRootfs) Volume(context.Context, string, string, storage.Owner) (string, error) {
	return "", errors.New("there are no volumes here")
}
func (p plainRootfs) Unmount(string) error { return nil }
func (p plainRootfs) Remove(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(p.dir, id))
}
func (p plainRootfs) List() ([]string, error) { return nil, nil }

type noImages struct{}

func (noImages) Hold(context.Context, string) (func(), error)       { return func() {}, nil }
func (noImages) Permit(context.Context, storage.Use) error          { return nil }
func (noImages) Mount(context.Context, string) (string, error)      { return "", os.ErrNotExist }
func (noImages) Unmount(context.Context, string, func() bool) error { return nil }
func (noImages) List() ([]string, error)                            { return nil, nil }

// open starts a crid's room of containers on the machine; closing it leaves the containers alone.
func (h *machine) open() (m *Manager, end func()) {
	h.t.Helper()
	path, err := exec.LookPath(h.handler)
	if err != nil {
		h.t.Fatalf("%v: install the package %s", err, h.handler)
	}
	conmon, err := exec.LookPath("conmon")
	if err != nil {
		h.t.Fatalf("%v: install the package conmon", err)
	}
	records, err := state.Open[Record](filepath.Join(h.dir, "records"), RecordVersion)
	if err != nil {
		h.t.Fatal(err)
	}
	rt := oci.New(oci.Config{Name: h.handler, Path: path, Root: filepath.Join(h.dir, "runtime"), Cgroups: h.tree})
	found, err := rt.Probe(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	launcher := monitor.New(monitor.Config{Path: conmon, Dir: filepath.Join(h.dir, "monitor"),
		ExitDir: filepath.Join(h.dir, "exits"), Explain: oci.Explain}, cgroup.NewDriver(h.tree, nil))
	pauseRoot := filepath.Join(h.dir, "pause")
	if err := pause.Install(pauseRoot); err != nil {
		h.t.Fatal(err)
	}
	m = New(Deps{
		Handlers:  map[string]Handler{h.handler: {Fact: found, Runtime: rt}},
		Monitors:  realMonitors{launcher},
		Rootfs:    plainRootfs{filepath.Join(h.dir, "rootfs")},
		Images:    noImages{},
		Volumes:   noImages{},
		Cgroups:   cgroup.NewDriver(h.tree, nil),
		Limits:    h.tree,
		Records:   records,
		Events:    event.New[event.Event](64),
		Additions: plainHost(),
		Host:      h.host,
		Log:       slog.Default(),
		Options:   Options{ImageVolumes: VolumesBind, PauseRoot: pauseRoot},
	})
	return m, func() {
		closeManager(h.t, m)
		if err := errors.Join(launcher.Close(), records.Close()); err != nil {
			h.t.Error(err)
		}
	}
}

func (h *machine) pod() spec.PodEnv {
	return spec.PodEnv{ID: testPod, Handler: h.handler, CgroupParent: isolate.CgroupParent(),
		Config: &runtime.PodSandboxConfig{LogDirectory: filepath.Join(h.dir, "logs"), Metadata: &runtime.PodSandboxMetadata{Name: "p"}}}
}

func (h *machine) request(name string, command ...string) Request {
	return Request{
		Key: Key{PodID: testPod, Name: name},
		Pod: h.pod(),
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name},
			LogPath:  name + ".log",
			Command:  command,
			Linux: &runtime.LinuxContainerConfig{
				Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
				SecurityContext: &runtime.LinuxContainerSecurityContext{
					NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
					Seccomp:          &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
				}},
		},
	}
}

func (h *machine) log(name string) string {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.dir, "logs", name+".log"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(raw)
}

func (h *machine) removeAll(m *Manager) {
	h.t.Helper()
	if err := m.RemovePod(h.t.Context(), testPod); err != nil {
		h.t.Error(err)
	}
}

func TestRealLife(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		defer end()
		c := mustStart(t, m, h.request("web", "sh", "-c", "echo begun; trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done"))
		out, err := c.Exec(t.Context(), []string{"sh", "-c", "cat /proc/1/cmdline; exit 5"}, 10*time.Second, 1000)
		if err != nil || out.ExitCode != 5 || !strings.Contains(string(out.Stdout), "begun") {
			t.Errorf("exec: %+v, %v", out, err)
		}
		if err := os.Rename(c.Status().LogPath, c.Status().LogPath+".1"); err != nil {
			t.Error(err)
		}
		if err := c.ReopenLog(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Stop(t.Context(), 10*time.Second); err != nil {
			t.Error(err)
		}
		if s := c.Status(); s.State != Exited || s.ExitCode != 3 || s.Reason != ReasonError {
			t.Errorf("got %+v", s.Life)
		}
		if log := h.log("web"); !strings.Contains(log, "stdout F asked") || strings.Contains(log, "begun") {
			t.Errorf("log %q", log)
		}
		h.removeAll(m)
	})
}

func TestRealExits(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		for _, c := range []struct {
			name    string
			command []string
			reason  string
			code    int32
		}{
			{"completed", []string{"true"}, ReasonCompleted, 0},
			{"failed", []string{"sh", "-c", "exit 9"}, ReasonError, 9},
			{"memory", []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=100M"}, ReasonOOMKilled, 137},
		} {
			web := mustStart(t, m, h.request(c.name, c.command...))
			<-web.exited
			if s := web.Status(); s.Reason != c.reason || s.ExitCode != c.code {
				t.Errorf("%s: %+v", c.name, s.Life)
			}
		}
		none, err := m.Create(t.Context(), h.request("none", "/no/such/program"))
		if err == nil {
			err = none.Start(t.Context())
			if s := none.Status(); s.State != Exited || s.ExitCode != 128 || s.Reason != ReasonStartError {
				t.Errorf("a program that does not exist: %+v", s.Life)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "no such") && !strings.Contains(err.Error(), "not found") {
			t.Errorf("a program that does not exist: %v", err)
		}
	})
}

func TestRealProcessesDoNotOutliveTheirContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		r := h.request("web", "sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & exit 0")
		pidMode(&r, runtime.NamespaceMode_NODE)
		c := mustStart(t, m, r)
		<-c.exited
		if pids, err := h.tree.Pids(c.Cgroup()); err != nil || len(pids) > 0 {
			t.Errorf("EXITED is published while %v live, %v", pids, err)
		}
		if s := c.Status(); s.Reason != ReasonCompleted {
			t.Errorf("got %+v", s.Life)
		}
	})
}

func TestRealRestart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		old := mustStart(t, m, h.request("web", "sh", "-c", "sleep 1000 & trap 'exit 4' TERM; while :; do sleep 0.1; done"))
		short := mustStart(t, m, h.request("short", "sleep", "0.3"))
		orphan := h.hangingExec(old)
		end()
		m, end = h.open()
		defer end()
		if errs := m.Load(t.Context()); len(errs) > 0 {
			t.Error(errs)
		}
		c := loaded(t, m, old)
		wantState(t, c, Running)
		if r := <-orphan; r.ExitCode != 137 {
			t.Errorf("the exec of a former crid ended by itself: %+v", r)
		}
		<-loaded(t, m, short).exited
		if s := loaded(t, m, short).Status(); s.Reason != ReasonCompleted {
			t.Errorf("got %+v", s.Life)
		}
		out, err := c.Exec(t.Context(), []string{"ps"}, 10*time.Second, 10000)
		if err != nil || !strings.Contains(string(out.Stdout), "sleep 1000") {
			t.Errorf("ps: %s, %v", out.Stdout, err)
		}
		if err := c.Stop(t.Context(), 10*time.Second); err != nil || c.Status().ExitCode != 4 {
			t.Errorf("stop: %v, %+v", err, c.Status().Life)
		}
		h.removeAll(m)
	})
}

// A crid that dies while it kills leaves the container frozen with the signal waiting: neither running nor ended.
func TestRealKillCutShort(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		old := mustStart(t, m, h.request("web", "sleep", "1000"))
		freezer, frozen := filepath.Join("/sys/fs/cgroup/freezer", old.Cgroup(), "freezer.state"), "FROZEN"
		if _, err := os.Stat(freezer); errors.Is(err, os.ErrNotExist) { // v2
			freezer, frozen = filepath.Join("/sys/fs/cgroup", old.Cgroup(), "cgroup.freeze"), "1"
		}
		if err := os.WriteFile(freezer, []byte(frozen), 0); err != nil {
			t.Fatal(err)
		}
		if err := old.proc.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		end()
		m, end = h.open()
		defer end()
		if errs := m.Load(t.Context()); len(errs) > 0 {
			t.Error(errs)
		}
		c := loaded(t, m, old)
		<-c.exited
		if s := c.Status(); s.ExitCode != 137 {
			t.Errorf("got %+v", s.Life)
		}
		h.removeAll(m)
	})
}

// hangingExec starts an exec that does not end with its manager, as that of a crid that is killed, and returns once
// its command runs.
func (h *machine) hangingExec(c *Container) <-chan oci.ExecResult {
	h.t.Helper()
	fifo := filepath.Join(h.dir, "rootfs", c.ID(), "tmp", "up")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		h.t.Fatal(err)
	}
	rt, err := c.runtime()
	if err != nil {
		h.t.Fatal(err)
	}
	template, err := c.execTemplate()
	if err != nil {
		h.t.Fatal(err)
	}
	command := spec.ExecProcess(&specs.Spec{Process: template}, []string{"sh", "-c", "echo > /tmp/up; exec sleep 2000"}, false)
	ended := make(chan oci.ExecResult, 1)
	go func() { // ends when the command is killed
		r, err := rt.Exec(context.Background(), c.ID(), oci.Exec{Process: command, Limit: 100, Cgroup: c.Cgroup()})
		if err != nil {
			h.t.Error(err)
		}
		ended <- r
	}()
	if _, err := os.ReadFile(fifo); err != nil {
		h.t.Fatal(err)
	}
	return ended
}

func TestRealSharedPIDs(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		exited := make(chan string, 1)
		m.OnPauseExit(func(podID string) { exited <- podID })
		env := h.pod()
		var err error
		if env.PIDNS, err = m.StartPause(t.Context(), env); err != nil {
			t.Fatal(err)
		}
		r := h.request("web", "sleep", "1000")
		pidMode(&r, runtime.NamespaceMode_POD)
		r.Pod = env
		web := mustStart(t, m, r)
		debug := h.request("debug", "sleep", "3000")
		pidMode(&debug, runtime.NamespaceMode_TARGET).TargetId = web.ID()
		c := mustStart(t, m, debug)
		out, err := c.Exec(t.Context(), []string{"ps"}, 10*time.Second, 10000)
		if ps := string(out.Stdout); err != nil || !strings.Contains(ps, "pause") || !strings.Contains(ps, "sleep 1000") || !strings.Contains(ps, "sleep 3000") {
			t.Errorf("ps: %s, %v", out.Stdout, err)
		}
		if err := m.StopPod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		if got := <-exited; got != testPod {
			t.Errorf("told of %q", got)
		}
	})
}

// An update takes effect and crid is killed before it is on record: the limits that are told are in force again, and
// stay so with the updates that follow.
func TestRealUpdateCutShort(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		old := mustStart(t, m, h.request("web", "sleep", "1000"))
		update := func(c *Container, change *runtime.LinuxContainerResources) {
			t.Helper()
			if err := c.Update(t.Context(), change); err != nil {
				t.Fatal(err)
			}
		}
		update(old, &runtime.LinuxContainerResources{CpuShares: 512})
		before, err := h.tree.Limits(old.Cgroup())
		if err == nil {
			err = old.noteUpdate(func(s *Status) { s.undo = before })
		}
		if err != nil {
			t.Fatal(err)
		}
		limit, shares := int64(128<<20), uint64(99)
		err = old.tell(t.Context(), &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}})
		if err != nil {
			t.Fatal(err)
		}
		end()
		m, end = h.open()
		defer end()
		defer h.removeAll(m)
		if errs := m.Load(t.Context()); len(errs) > 0 {
			t.Error(errs)
		}
		c := loaded(t, m, old)
		for _, change := range []*runtime.LinuxContainerResources{{}, {CpuQuota: 50000, CpuPeriod: 100000}, {CpuQuota: -1}, {MemoryLimitInBytes: 64 << 20}, {CpuShares: 512}} {
			update(c, change)
			now, err := h.tree.Limits(c.Cgroup())
			if err != nil || now["memory.limit_in_bytes"] != "67108864" || now["memory.memsw.limit_in_bytes"] != "67108864" || now["cpu.shares"] != "512" {
				t.Errorf("after %v in force: %v, %v", change, now, err)
			}
		}
		if r := c.Status().Resources; r.MemoryLimitInBytes != 64<<20 || r.CpuShares != 512 {
			t.Errorf("told: %v", r)
		}
	})
}

// A container without a limit of memory takes updates of all else, again and again.
func TestRealUpdateWithoutMemory(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		r := h.request("web", "sleep", "1000")
		r.Config.Linux.Resources = nil
		c := mustStart(t, m, r)
		for _, change := range []*runtime.LinuxContainerResources{{CpuShares: 300}, {CpusetCpus: "0"}, {MemoryLimitInBytes: 64 << 20}, {CpuQuota: -1}, {MemoryLimitInBytes: -1}, {CpuShares: 400}} {
			if err := c.Update(t.Context(), change); err != nil {
				t.Errorf("%v: %v", change, err)
			}
		}
		now, err := h.tree.Limits(c.Cgroup())
		if err != nil || now["cpu.shares"] != "400" || now["cpuset.cpus"] != "0" || len(now["memory.limit_in_bytes"]) < 19 {
			t.Errorf("in force: %v, %v", now, err)
		}
	})
}
