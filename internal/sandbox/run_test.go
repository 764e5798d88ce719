package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
)

func run(t testing.TB, m *Manager, name string) *Pod {
	t.Helper()
	p, err := m.Run(t.Context(), keyOf(name), config(name), "crun")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func remove(t testing.TB, m *Manager, pods ...*Pod) {
	t.Helper()
	for _, p := range pods {
		if err := m.Remove(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
}

func TestLifeOfAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, l := h.start(t)
		h.set(nil)
		h.log = nil
		if err := life(t, m, l); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want := "records.put creating|pin|add|files.make|files.hosts|records.put ready|container.create|container.create|" +
			"records.put notready|stop containers|del|records.put notready|unpin|" +
			"records.put notready|remove containers|files.remove|records.delete"
		slices.Sort(h.log[2:4]) // together, in any order
		if order := strings.Join(h.log, "|"); order != want {
			t.Errorf("calls\n got %s\nwant %s", order, want)
		}
		kinds := []event.Kind{}
		for _, e := range h.events {
			kinds = append(kinds, e.Kind)
			if e.PodID == "" || e.ContainerID != e.PodID {
				t.Errorf("event %+v", e)
			}
		}
		if !slices.Equal(kinds, []event.Kind{event.Created, event.Started, event.Stopped, event.Deleted}) {
			t.Errorf("events %v", kinds)
		}
		h.nothingLeft(t, m)
	})
}

func TestReadyPodTellsWhatItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		s := p.Status()
		if s.State != Ready || !slices.Equal(s.IPs, []string{"10.0.0.2", "fd00::2"}) || s.NetNS != "/ns/net/"+p.ID() ||
			s.CreatedAt.IsZero() || s.Hostname != "a" || s.CgroupParent != "/crid" || s.Reason != "" {
			t.Errorf("status %+v", s)
		}
		if p.Handler() != "crun" || p.Key() != keyOf("a") || !proto.Equal(p.Config(), config("a")) || len(p.ID()) != 64 {
			t.Errorf("pod %s: handler %s, key %s", p.ID(), p.Handler(), p.Key())
		}
		_, env, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		id := p.ID()
		if env.ID != id || env.NetNS != "/ns/net/"+id || env.IPCNS != "/ns/ipc/"+id || env.UTSNS != "/ns/uts/"+id ||
			env.PIDNS != "" || env.Shm != id+"/shm" || env.Hosts != id+"/hosts" || env.ResolvConf != id+"/resolv.conf" ||
			env.HostnameFile != id+"/hostname" || env.Hostname != "a" || env.Handler != "crun" || env.CgroupParent != "/crid" {
			t.Errorf("environment %+v", env)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestHostNetworkPodNeedsNoNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.noNetwork = true
		m, _ := h.start(t)
		cfg := config("a")
		cfg.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE},
		}}
		p, err := m.Run(t.Context(), keyOf("a"), cfg, "crun")
		if err != nil {
			t.Fatal(err)
		}
		_, env, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_NODE)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if env.NetNS+env.IPCNS+env.UTSNS+env.PIDNS+env.Shm != "" || env.Hostname != "thehost" {
			t.Errorf("environment %+v", env)
		}
		if w := h.pins[p.ID()]; w.Net || w.IPC || w.UTS || len(w.Sysctls) > 0 {
			t.Errorf("pinned %+v", w)
		}
		if f := h.files[p.ID()]; f.Shm || !f.HostNet || f.Hostname != "thehost" {
			t.Errorf("files %+v", f)
		}
		remove(t, m, p)
		if n := h.count("add") + h.count("del"); n > 0 {
			t.Errorf("the network was called %d times", n)
		}
		h.nothingLeft(t, m)
	})
}

func TestWithoutNetworkNothingIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.noNetwork = true
		m, _ := h.start(t)
		if _, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun"); !errors.Is(err, errdef.Unavailable) {
			t.Errorf("run: %v", err)
		}
		if n := h.count("records.put creating"); n > 0 {
			t.Errorf("%d records were written", n)
		}
		h.nothingLeft(t, m)
	})
}

func TestManyAtOnceMakeOnePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		var wg sync.WaitGroup
		pods := make([]*Pod, 16)
		for i := range pods {
			wg.Go(func() { pods[i] = run(t, m, "a") })
		}
		wg.Wait()
		for _, p := range pods {
			if p != pods[0] {
				t.Errorf("pods %s and %s", p.ID(), pods[0].ID())
			}
		}
		if n := h.count("add"); n != 1 || len(m.List()) != 1 {
			t.Errorf("%d attachments, %d pods", n, len(m.List()))
		}
		remove(t, m, pods[0])
		h.nothingLeft(t, m)
	})
}

func TestRequestBoundsWaitingNotWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		release := h.block("add")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Run(ctx, keyOf("a"), config("a"), "crun"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
		ops := m.InFlight()
		if len(ops) != 1 || ops[0].Kind != "run" || ops[0].Stage != "network and files" || ops[0].Age != time.Second || ops[0].Key != keyOf("a") {
			t.Errorf("in flight: %+v", ops)
		}
		if len(m.List()) != 0 {
			t.Error("a pod being created is listed")
		}
		if _, err := m.Get(ops[0].PodID); !errors.Is(err, errdef.NotFound) {
			t.Errorf("get a pod being created: %v", err)
		}
		time.AfterFunc(time.Second, release)
		p := run(t, m, "a")
		if p.ID() != ops[0].PodID || h.count("add") != 1 {
			t.Errorf("the retry made pod %s", p.ID())
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestWorkHasItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		release := h.block("add")
		begin := time.Now()
		if _, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
		if took := time.Since(begin); took != 4*time.Minute {
			t.Errorf("it took %s", took)
		}
		release()
		h.nothingLeft(t, m)
	})
}

func TestCloseUndoesPodsBeingCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		release := h.block("add")
		failed := make(chan error)
		go func() { // ends with Close
			_, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun")
			failed <- err
		}()
		synctest.Wait()
		shutDown(t, m)
		if err := <-failed; !errors.Is(err, errdef.Unavailable) {
			t.Errorf("run while closing: %v", err)
		}
		if _, err := m.Run(t.Context(), keyOf("b"), config("b"), "crun"); !errors.Is(err, errdef.Unavailable) {
			t.Errorf("run after close: %v", err)
		}
		release()
		h.nothingLeft(t, m)
	})
}

func TestRetryOfAReadyPodFindsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		other := config("a")
		other.Labels = nil
		again, err := m.Run(t.Context(), keyOf("a"), other, "crun")
		if err != nil || again != p {
			t.Errorf("again: %v, %v", again, err)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestAnotherAttemptIsAnotherPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		key := keyOf("a")
		key.Attempt = 1
		second, err := m.Run(t.Context(), key, config("a"), "crun")
		if err != nil || second == p {
			t.Fatalf("second attempt: %v", err)
		}
		remove(t, m, p, second)
		h.nothingLeft(t, m)
	})
}

func TestRetryOfAPodThatIsNotReadyIsToldHowToRemoveIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		if err := m.Stop(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		_, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun")
		if !errors.Is(err, errdef.Exists) || !strings.Contains(err.Error(), p.ID()) {
			t.Errorf("again: %v", err)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestRetryDuringRemovalWaitsAndMakesANewPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		release := h.block("files.remove")
		go remove(t, m, p) // ends once released
		synctest.Wait()
		time.AfterFunc(time.Second, release)
		begin := time.Now()
		again := run(t, m, "a")
		if again == p || time.Since(begin) < time.Second {
			t.Error("it did not wait for the removal")
		}
		remove(t, m, again)
		h.nothingLeft(t, m)
	})
}

func TestRetryDuringAFailingRunSharesTheFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		release := h.block("add")
		h.set(func(_ int, call string) verdict {
			if call == "add" {
				return failBefore
			}
			return pass
		})
		errs := make(chan error, 2)
		for range 2 {
			go func() { // ends with the Run
				_, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun")
				errs <- err
			}()
		}
		synctest.Wait()
		release()
		for range 2 {
			if err := <-errs; !errors.Is(err, errInjected) {
				t.Errorf("run: %v", err)
			}
		}
		if n := h.count("add"); n != 1 {
			t.Errorf("%d attempts", n)
		}
		h.set(nil)
		h.nothingLeft(t, m)
	})
}

func TestFailedUndoLeavesThePodListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		h.set(func(_ int, call string) verdict {
			if call == "add" || call == "unpin" {
				return failBefore
			}
			return pass
		})
		_, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun")
		if !errors.Is(err, errInjected) {
			t.Errorf("run: %v", err)
		}
		all := m.List()
		if len(all) != 1 || all[0].Status().Reason != "CreateFailed" || !strings.Contains(err.Error(), all[0].ID()) {
			t.Fatalf("%d pods are listed; run: %v", len(all), err)
		}
		if _, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun"); !errors.Is(err, errdef.Exists) {
			t.Errorf("run again: %v", err)
		}
		h.set(nil)
		remove(t, m, all[0])
		h.nothingLeft(t, m)
	})
}

func TestPodIsNotReadyUntilThatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		h.set(func(_ int, call string) verdict {
			if call == "records.put ready" {
				return failBefore
			}
			return pass
		})
		if _, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun"); !errors.Is(err, errInjected) {
			t.Errorf("run: %v", err)
		}
		for _, e := range h.events {
			if e.Kind != event.Deleted {
				t.Errorf("event %+v of a pod that never was ready", e)
			}
		}
		h.set(nil)
		h.nothingLeft(t, m)
	})
}

func TestGetByPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		a, b := run(t, m, "a"), run(t, m, "b")
		for _, id := range []string{a.ID(), a.ID()[:40]} {
			if p, err := m.Get(id); err != nil || p != a {
				t.Errorf("get %s: %v", id, err)
			}
		}
		for _, id := range []string{"", "none", a.ID() + "0"} {
			if _, err := m.Get(id); !errors.Is(err, errdef.NotFound) {
				t.Errorf("get %q: %v", id, err)
			}
		}
		c := newPod(m, a.ID()[:10]+"-twin", *a.rec.Load())
		m.mu.Lock()
		m.pods[c.id] = c
		m.mu.Unlock()
		if _, err := m.Get(a.ID()[:10]); !errors.Is(err, errdef.Invalid) {
			t.Errorf("get what two begin with: %v", err)
		}
		m.mu.Lock()
		delete(m.pods, c.id)
		m.mu.Unlock()
		remove(t, m, a, b)
		h.nothingLeft(t, m)
	})
}
