package container

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
)

func TestStopAsksThenKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		var sent []string
		h.script = script{ignoreTerm: true, onSignal: func(sig string) { sent = append(sent, sig) }}
		c := mustStart(t, m, h.request("web"))
		begun := time.Now()
		if err := c.Stop(t.Context(), 30*time.Second); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 30*time.Second {
			t.Errorf("stopped after %s", took)
		}
		if got := strings.Join(sent, ","); got != "terminated,killed" {
			t.Errorf("signals %s", got)
		}
		if s := c.Status(); s.ExitCode != 137 || s.State != Exited {
			t.Errorf("got %+v", s.Life)
		}
	})
}

func TestStopsShareTheOutcomeAndTheShorterGraceWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		signals := 0
		h.script = script{ignoreTerm: true, onSignal: func(string) { signals++ }}
		c := mustStart(t, m, h.request("web"))
		begun := time.Now()
		var wg sync.WaitGroup
		for _, stop := range []struct{ after, grace time.Duration }{
			{0, time.Hour}, {time.Second, 10 * time.Second}, {2 * time.Second, time.Minute}, {3 * time.Second, 2 * time.Second},
		} {
			wg.Go(func() {
				<-time.After(stop.after)
				if err := c.Stop(t.Context(), stop.grace); err != nil {
					t.Error(err)
				}
				if took := time.Since(begun); took != 5*time.Second {
					t.Errorf("the stop of %+v ended after %s", stop, took)
				}
			})
		}
		wg.Wait()
		if signals != 2 {
			t.Errorf("%d signals for TERM and KILL", signals)
		}
	})
}

func TestStopReturnsOnceTheExitIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustStart(t, m, h.request("web"))
		gate := h.hang("record put exited")
		time.AfterFunc(3*time.Second, func() { close(gate) })
		begun := time.Now()
		if err := c.Stop(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("stopped after %s", took)
		}
		wantState(t, c, Exited)
	})
}

func TestStopNamesWhoSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		h.script.stubborn = true
		c := mustStart(t, m, h.request("web"))
		err := c.Stop(t.Context(), 0)
		if err == nil || !strings.Contains(err.Error(), "1002 survives") {
			t.Fatalf("got %v", err)
		}
		wantState(t, c, Running)
		wantKind(t, m.RemovePod(t.Context(), testPod), context.DeadlineExceeded)
		if len(m.List()) != 1 {
			t.Error("what lives on is not listed")
		}
		h.mu.Lock()
		h.script.stubborn = false
		h.mu.Unlock()
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Fatal(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestAClientThatGivesUpDoesNotEndTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		h.script.ignoreTerm = true
		c := mustStart(t, m, h.request("web"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantKind(t, c.Stop(ctx, 10*time.Second), context.DeadlineExceeded)
		<-c.exited
		if took := c.Status().FinishedAt.Sub(c.Status().StartedAt); took != 10*time.Second {
			t.Errorf("killed after %s", took)
		}
	})
}

func TestTheEndOfCridHurriesWhoOnlyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m := h.boot().open()
		h.script = script{ignoreTerm: true}
		c, other := mustStart(t, m, h.request("web")), mustStart(t, m, h.request("other"))
		ended := make(chan error, 2)
		go func() { ended <- c.Stop(t.Context(), time.Hour) }() // ends by Hurry
		go func() {                                             // the same
			_, err := c.Exec(t.Context(), []string{"sleep", "1000"}, 0, 100)
			ended <- err
		}()
		synctest.Wait()
		begun := time.Now()
		m.Hurry()
		wantKind(t, <-ended, errdef.Unavailable)
		wantKind(t, <-ended, errdef.Unavailable)
		wantKind(t, c.Stop(t.Context(), time.Hour), errdef.Unavailable)
		wantState(t, c, Running)
		if err := other.Remove(t.Context()); err != nil {
			t.Errorf("what does not wait is not done any more: %v", err)
		}
		closeManager(t, m)
		if took := time.Since(begun); took > 0 {
			t.Errorf("closed after %s", took)
		}
		wantState(t, c, Running)
	})
}

// TestTheEndWaitsForAKill closes while a kill waits for the exit: the watcher must live to see it.
func TestTheEndWaitsForAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m := h.boot().open()
		c := mustStart(t, m, h.request("web"))
		gate := h.hang("record put exited")
		time.AfterFunc(time.Second, func() { close(gate) })
		removed := make(chan error, 1)
		go func() { removed <- c.Remove(t.Context()) }()
		synctest.Wait()
		closeManager(t, m)
		if err := <-removed; err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestAStopIsNoOOMKill(t *testing.T) {
	h, m := start(t)
	h.script.oomKills = 1 // of a child, earlier, and the container went on
	c := mustStart(t, m, h.request("web"))
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if s := c.Status(); s.ExitCode != 137 || s.Reason != ReasonError {
		t.Errorf("got %+v", s.Life)
	}
}

// What crid has sent is known to the next crid, which may be the one that sees the exit.
func TestAStopAcrossARestartIsNoOOMKill(t *testing.T) {
	for name, c := range map[string]struct {
		code   int
		signal bool
		reason string
	}{
		"asked to end":                     {143, true, ReasonError},
		"nobody asked, a child was killed": {1, false, ReasonOOMKilled},
	} {
		t.Run(name, func(t *testing.T) {
			h, m := start(t)
			h.script.oomKills, h.script.ignoreTerm = 2, true
			old := mustStart(t, m, h.request("web"))
			ctx, cancel := context.WithCancel(t.Context())
			stopped := make(chan error, 1)
			if c.signal {
				sent := make(chan struct{})
				h.script.onSignal = func(string) { close(sent) }
				go func() { stopped <- old.Stop(ctx, time.Hour) }()
				<-sent
			} else {
				stopped <- nil
			}
			m.Hurry()
			m, errs := restart(t, h, m, func() { h.mains[old.ID()].end(monitor.Exit{Code: c.code, OOM: true}) })
			cancel()
			<-stopped
			web := loaded(t, m, old)
			<-web.exited
			if s := web.Status(); s.Reason != c.reason || len(errs) > 0 {
				t.Errorf("got %+v, %v", s.Life, errs)
			}
		})
	}
}

func TestStopOfWhatDoesNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustCreate(t, m, h.request("web"))
		begun := time.Now()
		if err := c.Stop(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("a container that never ran was given %s", took)
		}
		wantState(t, c, Exited)
		wantKind(t, c.Start(t.Context()), errdef.WrongState)
	})
}

func TestStopEndsAStartThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		c := mustCreate(t, m, h.request("web"))
		gate := h.hang("runtime start")
		started := make(chan error, 1)
		go func() { started <- c.Start(context.Background()) }()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(gate) })
		if err := c.Stop(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := <-started; err == nil {
			t.Error("the start of a killed container succeeded")
		}
		if s := c.Status(); s.Reason != ReasonStartError {
			t.Errorf("got %+v", s.Life)
		}
	})
}

// The three below run without fake time, for the race detector.

func TestStopAgainstExit(t *testing.T) {
	for range 50 {
		h, m := start(t)
		c := mustStart(t, m, h.request("web"))
		var wg sync.WaitGroup
		wg.Go(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.mains[c.ID()].end(monitor.Exit{Code: 7})
		})
		for range 3 {
			wg.Go(func() {
				if err := c.Stop(t.Context(), time.Minute); err != nil {
					t.Error(err)
				}
				wantState(t, c, Exited)
			})
		}
		wg.Wait()
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	}
}

func TestRemoveAgainstExitAndStart(t *testing.T) {
	for range 50 {
		h, m := start(t)
		c := mustCreate(t, m, h.request("web"))
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Start(t.Context()); err != nil && !errors.Is(err, errdef.WrongState) && c.Status().Reason != ReasonStartError {
				t.Errorf("start: %v", err)
			}
		})
		wg.Go(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if p := h.mains[c.ID()]; p != nil {
				p.end(monitor.Exit{Code: 7})
			}
		})
		for range 3 {
			wg.Go(func() {
				if err := c.Remove(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		h.wantNothingLeft(m)
	}
}

func TestPodsCreatesAgainstItsRemoval(t *testing.T) {
	for range 50 {
		h, m := start(t)
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b", "c", "d"} {
			wg.Go(func() {
				c, err := m.Create(t.Context(), h.request(name))
				if err == nil {
					_ = c.Start(t.Context()) // the removal may be quicker
				}
			})
		}
		wg.Go(func() {
			if err := m.RemovePod(t.Context(), testPod); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	}
}

// TestNothingEndsBeforeItBegan has exits recorded by a clock that is behind: that of files ticks a hundred times a second.
func TestNothingEndsBeforeItBegan(t *testing.T) {
	made := time.Now()
	started := made.Add(time.Millisecond)
	for name, life := range map[string]Life{
		"created": {CreatedAt: made}, "started": {CreatedAt: made, StartedAt: started},
	} {
		s := Status{Life: life}
		ended(&s, monitor.Exit{At: made.Add(-time.Millisecond)})
		if s.FinishedAt.Before(s.CreatedAt) || s.FinishedAt.Before(s.StartedAt) {
			t.Errorf("%s: made at %v, started at %v, ended at %v", name, s.CreatedAt, s.StartedAt, s.FinishedAt)
		}
	}
}
