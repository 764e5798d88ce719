package container

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/monitor"
)

// restart ends one crid and starts another. meanwhile is what happens in between.
func restart(t *testing.T, h *host, old *Manager, meanwhile func()) (*Manager, []error) {
	t.Helper()
	closeManager(t, old)
	h.mu.Lock()
	meanwhile()
	h.mu.Unlock()
	m := h.boot().open()
	t.Cleanup(func() { closeManager(t, m) })
	return m, m.Load(t.Context())
}

func loaded(t *testing.T, m *Manager, old *Container) *Container {
	t.Helper()
	c, err := m.Get(old.ID())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestARunningContainerIsKnownAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		old := mustStart(t, m, h.request("web"))
		m, errs := restart(t, h, m, func() {})
		c := loaded(t, m, old)
		was, is := old.Status(), c.Status()
		if len(errs) > 0 || is.State != Running || is.PID != was.PID || !is.StartedAt.Equal(was.StartedAt) || is.LogPath != was.LogPath {
			t.Fatalf("%v; was %+v, is %+v", errs, was, is)
		}
		if again := mustCreate(t, m, h.request("web")); again != c {
			t.Error("a retry made a second container")
		}
		if out, err := c.Exec(t.Context(), []string{"id"}, 0, 100); err != nil || string(out.Stdout) != "id" {
			t.Errorf("exec with the configuration of the bundle: %q, %v", out.Stdout, err)
		}
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Fatal(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestWhatEndedMeanwhileIsNeverRunning(t *testing.T) {
	for _, c := range []struct {
		name      string
		meanwhile func(h *host, id string, m *Manager)
		boot      string
		reason    string
		code      int32
	}{
		{"exit", func(h *host, id string, _ *Manager) { h.mains[id].end(monitor.Exit{Code: 4}) }, "boot-1", ReasonError, 4},
		{"reboot", func(h *host, _ string, _ *Manager) { h.wipe() }, "boot-2", ReasonReboot, 255},
		{"monitor lost", func(h *host, id string, _ *Manager) {
			h.mains[id].monitored = false
			h.mains[id].end(monitor.Exit{})
		}, "boot-1", ReasonUnrecorded, 255},
	} {
		for _, started := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h, m := start(t)
					old := mustCreate(t, m, h.request("web"))
					if started {
						if err := old.Start(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					closeManager(t, m)
					h.mu.Lock()
					c.meanwhile(h, old.ID(), m)
					h.mu.Unlock()
					m = h.boot().open()
					m.deps.Host.BootID = c.boot
					defer closeManager(t, m)
					if errs := m.Load(t.Context()); len(errs) > 0 {
						t.Error(errs)
					}
					s := loaded(t, m, old).Status()
					if s.State != Exited || s.Reason != c.reason || s.ExitCode != c.code || s.PID != 0 {
						t.Errorf("got %+v", s)
					}
				})
			})
		}
	}
}

func TestAStartThatWasNotRecorded(t *testing.T) {
	for _, status := range []specs.ContainerState{specs.StateRunning, specs.StateCreated} {
		t.Run(string(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, m := start(t)
				old := mustCreate(t, m, h.request("web"))
				m, errs := restart(t, h, m, func() { h.states[old.ID()] = status })
				if len(errs) > 0 {
					t.Error(errs)
				}
				c := loaded(t, m, old)
				err := c.Start(t.Context()) // waits for the runtime's word on what has been done already
				wantState(t, c, Running)
				if err != nil {
					t.Errorf("start: %v", err)
				}
				if err := c.Start(t.Context()); err != nil {
					t.Errorf("start of what runs: %v", err)
				}
				_, starts := h.seen(c.ID())
				if want := map[specs.ContainerState]int{specs.StateCreated: 1}[status]; starts != want {
					t.Errorf("%d starts, want %d", starts, want)
				}
			})
		})
	}
}

// A runtime that fails, or hangs, when it is asked whether a container was started is no reason to take it for one that was
// not.
func TestAStartThatTheRuntimeDoesNotTellOfAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		old := mustCreate(t, m, h.request("web"))
		asked := 0
		m, errs := restart(t, h, m, func() {
			h.states[old.ID()] = specs.StateRunning
			h.wrong = func(_ int, call string) verdict {
				if call != "runtime state" {
					return right
				}
				if asked++; asked > 3 {
					return right
				}
				return failBefore
			}
		})
		if len(errs) > 0 {
			t.Error(errs)
		}
		c := loaded(t, m, old)
		if err := c.Start(t.Context()); err != nil {
			t.Errorf("start: %v", err)
		}
		wantState(t, c, Running)
		if _, starts := h.seen(c.ID()); starts != 0 || asked != 4 {
			t.Errorf("%d starts, %d questions", starts, asked)
		}
	})
}

// A process that ends meanwhile is not taken for one that runs, or may be started, until the runtime answers.
func TestAnExitWhileTheRuntimeDoesNotTellOfTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		old := mustCreate(t, m, h.request("web"))
		m, _ = restart(t, h, m, func() {
			h.states[old.ID()] = specs.StateRunning
			h.wrong = func(_ int, call string) verdict {
				if call == "runtime state" {
					return failBefore
				}
				return right
			}
		})
		c, began := loaded(t, m, old), time.Now()
		h.mains[c.ID()].end(monitor.Exit{Code: 3, At: began})
		<-c.exited
		if s := c.Status(); s.State != Exited || s.ExitCode != 3 {
			t.Errorf("%+v", s.Life)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("told after %v", took)
		}
	})
}

func TestWhatCannotBeWatchedIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		old := mustStart(t, m, h.request("web"))
		p := h.mains[old.ID()]
		m, errs := restart(t, h, m, func() { p.ref.Start++ })
		if len(errs) != 1 {
			t.Errorf("errors %v", errs)
		}
		synctest.Wait()
		if s := loaded(t, m, old).Status(); p.alive || s.State != Exited || s.Reason != ReasonUnrecorded {
			t.Errorf("alive: %v, %+v", p.alive, s.Life)
		}
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestABadRecordHurtsOneContainer(t *testing.T) {
	for _, c := range []struct {
		name, text string
		lives      bool // the container and its monitor are about
		collected  bool
	}{
		{"power cut", "", false, true},
		{"torn while it runs", `{"version":1,"record":{"`, true, false},
		{"newer", `{"version":99,"record":{}}`, false, false},
		{"config of nobody's", `{"version":1,"record":{"config":[1]}}`, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, m := start(t)
				good := mustStart(t, m, h.request("good"))
				bad := mustStart(t, m, h.request("bad"))
				m, errs := restart(t, h, m, func() {
					if !c.lives {
						h.mains[bad.ID()].monitored = false
						h.mains[bad.ID()].end(monitor.Exit{})
						delete(h.cgroups, h.mains[bad.ID()].monitor) // named by the record alone
					}
					if err := os.WriteFile(filepath.Join(h.dir, "records", bad.ID()+".json"), []byte(c.text), 0o600); err != nil {
						t.Fatal(err)
					}
				})
				if len(errs) != 1 || !strings.Contains(errs[0].Error(), bad.ID()) {
					t.Errorf("errors %v", errs)
				}
				synctest.Wait()
				wantState(t, loaded(t, m, good), Running)
				if len(m.List()) != 1 {
					t.Errorf("listed %d", len(m.List()))
				}
				_, err := m.Get(bad.ID())
				if c.collected != (err != nil) {
					t.Fatalf("collected: %v, want %v", err, c.collected)
				}
				if told := m.Unreadable(); c.collected == (len(told) == 1 && strings.Contains(told[0].Error(), "crictl rm "+bad.ID())) {
					t.Errorf("told of %v", told)
				}
				if err := m.StopPod(t.Context(), testPod); err != nil {
					t.Error(err)
				}
				if p := h.mains[bad.ID()]; p != nil && p.alive {
					t.Error("it runs on in a pod that is stopped")
				}
				if err := m.RemovePod(t.Context(), testPod); err != nil {
					t.Error(err)
				}
				h.wantNothingLeft(m)
				if told := m.Unreadable(); len(told) > 0 {
					t.Errorf("told of %v after the removal", told)
				}
			})
		})
	}
}

// What runs without a readable record is not listed: its client asks for it again, and must not have two of it.
func TestAContainerThatIsAskedForAgainDoesNotRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		bad, other := mustStart(t, m, h.request("web")), mustStart(t, m, h.request("other"))
		m, _ = restart(t, h, m, func() {
			for _, c := range []*Container{bad, other} {
				if err := os.WriteFile(filepath.Join(h.dir, "records", c.ID()+".json"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		})
		again := mustStart(t, m, h.request("web"))
		if again.ID() == bad.ID() || h.mains[bad.ID()] != nil {
			t.Errorf("the container %s runs beside %s", bad.ID(), again.ID())
		}
		if p := h.mains[other.ID()]; p == nil || !p.alive {
			t.Error("a container of another name made room for it")
		}
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestCollectRemovesWhatNobodyKnows(t *testing.T) {
	h, m := start(t)
	kept := mustCreate(t, m, h.request("web"))
	h.mu.Lock()
	h.rootfs["lost"] = true
	h.cgroups["/kubepods/podx/crid-monitored"], h.cgroups["/kubepods/podx/crid-mon-monitored"] = true, true
	before := len(h.cgroups)
	h.mu.Unlock()
	monitors := func() ([]string, error) { return []string{"monitored", kept.ID()}, nil }
	if errs := m.Collect(t.Context(), monitors); len(errs) > 0 {
		t.Error(errs)
	}
	if left := slices.Collect(maps.Keys(h.rootfs)); !slices.Equal(left, []string{kept.ID()}) {
		t.Errorf("left %v", left)
	}
	if len(h.cgroups) != before-2 {
		t.Errorf("left %v", h.cgroups)
	}
	wantState(t, kept, Created)
}

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := m.deps.Events.(*event.Bus[event.Event]).Subscribe(ctx)
		if err := story(t.Context(), h, m); err != nil {
			t.Fatal(err)
		}
		var kinds []event.Kind
		for e, err := range events {
			if err != nil || e.PodID != testPod {
				t.Fatal(e, err)
			}
			if kinds = append(kinds, e.Kind); e.Kind == event.Deleted {
				break
			}
		}
		if want := []event.Kind{event.Created, event.Started, event.Stopped, event.Deleted}; !slices.Equal(kinds, want) {
			t.Errorf("kinds %v", kinds)
		}
	})
}

func TestGetByPrefix(t *testing.T) {
	h, m := start(t)
	a, b := mustCreate(t, m, h.request("a")), mustCreate(t, m, h.request("b"))
	for n := len(a.ID()); a.ID()[:n] != b.ID()[:n]; n-- {
		if c, err := m.Get(a.ID()[:n]); err != nil || c != a {
			t.Fatalf("prefix of %d: %v, %v", n, c, err)
		}
	}
	_, err := m.Get("no such")
	wantKind(t, err, errdef.NotFound)
	_, err = m.Get("")
	wantKind(t, err, errdef.NotFound)
	if users := m.ImageUsers(testImage().ID); len(users) != 2 {
		t.Errorf("users %v", users)
	}
}

func TestCloseLeavesContainersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustStart(t, m, h.request("web"))
		closeManager(t, m)
		closeManager(t, m)
		if alive, _ := h.seen(c.ID()); !alive {
			t.Error("the end of crid ended a container")
		}
		wantKind(t, c.Stop(t.Context(), 0), errdef.Unavailable)
		wantKind(t, c.Remove(t.Context()), errdef.Unavailable)
		_, err := m.Create(t.Context(), h.request("late"))
		wantKind(t, err, errdef.Unavailable)
	})
}

func TestCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		gate := h.hang("runtime start")
		c := mustCreate(t, m, h.request("web"))
		go func() { _ = c.Start(context.Background()) }() // ends when the gate opens
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		wantKind(t, m.Close(ctx), context.DeadlineExceeded)
		close(gate)
	})
}

func TestOrphans(t *testing.T) {
	const main, mon = 10, 5
	table := map[int]process{
		mon:  {parent: 1},
		main: {parent: mon},
		11:   {parent: main}, // a child
		12:   {parent: 11},   // a grandchild
		13:   {parent: mon},  // a daemon in the host's PID namespace: the monitor is a subreaper
		20:   {parent: 1},    // what an exec ran
		21:   {parent: 20},   // and its child
		30:   {parent: 1, first: true},
		31:   {parent: 30}, // a daemon that the pause has inherited
		40:   {parent: 41}, // whose parent has just ended
	}
	found := orphans([]int{0, main, 11, 12, 13, 20, 21, 31, 40, 99}, []int{main, mon}, func(pid int) (process, bool) {
		p, ok := table[pid]
		return p, ok
	})
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []int{20, 21}) {
		t.Errorf("orphans %v", got)
	}
}

func TestParseProcess(t *testing.T) {
	stat := "77 (a) b (c) S 5 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9 9"
	for status, first := range map[string]bool{"NSpid:\t77\n": false, "Name:\tx\nNSpid:\t77\t1\n": true, "NSpid:\t77\t12\n": false, "NSpid:\t1\n": false} {
		p, ok := parseProcess([]byte(stat), []byte(status))
		if !ok || p.parent != 5 || p.start != 4242 || p.first != first {
			t.Errorf("%q: %+v, %v", status, p, ok)
		}
	}
	for status, doomed := range map[string]bool{
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000004000\n": false,
		"SigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n": true,
		"SigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n": true,
	} {
		if p, ok := parseProcess([]byte(stat), []byte(status)); !ok || p.doomed != doomed {
			t.Errorf("%q: %+v, %v", status, p, ok)
		}
	}
	for _, broken := range []string{"", "77", "77 (x) S 5"} {
		if _, ok := parseProcess([]byte(broken), nil); ok {
			t.Errorf("%q was understood", broken)
		}
	}
}

func TestKillExactlyTheProcessThatWasSeen(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, ok := readProcess(cmd.Process.Pid)
	if !ok || p.parent != os.Getpid() {
		t.Fatalf("read %+v, %v", p, ok)
	}
	if err := killExactly(cmd.Process.Pid, p.start+1); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(cmd.Process.Pid, 0); err != nil {
		t.Fatal("a process that only has the pid was killed")
	}
	if err := killExactly(cmd.Process.Pid, p.start); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal() != unix.SIGKILL {
		t.Errorf("ended by %v", err)
	}
	if err := killExactly(cmd.Process.Pid, p.start); err != nil {
		t.Errorf("a process that is gone: %v", err)
	}
}
