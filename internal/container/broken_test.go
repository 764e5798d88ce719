package container

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// story is a life with everything in it, up to the first error.
func story(ctx context.Context, h *host, m *Manager) error {
	c, err := m.Create(ctx, h.request("web").withData("sub"))
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, []string{"ls"}, time.Second, 100); err != nil {
		return err
	}
	if err := c.Update(ctx, &runtime.LinuxContainerResources{CpuShares: 99}); err != nil {
		h.wantShares(c)
		if again := c.Update(ctx, &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20}); again == nil {
			h.wantShares(c) // whatever the runtime remembers
		}
		return err
	}
	if _, err := m.StartPause(ctx, h.pod()); err != nil {
		return err
	}
	if err := c.Stop(ctx, time.Second); err != nil {
		return err
	}
	if err := c.Remove(ctx); err != nil {
		return err
	}
	return m.RemovePod(ctx, testPod)
}

// noLimbo fails when something is left in a state that nobody is told of.
func noLimbo(t *testing.T, m *Manager, when string) {
	t.Helper()
	for _, c := range m.OfPod(testPod) {
		if c.Status().State == Creating {
			t.Errorf("%s: %s is creating for ever", when, c)
		}
	}
}

// stories runs play with n = 1, 2, ... until the n-th call is never reached.
func stories(t *testing.T, play func(t *testing.T, h *host, n int) (reached bool)) {
	t.Helper()
	const enough = 500
	for n := 1; ; n++ {
		reached := false
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { reached = play(t, newHost(t), n) })
		})
		if !reached && n > 20 {
			return
		}
		if n == enough || t.Failed() {
			t.Fatalf("stopped at call %d", n)
		}
	}
}

func TestFailAtEveryCall(t *testing.T) {
	for name, how := range map[string]verdict{"before its effect": failBefore, "after its effect": failAfter} {
		t.Run(name, func(t *testing.T) {
			stories(t, func(t *testing.T, h *host, n int) bool {
				failed := ""
				h.wrong = func(i int, call string) verdict {
					if i != n {
						return right
					}
					failed = call
					return how
				}
				m := h.boot().open()
				defer closeManager(t, m)
				err := story(t.Context(), h, m)
				synctest.Wait() // what goes on in the background counts as well
				noLimbo(t, m, failed)
				if again := m.RemovePod(t.Context(), testPod); again != nil {
					t.Errorf("%s failed, the story ended with %v; then the removal: %v", failed, err, again)
				}
				h.wantNothingLeft(m)
				return failed != ""
			})
		})
	}
}

func TestBreakFromEveryCallOnThenMend(t *testing.T) {
	for name, how := range map[string]verdict{"before its effect": failBefore, "after its effect": failAfter} {
		t.Run(name, func(t *testing.T) {
			stories(t, func(t *testing.T, h *host, n int) bool {
				broken, first := true, ""
				h.wrong = func(i int, call string) verdict {
					if i < n || !broken {
						return right
					}
					if first == "" {
						first = call
					}
					return how
				}
				m := h.boot().open()
				defer closeManager(t, m)
				err := story(t.Context(), h, m)
				synctest.Wait()
				noLimbo(t, m, first)
				h.mu.Lock()
				for id := range h.mains {
					if m.byID[id] == nil {
						t.Errorf("broken from %s on (%v): nobody knows of %s any more", first, err, id)
					}
				}
				broken = false
				reached := first != ""
				h.mu.Unlock()
				if err := m.RemovePod(t.Context(), testPod); err != nil {
					t.Errorf("broken from %s on, then mended: %v", first, err)
				}
				h.wantNothingLeft(m)
				return reached
			})
		})
	}
}

func TestCrashAtEveryCallAndLoad(t *testing.T) {
	for name, reboot := range map[string]bool{"restart of crid": false, "restart of the host": true} {
		t.Run(name, func(t *testing.T) {
			stories(t, func(t *testing.T, h *host, n int) bool { return crashAt(t, h, n, reboot) })
		})
	}
}

func crashAt(t *testing.T, h *host, n int, reboot bool) (reached bool) {
	where := crashStory(t, h, n)
	m := h.boot().open()
	h.mu.Lock()
	h.wrong = func(int, string) verdict { return right }
	h.images.holds = 0 // they were of the dead crid's memory
	if reboot {
		h.wipe()
		m.deps.Host.BootID = "boot-2"
	}
	h.mu.Unlock()
	defer closeManager(t, m)
	for _, err := range m.Load(t.Context()) {
		t.Errorf("crash at %s, load: %v", where, err)
	}
	for _, c := range m.OfPod(testPod) {
		if alive, _ := h.seen(c.ID()); c.Status().State == Running && !alive {
			t.Errorf("crash at %s: %s is dead and shown as running", where, c)
		}
	}
	synctest.Wait() // what is done behind Load has been done
	noLimbo(t, m, "crash at "+where)
	for _, c := range m.OfPod(testPod) {
		if alive, started := h.seen(c.ID()); c.Status().State == Created && started > 0 && alive {
			t.Errorf("crash at %s: %s runs and is shown as created", where, c)
		}
	}
	resumeStory(t, h, m, where)
	if err := m.RemovePod(t.Context(), testPod); err != nil {
		t.Errorf("crash at %s, then removal: %v", where, err)
	}
	for _, err := range m.Collect(t.Context()) {
		t.Errorf("crash at %s, then collection: %v", where, err)
	}
	h.wantNothingLeft(m)
	return where != ""
}

// crashStory plays the story in a crid that dies at its n-th call, and names the call; "" = the story is shorter.
func crashStory(t *testing.T, h *host, n int) (where string) {
	t.Helper()
	h.wrong = func(i int, call string) verdict {
		if i < n || where != "" {
			return right
		}
		where = call
		return crash
	}
	s := h.boot()
	m := s.open()
	ended := make(chan error, 1)
	go func() { ended <- story(context.Background(), h, m) }() // ends when the dead calls return
	select {
	case <-s.crashed:
	case <-ended:
	}
	synctest.Wait()
	t.Cleanup(func() {
		close(s.dead)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = m.Close(ctx) // it waits for nothing: what is left of it has no effect
	})
	return where
}

// resumeStory is the client that tries again after a crash.
func resumeStory(t *testing.T, h *host, m *Manager, where string) {
	t.Helper()
	c, err := m.Create(t.Context(), h.userns("web"))
	if err != nil {
		for _, old := range m.List() {
			if old.Status().State != Exited {
				t.Errorf("crash at %s: %s is %s, create: %v", where, old, old.Status().State, err)
			}
		}
		return
	}
	if c.Status().State == Created {
		if err := c.Start(t.Context()); err != nil {
			t.Errorf("crash at %s, start: %v", where, err)
		}
	}
	if _, started := h.seen(c.ID()); started != 1 {
		t.Errorf("crash at %s: started %d times", where, started)
	}
	if _, err := c.Exec(t.Context(), []string{"ls"}, time.Second, 100); err != nil {
		t.Errorf("crash at %s, exec: %v", where, err)
	}
}

func (h *host) seen(id string) (alive bool, started int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.mains[id]
	return p != nil && p.alive && h.states[id] != specs.StateStopped, h.starts[id]
}

func TestAFailedUndoStaysVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		broken := true
		h.wrong = func(_ int, call string) verdict {
			if broken && (call == "monitor start" || call == "rootfs remove") {
				return failBefore
			}
			return right
		}
		m := h.boot().open()
		defer closeManager(t, m)
		_, err := m.Create(t.Context(), h.userns("web"))
		if !errors.Is(err, errInjected) {
			t.Fatalf("got %v", err)
		}
		list := m.List()
		if len(list) != 1 || list[0].Status().Reason != ReasonCreate || list[0].Status().ExitCode != 128 {
			t.Fatalf("listed: %v", list)
		}
		h.mu.Lock()
		broken = false
		h.mu.Unlock()
		if err := list[0].Remove(t.Context()); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}
