package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/isolate"
)

func TestLongPathsDoNotHurt(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		h := newHost(t, "crun", longDir(t))
		s := h.spec(strings.Repeat("0123456789abcdef", 4), "echo ready; sleep 1000")
		if terminal {
			s.Config = []byte(strings.Replace(string(s.Config), `"process":{`, `"process":{"terminal":true,`, 1))
		}
		s.Terminal, s.Stdin = terminal, true
		s.Name = strings.Repeat("n", 300)
		p := h.run(s)
		h.waitForLog(s.ID, "ready")
		if socket := filepath.Join(p.Bundle(), "attach"); len(socket) < 108 {
			t.Errorf("%s is not long", socket)
		} else if info, err := os.Stat(socket); err != nil || info.Mode()&os.ModeSocket == 0 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

// longDir returns a directory whose name alone is longer than a socket's may be.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestATerminal(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("tty", "ls -l /proc/self/fd/0; exit 3")
		s.Config = []byte(strings.Replace(string(s.Config), `"process":{`, `"process":{"terminal":true,`, 1))
		s.Terminal = true
		if exit := h.wait(h.run(s)); exit.Code != 3 {
			t.Errorf("%+v", exit)
		}
		if text := h.log("tty"); !strings.Contains(text, "/dev/pts/0") {
			t.Errorf("log %q", text)
		}
	})
}

func TestAFailedCreateIsToldInTheRuntimesWords(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("nosuch", "")
		s.Config = []byte(strings.Replace(string(s.Config), `"sh"`, `"/no/such/program"`, 1))
		p, err := h.Start(t.Context(), s)
		if err == nil {
			t.Fatalf("%+v", p.Ref())
		}
		if !strings.Contains(err.Error(), "/no/such/program") || !strings.HasPrefix(err.Error(), "create container nosuch: ") {
			t.Error(err)
		}
	})
	for part, want := range map[string]string{"refuse": `no such luck: "quoted"`, "shout": "xxxx", "mute": "without a word"} {
		t.Run(part, func(t *testing.T) {
			h := newHost(t, "crun", t.TempDir())
			s := h.spec(part, "true")
			s.Runtime = fakeRuntime(t, part)
			_, err := h.Start(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		})
	}
}

// A runtime that is killed when the container stands says nothing, and conmon waits for the container's output to end.
func TestARuntimeThatIsKilledBehindItsWork(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("killed", "sleep 1000")
	s.Runtime = filepath.Join(h.dir, "killed-runtime")
	script := fmt.Sprintf("#!/bin/sh\n%s \"$@\"\nkill -9 $$\n", h.runtime)
	if err := os.WriteFile(s.Runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := h.Start(t.Context(), s)
	if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v to notice", took)
	}
}

func TestAMonitorThatIsKilledBeforeItsWork(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	h.cfg.Path = filepath.Join(h.dir, "conmon")
	if err := os.WriteFile(h.cfg.Path, []byte("#!/bin/sh\nkill -9 $$\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := h.Start(t.Context(), h.spec("early", "true"))
	if err == nil || !strings.Contains(err.Error(), "the monitor") || !strings.Contains(err.Error(), "killed") {
		t.Error(err)
	}
}

func fakeRuntime(t *testing.T, part string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fake-"+part)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAStartThatCannotBegin(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	for _, test := range []struct {
		id, want string
		kind     error
		edit     func(*Spec)
	}{
		{"colon", "colon", errdef.Invalid, func(s *Spec) { s.LogPath = h.dir + "/a:b" }},
		{"nodir", "log file", nil, func(s *Spec) { s.LogPath = h.dir + "/no/such/dir/log" }},
		{"noruntime", "/no/runtime", nil, func(s *Spec) { s.Runtime = "/no/runtime" }},
		{"noconfig", "", nil, func(s *Spec) { s.Config = nil }},
		{"nocgroup", "cgroup", nil, func(s *Spec) { s.Cgroup = "/../escape" }},
	} {
		s := h.spec(test.id, "true")
		test.edit(&s)
		_, err := h.Start(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), test.want) || (test.kind != nil && !errors.Is(err, test.kind)) {
			t.Errorf("%s: %v", test.id, err)
		}
	}
	h.run(h.spec("twice", "sleep 1000"))
	if _, err := h.Start(t.Context(), h.spec("twice", "true")); !errors.Is(err, errdef.Exists) {
		t.Error(err)
	}
}

func TestAMissingMonitorNamesItsPackage(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	h.cfg.Path = "/no/conmon"
	_, err := h.Start(t.Context(), h.spec("none", "true"))
	if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), "/no/conmon") || !strings.Contains(err.Error(), "install the package conmon") {
		t.Error(err)
	}
}

func TestACancelledStartIsUndone(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("cancelled", "true")
	s.Runtime = fakeRuntime(t, "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := h.Start(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("answered after %v", took)
	}
	if _, about := h.Find("cancelled"); !about {
		t.Error("the monitor is not found")
	}
	if err := h.Remove(t.Context(), "cancelled"); err != nil {
		t.Fatal(err)
	}
	if config, about := h.Find("cancelled"); about || config != nil {
		t.Error("found after Remove")
	}
}

// A crid that dies before it has armed the monitor leaves one that reads the end of its start pipe.
func TestAMonitorThatWasNotArmedCreatesNothing(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("unarmed", "sleep 1000")
	if err := h.prepare(s); err != nil {
		t.Fatal(err)
	}
	b, err := h.spawn(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.start.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if pid, err := b.created(t.Context()); err == nil {
		t.Errorf("created process %d", pid)
	}
	if err := b.sync.Close(); err != nil {
		t.Error(err)
	}
	pids, err := h.cgroups.Pids(cgroup.Names{}.Leaf(isolate.CgroupParent(), "unarmed"))
	if err != nil || len(pids) > 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestFindKnowsAMonitorThatNoRecordNames(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("unrecorded", "sleep 1000")
	p := h.run(s)
	if config, about := h.launcher().Find("unrecorded"); !about || !bytes.Equal(config, s.Config) {
		t.Errorf("found %t, %s", about, config)
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-p.monitorGone
	if config, about := h.launcher().Find("unrecorded"); about || !bytes.Equal(config, s.Config) {
		t.Errorf("found %t, %s once it has ended", about, config)
	}
	if config, about := h.Find("nobody"); about || config != nil {
		t.Errorf("found %t, %s of nobody", about, config)
	}
}

func TestTheMonitorSitsInItsCgroupAndInheritsNothing(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("clean", "env; sleep 1000")
	p := h.run(s)
	h.waitForLog("clean", "PATH=")
	pids, err := h.cgroups.Pids(s.Cgroup)
	if err != nil || len(pids) != 1 || pids[0] != p.Ref().MonitorPID {
		t.Errorf("in the monitor's cgroup: %v, %v; want %d", pids, err, p.Ref().MonitorPID)
	}
	environ, err := os.ReadFile(procFile(p.Ref().MonitorPID, "environ"))
	if err != nil || strings.Contains(string(environ), "NOTIFY_SOCKET") {
		t.Errorf("environment of the monitor: %q, %v", environ, err)
	}
	if text := h.log("clean"); strings.Contains(text, "NOTIFY") || strings.Contains(text, "_OCI_") || strings.Contains(text, "TMPDIR") {
		t.Errorf("environment of the container: %s", text)
	}
}
