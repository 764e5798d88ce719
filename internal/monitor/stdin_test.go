package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/bundle"
)

func TestStdinOnceEndsWithItsClient(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("once", talk)
		s.Stdin, s.StdinOnce = true, true
		p := h.run(s)
		only := bundle.NewScreen()
		ctx, leave := context.WithCancel(t.Context())
		listened := make(chan error, 1)
		go func() { listened <- p.Attach(ctx, Streams{Stdout: only}) }() // ends by leave
		c := attach(t, p)
		c.typed("a\n")
		c.stdout.Await(t, "out a\n")
		only.Await(t, "out a\n")
		leave() // who only listened ends nothing
		if err := <-listened; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		c.typed("b\n")
		c.stdout.Await(t, "out b\n")
		if err := c.keyboard.Close(); err != nil {
			t.Error(err)
		}
		if err := c.wait(); err != nil {
			t.Error(err)
		}
		if exit := h.wait(p); exit.Code != 4 {
			t.Errorf("%+v", exit)
		}
	})
}

func TestStdinOnceEndsWithAClientThatVanishes(t *testing.T) {
	each(t, func(t *testing.T, h *host) {
		s := h.spec("once", talk)
		s.Stdin, s.StdinOnce = true, true
		p := h.run(s)
		c := attach(t, p)
		c.typed("a\n")
		c.stdout.Await(t, "out a\n")
		c.leave()
		if err := c.wait(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if exit := h.wait(p); exit.Code != 4 {
			t.Errorf("%+v", exit)
		}
	})
}

// The monitor takes the end of any connection for the end of a stdin that is to be closed after its first client, and
// nothing keeps a connection while crid is away.
func TestWhatARestartMeansForStdinOnce(t *testing.T) {
	for name, test := range map[string]struct {
		attached, types, terminal bool
		ends                      bool
	}{
		"never attached": {},
		"a client":       {attached: true, types: true, ends: true},
		"a listener":     {attached: true, ends: true},
		"a terminal":     {attached: true, types: true, terminal: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "crun", t.TempDir())
			s := h.spec("once", talk)
			s.Stdin, s.StdinOnce = true, true
			if s.Terminal = test.terminal; s.Terminal {
				s.Config = terminal(t, s.Config)
			}
			p := h.run(s)
			if test.attached {
				attachFor(t, p, test.types)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			h.Launcher = h.launcher()
			again, err := h.Open(s.ID, p.Ref())
			if err != nil {
				t.Fatal(err)
			}
			want := 4
			if !test.ends {
				want = 3
				after := attach(t, again)
				after.typed("end\n")
				after.stdout.Await(t, "out end")
			}
			if exit := h.wait(again); exit.Code != want {
				t.Errorf("%+v", exit)
			}
		})
	}
}

// attachFor attaches a client of p until the test ends.
func attachFor(t *testing.T, p *Process, types bool) {
	t.Helper()
	in, keyboard := io.Pipe()
	var streams Streams
	if types {
		streams.Stdin = in
	}
	ended := make(chan error, 1)
	ctx := context.WithoutCancel(t.Context())       // which ends before what is cleaned up is
	go func() { ended <- p.Attach(ctx, streams) }() // ends with the connection
	t.Cleanup(func() {
		keyboard.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for limit := time.Now().Add(10 * time.Second); joined(p) == 0; runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatal("nobody is attached")
		}
	}
}

// joined is how many clients p has.
func joined(p *Process) int {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	return len(p.hub.listeners)
}

func TestTheEndOfOneClientsInputWaitsForAnothersWrite(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "end")
		conn, err := net.FileConn(file)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ends[i] = conn.(*net.UnixConn)
	}
	k := &link{conn: ends[0], writing: make(chan struct{}, 1), ended: make(chan struct{})}
	k.writing <- struct{}{} // somebody writes
	closed := make(chan struct{})
	go func() { // ends when the token is there
		k.closeStdin()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("the write was cut off")
	case <-time.After(100 * time.Millisecond): // long enough for one that does not wait
	}
	if _, err := k.conn.Write([]byte("all")); err != nil {
		t.Error(err)
	}
	<-k.writing
	<-closed
	buf := make([]byte, 10)
	for _, want := range []string{"all", ""} {
		if n, _ := ends[1].Read(buf); string(buf[:n]) != want {
			t.Errorf("%q, want %q", buf[:n], want)
		}
	}
}
