package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// written waits until there is a line behind those that are there now, in one of the files at path, hidden ones too.
func written(t *testing.T, path string) {
	t.Helper()
	size := func() (all int64) {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				all += info.Size()
			}
		}
		return all
	}
	before, limit := size(), time.Now().Add(10*time.Second)
	for size() <= before {
		if time.Now().After(limit) {
			t.Fatal("the container's output goes nowhere")
		}
		<-time.After(time.Millisecond)
	}
}

// complete looks whether the files have every line that the container wrote, in order, and that nothing else is left in
// their directory.
func complete(t *testing.T, path string, older ...string) {
	t.Helper()
	var text strings.Builder
	for _, name := range append(older, path) {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) == 0 {
			t.Errorf("nothing is in %s", name)
		}
		text.Write(raw)
	}
	n := 0
	for line := range strings.Lines(text.String()) {
		if !strings.HasSuffix(line, fmt.Sprintf(" F line %d\n", n)) {
			t.Fatalf("line %d is %q", n, line)
		}
		n++
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != len(older)+1 {
		t.Errorf("in the log's directory: %v, %v", entries, err)
	}
}

// unheard reopens the log of p without telling anybody, and renames the old log back as the kubelet does then.
func unheard(t *testing.T, p *Process, path string) {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	written(t, path)
	rename(t, path, path+".1")
	if err := p.begin(path); err != nil {
		t.Fatal(err)
	}
	if _, err := p.renew(t.Context(), path, watcher); err != nil {
		t.Fatal(err)
	}
	rename(t, path+".1", path)
	written(t, path)
}

// end ends the container and waits until its log is complete and has one name.
func (h *host) end(p *Process, path string) {
	h.t.Helper()
	if err := p.Signal(syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	h.wait(p)
	if rotated, err := p.reconcile(path); err != nil || rotated != "" {
		h.t.Errorf("at the end: %q, %v", rotated, err)
	}
}

func TestAReopeningThatTheMonitorDoesNotBegin(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("late")
	written(t, path)
	if err := p.monitor.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	rename(t, path, path+".1")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.ReopenLog(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	rename(t, path+".1", path)
	if err := p.monitor.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		written(t, path)
	}
	h.end(p, path)
	complete(t, path)
}

// The last lines of a container that ends as its log is reopened are in the new one, which must not be renamed away.
func TestAReopeningAtTheContainersEnd(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("ending")
	blind, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer blind.Close()
	written(t, path)
	rename(t, path, path+".1")
	if err := p.begin(path); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { // ends with the monitor
		_, err := p.renew(t.Context(), path, blind)
		ended <- err
	}()
	for !p.writesTo(path) {
		<-time.After(time.Millisecond)
	}
	written(t, path)
	h.end(p, path)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	complete(t, path, path+".1")
}

func TestAReopeningThatIsAskedForAgain(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("again")
	unheard(t, p, path)
	rename(t, path, path+".1")
	if err := p.ReopenLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	written(t, path) // and again while the new log has its spare name
	rename(t, path, path+".2")
	if err := p.ReopenLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	written(t, path)
	h.end(p, path)
	complete(t, path, path+".1", path+".2")
}

// What nobody asks for again is put in order by the next crid, be the container's end what it finds.
func TestAReopeningThatNobodyAsksForAgain(t *testing.T) {
	for _, ends := range []bool{false, true} {
		t.Run(fmt.Sprint("ends ", ends), func(t *testing.T) {
			h := newHost(t, "crun", t.TempDir())
			p, path := h.chatter("unheard")
			unheard(t, p, path)
			if ends {
				if err := p.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				h.wait(p)
			}
			ref := p.Ref()
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			h.Launcher = h.launcher()
			p, err := h.Open("unheard", ref)
			if err != nil {
				t.Fatal(err)
			}
			w := &logWatch{launcher: h.Launcher, log: slog.New(slog.DiscardHandler), looks: map[*Process]look{}}
			w.round()
			if h.interrupted("unheard") == "" {
				t.Error("the client had no time to rename the old log back")
			}
			long := unix.NsecToTimeval(time.Now().Add(-answerTime - time.Second).UnixNano())
			if err := unix.Lutimes(h.path("unheard", reopeningFile), []unix.Timeval{long, long}); err != nil {
				t.Fatal(err)
			}
			w.round()
			if !ends {
				written(t, path)
				h.end(p, path)
			}
			older, err := filepath.Glob(path + ".*")
			if err != nil || len(older) != 1 {
				t.Fatalf("older logs: %v, %v", older, err)
			}
			complete(t, path, older[0])
		})
	}
}

// A container that has the log's directory mounted must not lead the monitor, which is root, to other files.
func TestReopenLogWhereTheNewOneIsALink(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("planted")
	victim := filepath.Join(h.dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{newName(path), spareName(path)} {
		if err := os.Symlink(victim, name); err != nil {
			t.Fatal(err)
		}
	}
	written(t, path)
	rename(t, path, path+".1")
	if err := p.ReopenLog(t.Context()); err != nil {
		t.Fatal(err)
	}
	written(t, path)
	h.end(p, path)
	complete(t, path, path+".1")
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the file behind the link is %q, %v", text, err)
	}
}
