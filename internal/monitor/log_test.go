package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
)

func TestTheLogIsInTheFormatOfCRI(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p := h.run(h.spec("log", "echo out; echo err >&2; printf end"))
	h.wait(p)
	text := h.log("log")
	for _, want := range []string{`stdout F out\n`, `stderr F err\n`, `stdout P end\n`} {
		if !regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) ` + want).MatchString(text) {
			t.Errorf("no %q in %q", want, text)
		}
	}
}

func TestALongLogIsWholeWhenTheExitIsPublished(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p := h.run(h.spec("long", "seq 1 12000000")) // 99 MB
	h.wait(p)
	info, err := os.Stat(h.logPath("long"))
	if err != nil || info.Size() < 100<<20 {
		t.Fatalf("%v, %v", info, err)
	}
	out, err := exec.Command("tail", "-n1", h.logPath("long")).Output()
	if err != nil || !strings.HasSuffix(string(out), "F 12000000\n") {
		t.Errorf("the log ends with %q, %v", out, err)
	}
}

func TestWithoutALog(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	s := h.spec("mute", "echo into the void; sleep 1000")
	s.LogPath = ""
	p := h.run(s)
	if err := p.ReopenLog(t.Context()); !errors.Is(err, errdef.WrongState) {
		t.Error(err)
	}
}

// chatter runs a container that logs without end to a file that is not named in ASCII, which conmon in the C
// locale would not take.
func (h *host) chatter(id string) (p *Process, logPath string) {
	h.t.Helper()
	s := h.spec(id, "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done")
	if err := os.Mkdir(filepath.Join(h.dir, "lög"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	s.LogPath = filepath.Join(h.dir, "lög", "0.log")
	return h.run(s), s.LogPath
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestReopenLog(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("reopen")
	for _, old := range []string{"1", "2"} {
		rename(t, path, path+old)
		if err := p.ReopenLog(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error("reopened:", err)
		}
	}
	var calls sync.WaitGroup
	for range 10 {
		calls.Go(func() {
			if err := p.ReopenLog(t.Context()); err != nil {
				t.Error("at once:", err)
			}
		})
	}
	calls.Wait()
}

// TestReopenLogAfterACrash finds where the monitor makes its new file, or where the log belongs, what a crid has left.
func TestReopenLogAfterACrash(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("places")
	for i, left := range []string{path + ".tmp", path} {
		rename(t, path, fmt.Sprintf("%s.%d", path, i))
		if err := os.WriteFile(left, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.ReopenLog(t.Context()); err != nil || !p.writesTo(path) {
			t.Errorf("with %q left: %v", left, err)
		}
		if _, err := os.Stat(path + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
			t.Error("the file that was to be renamed is left:", err)
		}
	}
}

// TestReopenLogThatIsRepeated asks again for what was done: crid may have crashed before it could tell so.
func TestReopenLogThatIsRepeated(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("repeated")
	rename(t, path, path+".1")
	for i := range 5 {
		if err := p.ReopenLog(t.Context()); err != nil {
			t.Fatal(i, err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for now := before; len(now) == len(before); { // it grows a hundred times a second
			if now, err = os.ReadFile(path); err != nil || !bytes.HasPrefix(now, before) {
				t.Fatalf("after %d repetitions the log %q has become %q: %v", i, before, now, err)
			}
		}
	}
}

func TestReopenLogDoesNotWaitForEver(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("stopped")
	rename(t, path, path+".1")
	if err := p.monitor.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := p.ReopenLog(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	p.launcher.reopenWait = 200 * time.Millisecond
	err := p.ReopenLog(t.Context())
	if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), strconv.Itoa(p.ref.MonitorPID)) {
		t.Errorf("the client waits for ever: %v", err)
	}
	p.launcher.reopenWait = reopenWait
	if err := p.monitor.signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// Now the monitor reopens three times in a row: the third file may have the inode of the first.
	if err := p.ReopenLog(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestReopenLogWithoutItsDirectory(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("nodir")
	rename(t, filepath.Dir(path), filepath.Dir(path)+".away")
	if err := p.ReopenLog(t.Context()); err == nil {
		t.Error("reopened in no directory")
	}
	if p.monitor.ended() {
		t.Error("the monitor died of it")
	}
	rename(t, filepath.Dir(path)+".away", filepath.Dir(path))
	if err := p.ReopenLog(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestReopenLogOfADeadMonitor(t *testing.T) {
	h := newHost(t, "crun", t.TempDir())
	p, path := h.chatter("dead")
	rename(t, path, path+".1")
	if err := p.monitor.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.wait(p)
	if err := p.ReopenLog(t.Context()); !errors.Is(err, errdef.WrongState) {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a failed ReopenLog left a file")
	}
}
