package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/state"
)

// restart ends m and starts another crid on the same host.
func (h *fakeHost) restart(t testing.TB, m *Manager) (*Manager, *link) {
	t.Helper()
	shutDown(t, m)
	return h.start(t)
}

func TestReadyPodSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		before := run(t, m, "a")
		_, _, leave, err := before.Enter(t.Context(), runtime.NamespaceMode_POD)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		m, _ = h.restart(t, m)
		p, err := m.Get(before.ID())
		if err != nil {
			t.Fatal(err)
		}
		if s, was := p.Status(), before.Status(); s.State != Ready || !s.CreatedAt.Equal(was.CreatedAt) || s.NetNS != was.NetNS || len(s.IPs) != 2 {
			t.Errorf("status was %+v and is %+v", was, s)
		}
		if !proto.Equal(p.Config(), config("a")) || p.Handler() != "crun" {
			t.Errorf("configuration %v", p.Config())
		}
		if again := run(t, m, "a"); again != p {
			t.Error("a retry made another pod")
		}
		_, env, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
		if err != nil || env.PIDNS != "/proc/1234/ns/pid" || h.count("container.create") != 1 {
			t.Fatalf("the pause was started again: %v", err)
		}
		leave()
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestWhatEndsAReadyPodBetweenTwoLives(t *testing.T) {
	for reason, happen := range map[string]func(h *fakeHost, p *Pod){
		"Rebooted":      func(h *fakeHost, _ *Pod) { h.boot = "boot-2"; clear(h.pins); clear(h.containers) },
		"NamespaceLost": func(h *fakeHost, p *Pod) { delete(h.pins, p.ID()) },
		"PauseExited":   func(h *fakeHost, p *Pod) { h.containers[p.ID()]["pause"] = false },
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				m, _ := h.start(t)
				p := run(t, m, "a")
				_, _, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_POD)
				if err != nil {
					t.Fatal(err)
				}
				leave()
				happen(h, p)
				m, _ = h.restart(t, m)
				if p, err = m.Get(p.ID()); err != nil {
					t.Fatal(err)
				}
				if s := p.Status(); s.State != NotReady || s.Reason != reason || s.Message == "" {
					t.Errorf("the pod is %s, %s: %s", s.State, s.Reason, s.Message)
				}
				if _, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER); !errors.Is(err, errdef.WrongState) {
					t.Errorf("enter: %v", err)
				}
				if h.count("del") != 0 {
					t.Error("the network was detached before anybody asked")
				}
				remove(t, m, p)
				if h.count("del") != 1 {
					t.Error("the network was not detached")
				}
				h.nothingLeft(t, m)
			})
		})
	}
}

func TestStoppedPodIsNotDetachedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		p := run(t, m, "a")
		stop(t, m, p)
		m, _ = h.restart(t, m)
		if p, err := m.Get(p.ID()); err != nil {
			t.Error(err)
		} else {
			remove(t, m, p)
		}
		if n := h.count("del"); n != 1 {
			t.Errorf("%d DELs", n)
		}
		h.nothingLeft(t, m)
	})
}

func TestAStopThatWasCutShortIsFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, l := h.start(t)
		p := run(t, m, "a")
		h.set(func(_ int, call string) verdict {
			if call == "stop containers" {
				return crashBefore
			}
			return pass
		})
		if err := m.Stop(t.Context(), p); err == nil {
			t.Error("stop by a dead crid")
		}
		_ = l.m.Close(t.Context()) // of a crashed crid
		h.set(nil)
		m, _ = h.start(t)
		synctest.Wait()
		if h.count("del") != 1 || len(h.pins) > 0 {
			t.Errorf("%d DELs, pins %v", h.count("del"), h.pins)
		}
		p, err := m.Get(p.ID())
		if err != nil || p.Status().State != NotReady {
			t.Fatalf("the pod: %v, %v", p, err)
		}
		remove(t, m, p)
		h.nothingLeft(t, m)
	})
}

func TestOneBadRecordHurtsOnePod(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir, id string){
		"not JSON": func(t *testing.T, dir, id string) {
			if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"of a newer crid": func(t *testing.T, dir, id string) {
			d, err := state.Open[Record](dir, RecordVersion+1)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Put(id, Record{State: Ready}), d.Close()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost(t)
				dir := t.TempDir()
				h.records = openDir[Record](t, dir, RecordVersion)
				m, _ := h.start(t)
				bad, good := run(t, m, "bad"), run(t, m, "good")
				shutDown(t, m)
				spoil(t, dir, bad.ID())

				m, _ = h.boots()
				if errs := m.Load(t.Context()); len(errs) != 1 {
					t.Errorf("load: %v", errs)
				}
				if all := m.List(); len(all) != 1 || all[0].ID() != good.ID() || all[0].Status().State != Ready {
					t.Errorf("%d pods are listed", len(all))
				}
				if b := m.Unreadable(); len(b) != 1 || !strings.Contains(b[0].Error(), "crictl rmp "+bad.ID()) {
					t.Errorf("unreadable: %v", b)
				}
				if len(m.Attachments()) != 2 {
					t.Error("garbage collection would take the network of the broken pod")
				}
				p, err := m.Get(bad.ID())
				if err != nil {
					t.Fatal(err)
				}
				if s := p.Status(); s.State != NotReady || s.Reason != "RecordUnreadable" || p.Config().GetMetadata() == nil {
					t.Errorf("status %+v", s)
				}
				if _, _, _, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER); !errors.Is(err, errdef.WrongState) {
					t.Errorf("enter: %v", err)
				}
				stop(t, m, p)
				remove(t, m, p)
				if p, err = m.Get(good.ID()); err != nil {
					t.Fatal(err)
				}
				remove(t, m, p)
				h.nothingLeft(t, m)
			})
		})
	}
}

func TestUnfinishedPodThatCannotBeErasedIsListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, l := h.start(t)
		h.set(func(_ int, call string) verdict {
			if call == "add" {
				return crashAfter
			}
			return pass
		})
		if _, err := m.Run(t.Context(), keyOf("a"), config("a"), "crun"); err == nil {
			t.Error("run on a dead crid")
		}
		_ = l.m.Close(t.Context()) // of a crashed crid
		h.set(func(_ int, call string) verdict {
			if call == "files.remove" {
				return failBefore
			}
			return pass
		})
		m, _ = h.start(t)
		synctest.Wait()
		all := m.List()
		if len(all) != 1 || all[0].Status().Reason != "CreateInterrupted" {
			t.Fatalf("%d pods are listed", len(all))
		}
		h.set(nil)
		m, _ = h.restart(t, m) // takes the erasure up again
		synctest.Wait()
		h.nothingLeft(t, m)
	})
}

func TestUnreadableStoreIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		dir := filepath.Join(t.TempDir(), "gone")
		h.records = openDir[Record](t, dir, RecordVersion)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		m, _ := h.boots()
		if errs := m.Load(t.Context()); len(errs) != 1 {
			t.Errorf("load: %v", errs)
		}
		shutDown(t, m)
	})
}

func TestCollectRemovesWhatHasNoRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m, _ := h.start(t)
		lost, err := m.Run(t.Context(), keyOf("lost"), config("lost"), "crun")
		if err != nil {
			t.Fatal(err)
		}
		kept, err := m.Run(t.Context(), keyOf("kept"), config("kept"), "crun")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.records.Delete(lost.ID()); err != nil {
			t.Fatal(err)
		}
		m, _ = h.restart(t, m)
		list := func() ([]string, error) { return h.ids(), nil }
		for range 2 {
			if errs := m.Collect(t.Context(), list); len(errs) > 0 {
				t.Error(errs)
			}
		}
		if left := h.ids(); !slices.Equal(left, []string{kept.ID()}) || len(m.Unreadable()) > 0 {
			t.Errorf("left %v, unreadable %v", left, m.Unreadable())
		}
		cleanUp(t, m)
		h.nothingLeft(t, m)
		shutDown(t, m)
	})
}
