package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
)

// make creates a container and fails the test when that does not work.
func mustCreate(t *testing.T, m *Manager, r Request) *Container {
	t.Helper()
	c, err := m.Create(t.Context(), r)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return c
}

func mustStart(t *testing.T, m *Manager, r Request) *Container {
	t.Helper()
	c := mustCreate(t, m, r)
	if err := c.Start(t.Context()); err != nil {
		t.Fatalf("start: %v", err)
	}
	return c
}

func wantState(t *testing.T, c *Container, want State) {
	t.Helper()
	if got := c.Status(); got.State != want {
		t.Fatalf("%s is %s (%s: %s), want %s", c, got.State, got.Reason, got.Message, want)
	}
}

func wantKind(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want an error of kind %q", err, kind)
	}
}

func TestMovesFollowTheTable(t *testing.T) {
	all := []State{Creating, Created, Running, Exited}
	allowed := map[State][]State{Creating: {Created, Exited}, Created: {Running, Exited}, Running: {Exited}}
	for _, from := range all {
		for _, to := range all {
			h, m := start(t)
			c, err := m.draft(h.request("web"))
			if err != nil {
				t.Fatal(err)
			}
			c.publish(Status{Life: Life{State: from}})
			err = c.move(to, func(s *Status) { s.Message = "moved" })
			if want := slices.Contains(allowed[from], to); want != (err == nil) {
				t.Errorf("%s -> %s: %v", from, to, err)
			}
			if err != nil {
				wantKind(t, err, errdef.WrongState)
			}
			if moved := c.Status().Message == "moved"; moved != (err == nil) {
				t.Errorf("%s -> %s: published %v, error %v", from, to, moved, err)
			}
		}
	}
}

func TestALife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustCreate(t, m, h.request("web"))
		wantState(t, c, Created)
		if c.PID() == 0 || len(m.List()) != 1 {
			t.Errorf("pid %d, listed %d", c.PID(), len(m.List()))
		}
		wantKind(t, c.ReopenLog(t.Context()), errdef.WrongState)
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantState(t, c, Running)
		if err := c.Start(t.Context()); err != nil {
			t.Errorf("the start repeated: %v", err)
		}
		if _, starts := h.seen(c.ID()); starts != 1 {
			t.Errorf("%d starts", starts)
		}
		out, err := c.Exec(t.Context(), []string{"echo", "hi"}, 0, 100)
		if err != nil || string(out.Stdout) != "echo hi" {
			t.Errorf("exec: %q, %v", out.Stdout, err)
		}
		if err := c.ReopenLog(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Stop(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		s := c.Status()
		if s.State != Exited || s.ExitCode != 143 || s.Reason != ReasonError || s.PID != 0 {
			t.Errorf("after TERM: %+v", s)
		}
		if s.FinishedAt.Before(s.StartedAt) || s.StartedAt.Before(s.CreatedAt) || s.CreatedAt.IsZero() {
			t.Errorf("times out of order: %+v", s.Life)
		}
		synctest.Wait()
		if h.mounted[c.ID()] || !h.rootfs[c.ID()] {
			t.Errorf("after the exit the root filesystem is mounted: %v, kept: %v; want kept alone", h.mounted[c.ID()], h.rootfs[c.ID()])
		}
		if err := c.Stop(t.Context(), 0); err != nil {
			t.Errorf("stop again: %v", err)
		}
		_, err = c.Exec(t.Context(), []string{"echo"}, 0, 100)
		wantKind(t, err, errdef.WrongState)
		for range 2 {
			if err := c.Remove(t.Context()); err != nil {
				t.Fatalf("remove: %v", err)
			}
		}
		_, err = m.Get(c.ID())
		wantKind(t, err, errdef.NotFound)
		h.wantNothingLeft(m)
	})
}

func TestStreamsReachTheContainerThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustCreate(t, m, h.request("web"))
		_, err := c.Stream(t.Context(), []string{"echo"}, false, oci.Streams{})
		wantKind(t, err, errdef.WrongState)
		wantKind(t, c.Attach(t.Context(), monitor.Streams{}), errdef.WrongState)
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		var streamed bytes.Buffer
		code, err := c.Stream(t.Context(), []string{"echo", "ho"}, true, oci.Streams{Stdout: &streamed})
		if err != nil || code != 0 || streamed.String() != "echo ho" {
			t.Errorf("stream: %d, %q, %v", code, &streamed, err)
		}
		attached := make(chan error, 1)
		go func() { attached <- c.Attach(t.Context(), monitor.Streams{}) }() // ends with the container
		if err := c.Stop(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := <-attached; err != nil {
			t.Errorf("attach: %v", err)
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestStatusSaysWhatWasAsked(t *testing.T) {
	h, m := start(t)
	r := h.request("web")
	link, real := filepath.Join(h.dir, "link"), filepath.Join(t.TempDir(), "real")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "a", "b")
	r.Config.Mounts = []*runtime.Mount{{HostPath: link, ContainerPath: "/l"}, {HostPath: missing, ContainerPath: "/m"}, {HostPath: h.dir, ContainerPath: "/host"}}
	r.Config.StopSignal = runtime.Signal_SIGNAL_SIGUSR1
	r.Config.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512}
	r.Config.Linux.SecurityContext.RunAsUsername = "web"
	r.Image.Config.Volumes = map[string]struct{}{"/data": {}, "/m": {}, "/proc/x": {}}
	c := mustCreate(t, m, r)
	s := c.Status()
	if len(s.Mounts) != 3 || s.Mounts[0].HostPath != link || s.Mounts[2].Propagation != runtime.MountPropagation_PROPAGATION_PRIVATE {
		t.Errorf("mounts %v", s.Mounts)
	}
	if s.User.UID != 33 || s.User.GID != 34 || s.StopSignal != runtime.Signal_SIGNAL_SIGUSR1 || s.Resources.CpuShares != 512 {
		t.Errorf("status %+v", s)
	}
	if s.ImageID != r.Image.ID || s.ImageRef != r.Image.RepoDigests[0] || s.LogPath != filepath.Join(h.dir, "logs/web.log") {
		t.Errorf("status %+v", s)
	}
	if info, err := os.Stat(missing); err != nil || info.Mode() != os.ModeDir|0o755 {
		t.Errorf("missing source: %v, %v", info, err)
	}
	mounts := map[string]specs.Mount{}
	for _, mount := range h.config(c.ID()).Mounts {
		mounts[mount.Destination] = mount
	}
	if mounts["/l"].Source != real || !slices.Contains(mounts["/host"].Options, "rslave") || !slices.Contains(mounts["/l"].Options, "rprivate") {
		t.Errorf("mounts %+v", mounts)
	}
	if !strings.HasPrefix(mounts["/data"].Source, filepath.Join(h.dir, "volumes")) || mounts["/m"].Source != missing {
		t.Errorf("volumes %+v %+v", mounts["/data"], mounts["/m"])
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Request)
		kind error
	}{
		{"unknown handler", func(r *Request) { r.Pod.Handler = "gvisor" }, errdef.Invalid},
		{"unknown stop signal of the image", func(r *Request) { r.Image.Config.StopSignal = "SIGNONE" }, errdef.Invalid},
		{"missing image", func(r *Request) { r.Image.ID = "none" }, errdef.NotFound},
		{"unknown user", func(r *Request) { r.Config.Linux.SecurityContext.RunAsUsername = "nobody-here" }, errdef.Invalid},
		{"relative source", func(r *Request) { r.Config.Mounts = []*runtime.Mount{{HostPath: "x", ContainerPath: "/x"}} }, errdef.Invalid},
		{"image volume", func(r *Request) {
			r.Config.Mounts = []*runtime.Mount{{Image: &runtime.ImageSpec{Image: "x"}, ContainerPath: "/x"}}
		}, errdef.ImageVolume},
		{"no such device", func(r *Request) {
			r.Config.Devices = []*runtime.Device{{HostPath: "/dev/none", ContainerPath: "/dev/none"}}
		}, errdef.Invalid},
		{"log that is a directory", func(r *Request) { r.Pod.Config.LogDirectory, r.Config.LogPath = "/", "tmp" }, errdef.Invalid},
		{"no such target", func(r *Request) { pidMode(r, runtime.NamespaceMode_TARGET).TargetId = "none" }, errdef.Invalid},
		{"pod without shared pids", func(r *Request) { pidMode(r, runtime.NamespaceMode_POD) }, errdef.WrongState},
		{"missing seccomp profile", func(r *Request) {
			r.Config.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/none"}
		}, errdef.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, m := start(t)
			r := h.request("web")
			c.edit(&r)
			got, err := m.Create(t.Context(), r)
			if got != nil {
				t.Errorf("got %v beside the error", got)
			}
			wantKind(t, err, c.kind)
			h.wantNothingLeft(m)
		})
	}
}

func pidMode(r *Request, mode runtime.NamespaceMode) *runtime.NamespaceOption {
	options := r.Config.Linux.SecurityContext.NamespaceOptions
	options.Pid = mode
	return options
}

func TestTarget(t *testing.T) {
	h, m := start(t)
	app := mustStart(t, m, h.request("app"))
	debug := h.request("debug")
	pidMode(&debug, runtime.NamespaceMode_TARGET).TargetId = app.ID()
	c := mustCreate(t, m, debug)
	joined := slices.ContainsFunc(h.config(c.ID()).Linux.Namespaces, func(n specs.LinuxNamespace) bool {
		return n.Type == specs.PIDNamespace && n.Path == fmt.Sprintf("/proc/%d/ns/pid", app.PID())
	})
	if !joined {
		t.Errorf("namespaces %+v", h.config(c.ID()).Linux.Namespaces)
	}

	stranger := debug
	stranger.Key.PodID = "pod2"
	_, err := m.Create(t.Context(), stranger)
	wantKind(t, err, errdef.Invalid)

	if err := app.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	late := debug
	late.Key.Name = "late"
	_, err = m.Create(t.Context(), late)
	wantKind(t, err, errdef.WrongState)
	if !strings.Contains(err.Error(), app.ID()) {
		t.Errorf("the error does not name the target: %v", err)
	}
}

func TestRetriesOfCreate(t *testing.T) {
	h, m := start(t)
	first := mustCreate(t, m, h.request("web"))
	if again := mustCreate(t, m, h.request("web")); again != first {
		t.Error("a retry made a second container")
	}
	if err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := mustCreate(t, m, h.request("web")); again != first {
		t.Error("a retry made a second container beside one that runs")
	}
	other := h.request("web")
	other.Config.Command = []string{"sleep"}
	_, err := m.Create(t.Context(), other)
	wantKind(t, err, errdef.Exists)
	other = h.request("web")
	other.Image.ID = "another"
	_, err = m.Create(t.Context(), other)
	wantKind(t, err, errdef.Exists)

	if err := first.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	_, err = m.Create(t.Context(), h.request("web"))
	wantKind(t, err, errdef.Exists)
	if !strings.Contains(err.Error(), first.ID()) {
		t.Errorf("the error does not name the container: %v", err)
	}
	if err := first.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if next := mustCreate(t, m, h.request("web")); next == first {
		t.Error("the removed container came back")
	}
}

func TestManyCreatesMakeOne(t *testing.T) {
	h, m := start(t)
	made := make([]*Container, 16)
	var wg sync.WaitGroup
	for i := range made {
		wg.Go(func() { made[i] = mustCreate(t, m, h.request("web")) })
	}
	wg.Wait()
	for _, c := range made {
		if c != made[0] {
			t.Fatal("two containers for one key")
		}
	}
	if err := m.RemovePod(t.Context(), testPod); err != nil {
		t.Fatal(err)
	}
	h.wantNothingLeft(m)
}

func TestCreateGoesOnWithoutItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		gate := h.hang("monitor start")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.Create(ctx, h.request("web"))
		wantKind(t, err, context.DeadlineExceeded)
		if len(m.List()) != 0 || len(m.OfPod(testPod)) != 1 || len(m.InFlight()) != 1 {
			t.Errorf("listed %d, in the pod %d, in flight %v", len(m.List()), len(m.OfPod(testPod)), m.InFlight())
		}
		close(gate)
		wantState(t, mustCreate(t, m, h.request("web")), Created)
		if n := len(m.OfPod(testPod)); n != 1 {
			t.Errorf("%d containers", n)
		}
	})
}

func TestCreateWaitsForARemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		old := mustCreate(t, m, h.request("web"))
		gate := h.hang("rootfs remove")
		removed := make(chan error, 1)
		go func() { removed <- old.Remove(context.Background()) }()
		synctest.Wait()
		created := make(chan *Container, 1)
		go func() {
			c, _ := m.Create(context.Background(), h.request("web"))
			created <- c
		}()
		synctest.Wait()
		select {
		case <-created:
			t.Fatal("made while the old one was being removed")
		default:
		}
		close(gate)
		if err := <-removed; err != nil {
			t.Error(err)
		}
		if c := <-created; c == nil || c == old {
			t.Errorf("got %v", c)
		}
	})
}

func TestAStopEndsACreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		gate := h.hang("rootfs mount")
		failed := make(chan error, 1)
		go func() {
			_, err := m.Create(context.Background(), h.request("web"))
			failed <- err
		}()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(gate) })
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Fatal(err)
		}
		h.wantNothingLeft(m)
		if err := <-failed; err == nil {
			t.Log("the creation was quicker than the stop")
		}
	})
}

func TestExits(t *testing.T) {
	for _, c := range []struct {
		name   string
		exit   monitor.Exit
		kills  uint64
		reason string
		code   int32
	}{
		{"completed", monitor.Exit{}, 0, ReasonCompleted, 0},
		{"completed though something was killed", monitor.Exit{}, 1, ReasonCompleted, 0},
		{"failed", monitor.Exit{Code: 3}, 0, ReasonError, 3},
		{"memory, by the cgroup", monitor.Exit{Code: 137}, 1, ReasonOOMKilled, 137},
		{"memory, a child being the victim", monitor.Exit{Code: 1, OOM: true}, 1, ReasonOOMKilled, 1},
		{"memory ran out and nobody was killed", monitor.Exit{Code: 1, OOM: true}, 0, ReasonError, 1},
		{"killed by somebody after memory had run out", monitor.Exit{Code: 137, OOM: true}, 0, ReasonError, 137},
		{"failed long after a child was killed by the host", monitor.Exit{Code: 1}, 1, ReasonError, 1},
		{"killed for the end of its monitor", monitor.Exit{Code: 137, Lost: true}, 1, ReasonUnrecorded, 137},
		{"unrecorded", monitor.Exit{Code: 255, Lost: true, Message: "gone"}, 0, ReasonUnrecorded, 255},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, m := start(t)
			h.script = script{endAtStart: &c.exit, oomKills: c.kills}
			web := mustStart(t, m, h.request("web"))
			<-web.exited
			s := web.Status()
			if s.Reason != c.reason || s.ExitCode != c.code || s.Message != c.exit.Message || s.StartedAt.IsZero() {
				t.Errorf("got %+v", s.Life)
			}
		})
	}
}

func TestAFailedStartIsAnExit(t *testing.T) {
	h, m := start(t)
	h.script.startError = errors.New(`exec: "top": executable file not found`)
	c := mustCreate(t, m, h.request("web"))
	err := c.Start(t.Context())
	wantKind(t, err, h.script.startError)
	s := c.Status()
	if s.State != Exited || s.ExitCode != 128 || s.Reason != ReasonStartError || !strings.Contains(s.Message, "executable file not found") {
		t.Errorf("got %+v", s.Life)
	}
	wantKind(t, c.Start(t.Context()), errdef.WrongState)
}
