package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/bundle"
	"github.com/crid/crid/test/isolate"
)

// client is somebody who is attached.
type client struct {
	t              *testing.T
	stdout, stderr *bundle.Screen
	keyboard       *io.PipeWriter
	sizes          chan fact.WindowSize
	leave          func()
	ended          chan error
}

// attach attaches a client; its Attach has begun when it returns, not more.
func attach(t *testing.T, p *Process) *client {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	in, keyboard := io.Pipe()
	c := &client{t: t, stdout: bundle.NewScreen(), stderr: bundle.NewScreen(), keyboard: keyboard, sizes: make(chan fact.WindowSize), leave: leave, ended: make(chan error, 1)}
	go func() { // ends with Attach
		c.ended <- p.Attach(ctx, Streams{Stdin: in, Stdout: c.stdout, Stderr: c.stderr, Resize: c.sizes})
		in.Close() // as the owner does
	}()
	return c
}

func (c *client) typed(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.keyboard, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) wait() error {
	c.t.Helper()
	select {
	case err := <-c.ended:
		return err
	case <-time.After(20 * time.Second):
		c.t.Fatal("the client is still attached")
		return nil
	}
}

// talk answers every line until its stdin ends.
const talk = "while read line; do echo out $line; echo err $line >&2; [ \"$line\" = end ] && exit 3; done; exit 4"

func TestAttachedClientsHearAndAreHeard(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("talk", talk)
		s.Stdin = true
		p := h.run(s)
		one, two := attach(t, p), attach(t, p)
		one.typed("a\n")
		one.stdout.Await(t, "out a\n")
		one.stderr.Await(t, "err a\n")
		two.typed("b\n")
		two.stdout.Await(t, "out b\n")
		one.stdout.Await(t, "out b\n")
		two.leave()
		if err := two.wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := one.keyboard.Close(); err != nil { // the stdin stays for others, so the client has no more to do here
			t.Error(err)
		}
		if err := one.wait(); err != nil {
			t.Error(err)
		}
		three, four := attach(t, p), attach(t, p)
		three.typed("") // it has joined
		four.typed("c\n")
		three.stdout.Await(t, "out c\n")
		three.typed("end\n")
		if exit := h.wait(p); exit.Code != 3 {
			t.Errorf("%+v", exit)
		}
		for _, c := range []*client{three, four} {
			if err := c.wait(); err != nil {
				t.Error(err)
			}
			c.stdout.Await(t, "out end\n")
		}
		if strings.Contains(three.stdout.String(), "out a") {
			t.Errorf("the past is repeated: %q", three.stdout)
		}
		if err := p.Attach(t.Context(), Streams{}); !errors.Is(err, errdef.WrongState) {
			t.Errorf("attached to what has ended: %v", err)
		}
	})
}

func TestTheEndOfInputMeansNothingWhereThereIsNoStdin(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		fifo := filepath.Join(h.rootfs, "go")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p := h.run(h.spec("deaf", "read line </go; echo heard $line"))
		c := attach(t, p)
		c.typed("") // it is attached
		if err := c.keyboard.Close(); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
			t.Error(err)
		}
		if err := c.wait(); err != nil {
			t.Error(err)
		}
		c.stdout.Await(t, "heard go\n")
	})
}

func TestAttachToATerminal(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("tty", "while read line; do case $line in size) echo now $(busybox stty size);; end) exit 5;; esac; done")
		s.Config = terminal(t, s.Config)
		s.Terminal, s.Stdin, s.StdinOnce = true, true, true
		p := h.run(s)
		first := attach(t, p)
		for i := range 20 { // each of them counts, however fast they come
			size := fact.WindowSize{Rows: uint16(20 + i), Columns: uint16(100 + i)}
			first.sizes <- size
			want := fmt.Sprintf("now %d %d", size.Rows, size.Columns)
			for limit := time.Now().Add(10 * time.Second); !strings.Contains(first.stdout.String(), want); {
				if time.Now().After(limit) {
					t.Fatalf("%q did not appear", want)
				}
				first.typed("size\n")
				<-first.stdout.Wrote()
			}
		}
		if err := first.keyboard.Close(); err != nil {
			t.Error(err)
		}
		if err := first.wait(); err != nil {
			t.Error(err)
		}
		again := attach(t, p) // the terminal has not ended
		again.typed("end\n")
		if err := again.wait(); err != nil || h.wait(p).Code != 5 {
			t.Errorf("%v, %+v", err, h.wait(p))
		}
	})
}

// terminal gives the container of a configuration a terminal.
func terminal(t *testing.T, config []byte) []byte {
	t.Helper()
	was := []byte(`"process":{`)
	if !bytes.Contains(config, was) {
		t.Fatalf("no process in %s", config)
	}
	return bytes.Replace(config, was, []byte(`"process":{"terminal":true,`), 1)
}

func TestNobodyLeavesAnythingInASilentContainer(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("silent", "read line; echo $line; sleep 1000")
		s.Stdin = true
		p := h.run(s)
		attachOnce := func() {
			c := attach(t, p)
			c.typed("") // it has begun to read
			c.leave()
			if err := c.wait(); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		attachOnce()
		fds, theirs, goroutines := isolate.OpenFiles(t), fdsOf(t, p.ref.MonitorPID), runtime.NumGoroutine()
		for range 100 {
			attachOnce()
		}
		// What the last one had goes behind its answer. Conmon opens and closes descriptors of its own in its own
		// time; what clients leave would be a hundred.
		theirs += 10
		for limit := time.Now().Add(3 * time.Second); isolate.OpenFiles(t) > fds || fdsOf(t, p.ref.MonitorPID) > theirs || runtime.NumGoroutine() > goroutines; runtime.Gosched() {
			if time.Now().After(limit) {
				t.Fatalf("%d fds, were %d; the monitor has %d, had %d; %d goroutines, were %d",
					isolate.OpenFiles(t), fds, fdsOf(t, p.ref.MonitorPID), theirs, runtime.NumGoroutine(), goroutines)
			}
		}
		last := attach(t, p)
		last.typed("heard\n")
		last.stdout.Await(t, "heard\n")
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if err := last.wait(); err != nil {
			t.Error(err)
		}
	})
}

func fdsOf(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// stuck is a client that reads nothing.
type stuck struct{ over chan struct{} }

func (s stuck) Write([]byte) (int, error) {
	<-s.over
	return 0, io.ErrClosedPipe
}

func TestAStuckClientDoesNotHoldTheContainer(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("loud", "while read line; do yes 123456789012345678901234567890 | head -c 4000000; echo done $line; done")
		s.Stdin = true
		p := h.run(s)
		over := make(chan struct{})
		ended := make(chan error, 1)
		go func() { // ends when the hub has lost its patience
			ended <- p.Attach(t.Context(), Streams{Stdout: stuck{over}})
			close(over)
		}()
		other := attach(t, p)
		other.typed("x\n")
		other.stdout.Await(t, "done x")
		if err := <-ended; !errors.Is(err, errdef.Exhausted) {
			t.Error(err)
		}
		if n := len(other.stdout.String()); n < 4000000 {
			t.Errorf("the other client has %d bytes only", n)
		}
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if err := other.wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestStuckClientsDoNotHoldAnExit(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("loud", "read line; yes 123456789012345678901234567890") // once all have joined: they fall behind together
		s.Stdin = true
		p := h.run(s)
		in, keyboard := io.Pipe()
		defer keyboard.Close()
		over := make(chan struct{})
		ended := make(chan error, 4)
		for i := range 4 {
			streams := Streams{Stdout: stuck{over}}
			if i == 3 {
				streams.Stdin = in
			}
			go func() { ended <- p.Attach(t.Context(), streams) }() // ends when over is closed
			for limit := time.Now().Add(10 * time.Second); joined(p) <= i; runtime.Gosched() {
				if time.Now().After(limit) {
					t.Fatalf("%d clients have joined only", joined(p))
				}
			}
		}
		if _, err := io.WriteString(keyboard, "go\n"); err != nil {
			t.Fatal(err)
		}
		for limit := time.Now().Add(10 * time.Second); held(p) < 4; runtime.Gosched() {
			if time.Now().After(limit) {
				t.Fatalf("the container is held up by %d clients only", held(p))
			}
		}
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		if exit := h.wait(p); exit.Lost || exit.Code != 137 {
			t.Errorf("%+v", exit)
		}
		close(over)
		for range 4 {
			if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
				t.Error(err)
			}
		}
	})
}

// held is how many clients of p have no room for more.
func held(p *Process) (n int) {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	for _, l := range p.hub.listeners {
		if len(l.packets) == cap(l.packets) {
			n++
		}
	}
	return n
}

// alone is a hub with one listener, whose packets nobody takes yet.
func alone() (*hub, *listener) {
	l := &listener{packets: make(chan packet, kept), left: make(chan struct{}), dropped: make(chan struct{}), saidAll: make(chan struct{})}
	return &hub{listeners: []*listener{l}}, l
}

func TestWhatAContainerLeavesIsKeptForASlowClient(t *testing.T) {
	h, l := alone()
	gone := make(chan struct{})
	close(gone)
	for i := range kept + maxRest {
		h.deliver(packet{data: fmt.Appendf(nil, "%d\n", i)}, gone)
	}
	close(l.packets)
	var got bytes.Buffer
	if err := l.show(t.Context(), Streams{Stdout: &got}); err != nil {
		t.Error(err)
	}
	if lines := strings.Fields(got.String()); len(lines) != kept+maxRest || !slices.IsSortedFunc(lines, func(a, b string) int { return len(a) - len(b) }) || lines[len(lines)-1] != fmt.Sprint(kept+maxRest-1) {
		t.Errorf("%d lines: %.100q", len(lines), lines)
	}
}

func TestATricklingClientIsDropped(t *testing.T) {
	h, l := alone()
	gone := make(chan struct{})
	go func() { // ends with the listener
		for trickle := time.Tick(patience * 4 / 5); ; {
			select {
			case <-trickle:
				<-l.packets
			case <-l.dropped:
				return
			}
		}
	}()
	for range kept + 3 {
		h.deliver(packet{}, gone)
	}
	select {
	case <-l.dropped:
	default:
		t.Error("the client is waited for again and again")
	}
}

func TestUnreadInputHoldsNobodyWhoLeaves(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("deaf", "sleep 1; read line; echo heard; sleep 1000")
		s.Stdin = true
		p := h.run(s)
		c := attach(t, p)
		filled := make(chan error, 1)
		go func() { // ends with the client
			_, err := io.Copy(c.keyboard, io.LimitReader(zeros{}, 64<<20))
			filled <- err
		}()
		timer := time.AfterFunc(300*time.Millisecond, c.leave) // long after the pipe is full
		defer timer.Stop()
		if err := c.wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-filled; err == nil {
			t.Error("all was taken")
		}
		two := attach(t, p)
		two.typed("\n")
		two.stdout.Await(t, "heard")
		two.leave()
		if err := two.wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestAttachAfterARestart(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("stays", talk)
		s.Stdin = true
		p := h.run(s)
		before := attach(t, p)
		before.typed("a\n")
		before.stdout.Await(t, "out a\n")
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if err := before.wait(); err != nil {
			t.Error(err)
		}
		h.Launcher = h.launcher()
		again, err := h.Open(s.ID, p.Ref())
		if err != nil {
			t.Fatal(err)
		}
		after := attach(t, again)
		after.typed("end\n")
		if err := after.wait(); err != nil || h.wait(again).Code != 3 {
			t.Errorf("%v, %+v", err, h.wait(again))
		}
		after.stdout.Await(t, "out end\n")
	})
}

func TestAttachBelowALongPath(t *testing.T) {
	dir := t.TempDir() + "/" + strings.Repeat("long", 30)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, "crun", dir)
	s := h.spec("deep", talk)
	s.Stdin = true
	p := h.run(s)
	c := attach(t, p)
	c.typed("end\n")
	if err := c.wait(); err != nil {
		t.Error(err)
	}
	c.stdout.Await(t, "out end\n")
}
