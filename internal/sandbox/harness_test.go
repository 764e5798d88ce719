package sandbox

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// life is one pod from Run to Remove with one container in it, as a client that gives up at the first error.
func life(t *testing.T, m *Manager, l *link) error {
	ctx := t.Context()
	p, err := m.Run(ctx, keyOf("a"), config("a"), "crun")
	if err != nil {
		return err
	}
	inner, _, leave, err := p.Enter(ctx, runtime.NamespaceMode_POD)
	if err != nil {
		return err
	}
	err = l.create(inner, p.ID(), "c1")
	leave()
	if err != nil {
		return err
	}
	if err := m.Stop(ctx, p); err != nil {
		return err
	}
	return m.Remove(ctx, p)
}

// everyCall runs test with the n-th call of a life singled out, for every n.
func everyCall(t *testing.T, test func(t *testing.T, h *fakeHost, n int) (reached bool)) {
	const most = 100
	for n := 1; n <= most; n++ {
		reached := true
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { reached = test(t, newHost(t), n) })
		})
		if !reached {
			if n < 15 {
				t.Fatalf("a life has only %d calls: the harness tests nothing", n-1)
			}
			return
		}
	}
	t.Fatalf("a life has more than %d calls", most)
}

// cleanUp plays the kubelet's garbage collection: stop and remove all that is listed.
func cleanUp(t *testing.T, m *Manager) {
	t.Helper()
	for _, p := range m.List() {
		if err := m.Stop(t.Context(), p); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := m.Remove(t.Context(), p); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
}

// allKnown checks that whatever exists is somebody's whom a client can see.
func allKnown(t *testing.T, h *fakeHost, m *Manager) {
	t.Helper()
	known := map[string]bool{}
	for _, p := range m.List() {
		known[p.ID()] = true
	}
	for _, g := range m.Tombstones() {
		known[g.Request.ID] = true
	}
	for _, id := range h.ids() {
		if !known[id] {
			t.Errorf("nobody is told of what is left of %s", id)
		}
	}
}

func pass10Minutes() {
	<-time.After(10 * time.Minute)
	synctest.Wait()
}

func TestFailAtEveryCall(t *testing.T) {
	for _, v := range []verdict{failBefore, failAfter} {
		everyCall(t, func(t *testing.T, h *fakeHost, n int) bool {
			m, l := h.start(t)
			h.set(func(i int, _ string) verdict {
				if i == n {
					return v
				}
				return pass
			})
			err := life(t, m, l)
			reached := h.calls >= n
			if err != nil && !errors.Is(err, errInjected) {
				t.Errorf("life: %v", err)
			}
			synctest.Wait()
			allKnown(t, h, m)
			cleanUp(t, m)
			pass10Minutes()
			h.set(nil)
			h.nothingLeft(t, m)
			return reached
		})
	}
}

func TestBreakFromEveryCallThenMend(t *testing.T) {
	for _, v := range []verdict{failBefore, failAfter} {
		everyCall(t, func(t *testing.T, h *fakeHost, n int) bool {
			m, l := h.start(t)
			h.set(func(i int, _ string) verdict {
				if i >= n {
					return v
				}
				return pass
			})
			err := life(t, m, l)
			reached := h.calls >= n
			if reached && !errors.Is(err, errInjected) {
				t.Errorf("life on a broken host: %v", err)
			}
			synctest.Wait()
			allKnown(t, h, m)
			h.set(nil)
			cleanUp(t, m)
			pass10Minutes()
			h.nothingLeft(t, m)
			return reached
		})
	}
}

func TestCrashAtEveryCallThenLoad(t *testing.T) {
	for _, v := range []verdict{crashBefore, crashAfter} {
		everyCall(t, func(t *testing.T, h *fakeHost, n int) bool {
			m, l := h.start(t)
			h.set(func(i int, _ string) verdict {
				if i == n {
					return v
				}
				return pass
			})
			_ = life(t, m, l)
			reached := h.calls >= n
			h.set(func(int, string) verdict {
				if l.dead {
					return pass
				}
				return crashBefore
			})
			shutDownDead(t, m)
			h.set(nil)

			m, _ = h.start(t)
			loaded(t, h, m)
			again(t, m)
			cleanUp(t, m)
			pass10Minutes()
			h.nothingLeft(t, m)
			return reached
		})
	}
}

// shutDownDead lets the goroutines of a crashed crid end; its calls have no effect.
func shutDownDead(t *testing.T, m *Manager) {
	t.Helper()
	if err := m.Close(t.Context()); err != nil && !errors.Is(err, errCrashed) {
		t.Errorf("close: %v", err)
	}
}

// loaded checks what a restarted crid says before and after its background work.
func loaded(t *testing.T, h *fakeHost, m *Manager) {
	t.Helper()
	allKnown(t, h, m)
	synctest.Wait()
	allKnown(t, h, m)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range m.List() {
		_, pinned := h.pins[p.ID()]
		_, attached := h.attached[p.ID()]
		if p.Status().State == Ready && !(pinned && attached) {
			t.Errorf("pod %s is said to be ready", p.ID())
		}
	}
}

// again repeats the Run that a crash interrupted.
func again(t *testing.T, m *Manager) {
	t.Helper()
	p, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun")
	switch {
	case errors.Is(err, errdef.Exists):
		if len(m.List()) != 1 {
			t.Errorf("%v, but %d pods are listed", err, len(m.List()))
		}
	case err != nil:
		t.Errorf("run again: %v", err)
	case p.Status().State != Ready:
		t.Errorf("run again: pod is %s", p.Status().State)
	}
}
