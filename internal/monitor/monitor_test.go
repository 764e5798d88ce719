package monitor

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
)

func TestExitsAreRecorded(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		for _, test := range []struct {
			id, shell string
			code      int
		}{
			{"zero", "true", 0},
			{"seven", "exit 7", 7},
			{"most", "exit 255", 255},
			{"killed", "kill -9 $$", 0}, // PID 1 ignores signals from within
		} {
			began := time.Now()
			p := h.run(h.spec(test.id, test.shell))
			exit := h.wait(p)
			if exit.Code != test.code || exit.Lost || exit.OOM || exit.Message != "" {
				t.Errorf("%s: %+v", test.id, exit)
			}
			if exit.At.Before(began.Add(-time.Second)) || exit.At.After(time.Now()) {
				t.Errorf("%s: ended at %v, began at %v", test.id, exit.At, began)
			}
			if p.Alive() {
				t.Errorf("%s: alive", test.id)
			}
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Errorf("%s: signal: %v", test.id, err)
			}
		}
	})
}

func TestSignalsReachTheProcess(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		p := h.run(h.spec("trap", "trap 'exit 33' TERM; echo ready; while :; do sleep 0.05; done"))
		h.waitForLog("trap", "ready")
		if !p.Alive() {
			t.Error("not alive")
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if exit := h.wait(p); exit.Code != 33 {
			t.Errorf("%+v", exit)
		}
		q := h.run(h.spec("kill", "sleep 1000"))
		if err := q.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if exit := h.wait(q); exit.Code != 137 || exit.Lost {
			t.Errorf("%+v", exit)
		}
	})
}

func TestAKilledMonitorIsNoticedAtOnce(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		p := h.run(h.spec("orphan", "sleep 1000"))
		began := time.Now()
		if err := p.monitor.signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		exit := h.wait(p)
		if took := time.Since(began); took > 500*time.Millisecond { // 100 ms, and a busy machine
			t.Errorf("noticed after %v", took)
		}
		if !exit.Lost || exit.Message == "" || exit.Code != 137 && exit.Code != codeUnknown {
			t.Errorf("%+v", exit)
		}
		if p.Alive() {
			t.Error("the process outlives its exit")
		}
	})
}

func TestTheKernelKnowsACodeThatNobodyRecorded(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p := h.run(h.spec("race", "sleep 0.3; exit 44"))
	// The monitor neither reaps nor records what ends while it is stopped.
	if err := p.monitor.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-p.containerGone
	if err := p.monitor.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit := h.wait(p); exit.Code != 44 || !exit.Lost {
		t.Errorf("%+v", exit)
	}
}

func TestAMonitorThatHangsIsNotWaitedForForEver(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p := h.run(h.spec("hang", "sleep 1000"))
	if err := p.monitor.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit := h.wait(p)
	if took := time.Since(began); took < recordWait || took > recordWait+2*time.Second {
		t.Errorf("after %v", took)
	}
	if exit.Code != 137 || !exit.Lost {
		t.Errorf("%+v", exit)
	}
}

func TestOutOfMemoryIsTold(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("oom", "sleep 0.2; x=x; while :; do x=$x$x; done")
	s.Config = []byte(strings.Replace(string(s.Config), `"resources":{`, `"resources":{"memory":{"limit":8388608,"swap":8388608},`, 1))
	p := h.run(s)
	if exit := h.wait(p); exit.Code != 137 || !exit.OOM {
		t.Errorf("%+v", exit)
	}
}

func TestAnotherCridFindsWhatRan(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		ended, running := h.run(h.spec("ended", "read x < /proc/uptime; while [ ! -e /tmp/never ]; do sleep 0.05; done")), h.run(h.spec("running", "sleep 1000"))
		if err := h.Close(); err != nil { // crid ends
			t.Fatal(err)
		}
		if err := ended.container.close(); err != nil { // repeatable
			t.Error(err)
		}
		if err := syscall.Kill(ended.Ref().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.Launcher = h.launcher() // crid starts
		p, err := h.Open("ended", ended.Ref())
		if err != nil {
			t.Fatal(err)
		}
		if exit := h.wait(p); exit.Code != 137 || exit.Lost {
			t.Errorf("%+v", exit)
		}
		again, err := h.Open("ended", ended.Ref())
		if err != nil {
			t.Fatal(err)
		}
		if one, two := h.wait(p), h.wait(again); one != two {
			t.Errorf("%+v, then %+v", one, two)
		}
		q, err := h.Open("running", running.Ref())
		if err != nil || !q.Alive() || q.Ref() != running.Ref() || q.Bundle() != running.Bundle() {
			t.Fatalf("%+v, %v", q, err)
		}
		if err := q.ReopenLog(t.Context()); err != nil {
			t.Error(err)
		}
		if err := q.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if exit := h.wait(q); exit.Code != 137 || exit.Lost {
			t.Errorf("%+v", exit)
		}
	})
}

func TestARecycledPidIsNotTaken(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	other := h.run(h.spec("other", "sleep 1000")).Ref()
	other.Start++
	other.MonitorStart++
	p, err := h.Open("gone", other)
	if err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("taken for alive")
	}
	if exit := h.wait(p); !exit.Lost || exit.Code != codeUnknown {
		t.Errorf("%+v", exit)
	}
	h.made = append(h.made, "gone")
}

func TestWaitEndsWithItsContext(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p := h.run(h.spec("patient", "sleep 1000"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The monitor's end may come between any two looks at it: when its command line is read, there may be none.
func TestWhatIsAskedOfAMonitorThatIsGone(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone, err := openPid(cmd.Process.Pid, func(stat) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	defer gone.close()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ask := func(when string, p *Process) {
		if _, err := p.readMode(); !errors.Is(err, errdef.WrongState) {
			t.Errorf("stdin of one that %s: %v", when, err)
		}
		if _, err := p.logPath(); !errors.Is(err, errdef.WrongState) {
			t.Errorf("log of one that %s: %v", when, err)
		}
	}
	if err := gone.wait(); err != nil {
		t.Fatal(err)
	}
	ask("is a zombie", &Process{monitor: gone})
	_ = cmd.Wait() // it was killed
	ask("is reaped", &Process{monitor: gone})
	ask("was gone before", &Process{})
}
