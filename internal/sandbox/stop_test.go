package sandbox

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

func stop(t testing.TB, m *Manager, p *Pod) {
	t.Helper()
	if err := m.Stop(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func TestStopCancelsCreatesAndWaitsForTheirUndo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		inner, _, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER)
		if err != nil {
			t.Fatal(err)
		}
		go func() { // the create: cancelled, it takes 3 s to undo
			<-inner.Done()
			<-time.After(3 * time.Second)
			leave()
		}()
		begin := time.Now()
		stop(t, m, p)
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("stop took %s", took)
		}
		if cause := context.Cause(inner); !errors.Is(cause, errdef.WrongState) {
			t.Errorf("the create was cancelled by: %v", cause)
		}
		if n := h.count("stop containers"); n != 2 {
			t.Errorf("containers were killed %d times: once at once, once after the creates", n)
		}
		if _, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER); !errors.Is(err, errdef.WrongState) {
			t.Errorf("enter a stopped pod: %v", err)
		}
		stop(t, m, p)
		if h.count("del") != 1 || h.count("unpin") != 1 {
			t.Error("a repeated stop did something")
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestStopWaitsForCreatesABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		_, _, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := m.Stop(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v", err)
		}
		if s := p.Status(); s.State != NotReady {
			t.Errorf("the pod is %s", s.State)
		}
		if err := m.Stop(t.Context(), p); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop, joined: %v", err)
		}
		if len(h.attached)+len(h.pins) > 0 {
			t.Error("the network waits for a create that does not end")
		}
		leave()
		stop(t, m, p)
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestConcurrentStopsShareTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		release := h.block("stop containers")
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { stop(t, m, p) })
		}
		synctest.Wait()
		if s := p.Status(); s.State != NotReady || s.Reason != "Stopped" {
			t.Errorf("while it stops the pod is %s, %s", s.State, s.Reason)
		}
		release()
		wg.Wait()
		if n := h.count("stop containers"); n != 1 {
			t.Errorf("containers were killed %d times", n)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestHangingDelHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		a, b := run(t, m, "a"), run(t, m, "b")
		release := h.block("del")
		done := make(chan struct{})
		begin := time.Now()
		go func() { // ends when DEL has had its time
			defer close(done)
			stop(t, m, a)
		}()
		synctest.Wait()
		if len(m.List()) != 2 || len(m.InFlight()) != 1 || m.InFlight()[0].Stage != "network" {
			t.Errorf("%d pods, in flight %+v", len(m.List()), m.InFlight())
		}
		release()
		stop(t, m, b)
		if took := time.Since(begin); took != 0 {
			t.Errorf("another pod's stop took %s", took)
		}
		<-done
		remove(t, m, a, b)
		h.nothingLeft(t, m)
	})
}

func TestFailedDelBecomesATombstone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		release := h.block("del")
		begin := time.Now()
		stop(t, m, p)
		if took := time.Since(begin); took != 30*time.Second {
			t.Errorf("DEL had %s", took)
		}
		remove(t, m, p)
		graves := m.Tombstones()
		if len(graves) != 1 || graves[0].Key != keyOf("a") || graves[0].Attempts != 1 || graves[0].Error == "" {
			t.Fatalf("tombstones %+v", graves)
		}
		if len(m.Attachments()) != 1 {
			t.Error("garbage collection would take the network while it is cared for")
		}
		<-time.After(3 * time.Minute)
		if n := m.Tombstones()[0].Attempts; n != 4 { // after 5 s, 10 s and 20 s, each with 30 s of hanging
			t.Errorf("%d attempts", n)
		}
		shutDown(t, m)
		release()

		m, _ = h.start(t)
		synctest.Wait()
		if len(m.Tombstones()) != 0 || h.count("del") != 1 {
			t.Errorf("after a restart: %+v", m.Tombstones())
		}
		h.nothingLeft(t, m)
	})
}

func TestBackoff(t *testing.T) {
	for attempts, want := range map[int]time.Duration{
		0: 5 * time.Second, 1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second, 7: 5 * time.Minute, 1000: 5 * time.Minute,
	} {
		if got := backoff(attempts); got != want {
			t.Errorf("backoff(%d) = %s, want %s", attempts, got, want)
		}
	}
}

func TestUnkillableContainerKeepsThePodButNotItsNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		h.set(func(_ int, call string) verdict {
			if call == "stop containers" {
				return failBefore
			}
			return pass
		})
		if err := m.Stop(t.Context(), p); !errors.Is(err, errInjected) {
			t.Errorf("stop: %v", err)
		}
		if err := m.Remove(t.Context(), p); !errors.Is(err, errInjected) {
			t.Errorf("remove: %v", err)
		}
		if len(h.attached)+len(h.pins) > 0 || len(m.List()) != 1 || h.count("del") != 1 {
			t.Error("network and namespaces go, the pod stays, nothing is done twice")
		}
		if len(h.files) > 0 {
			t.Error("the files stay though nothing keeps them")
		}
		h.set(nil)
		remove(t, m, p)
		remove(t, m, p) // again
		h.nothingLeft(t, m)
	})
}

func TestStopThatCouldNotBeRecordedYetSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		h.set(func(_ int, call string) verdict {
			if call == "records.put notready" {
				return failBefore
			}
			return pass
		})
		stop(t, m, p)
		if p.Status().State != NotReady || len(h.pins) > 0 {
			t.Error("a full disk keeps a pod from being stopped")
		}
		h.set(nil)
		m, _ = h.restart(t, m)
		if s := m.List()[0].Status(); s.Reason != "Stopped" {
			t.Errorf("after a restart the pod is %s, %s", s.State, s.Reason)
		}
		remove(t, m, m.List()[0])
		if n := h.count("del"); n != 1 {
			t.Errorf("%d DELs", n)
		}
		h.nothingLeft(t, m)
	})
}

func TestRemovedPodIsNotWrittenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		remove(t, m, p)
		if err := m.move(p, NotReady, func(r *Record) { r.Message = "a watcher came late" }); err != nil {
			t.Error(err)
		}
		m.PauseExited(p.ID())
		stop(t, m, p)
		synctest.Wait()
		h.nothingLeft(t, m)
	})
}

func TestFirstContainersShareOnePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		release := h.block("container.create")
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, _, err := p.Enter(impatient, runtime.NamespaceMode_POD); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("enter: %v", err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				_, env, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
				if err != nil || env.PIDNS != "/proc/1234/ns/pid" {
					t.Errorf("enter: %+v, %v", env, err)
					return
				}
				leave()
			})
		}
		synctest.Wait()
		release()
		wg.Wait()
		if n := h.count("container.create"); n != 1 {
			t.Errorf("%d pauses", n)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestPauseThatDoesNotStartIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		h.set(func(int, string) verdict { return failBefore })
		if _, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_POD); !errors.Is(err, errInjected) {
			t.Errorf("enter: %v", err)
		}
		h.set(nil)
		_, _, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestStopEndsAPauseThatIsStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		release := h.block("container.create")
		entered := make(chan error)
		go func() { // ends when Stop closes the gate
			_, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
			entered <- err
		}()
		synctest.Wait()
		go stop(t, m, p) // ends with the pause's start
		if err := <-entered; !errors.Is(err, errdef.WrongState) {
			t.Errorf("enter: %v", err)
		}
		release()
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestEndOfThePauseEndsThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, l := h.start(t)
		p := run(t, m, "a")
		inner, _, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.create(inner, p.ID(), "c1"); err != nil {
			t.Fatal(err)
		}
		leave()
		m.PauseExited(p.ID())
		m.PauseExited("unknown")
		synctest.Wait()
		if s := p.Status(); s.State != NotReady || s.Reason != "PauseExited" {
			t.Errorf("the pod is %s, %s", s.State, s.Reason)
		}
		if h.containers[p.ID()]["c1"] {
			t.Error("the container still runs")
		}
		if _, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_POD); !errors.Is(err, errdef.WrongState) {
			t.Errorf("enter: %v", err)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}
