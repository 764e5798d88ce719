package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/exec"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

func TestExecBySPDY(t *testing.T) {
	for _, protocol := range []string{"v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			s, _ := serve(t, Config{})
			var stdout, stderr bytes.Buffer
			u := execURL(t, s, Want{Stdin: true, Stdout: true, Stderr: true})
			err := spdyStream(t.Context(), u, &rest.Config{}, remotecommand.StreamOptions{
				Stdin: strings.NewReader("hello\nexit 7\n"), Stdout: &stdout, Stderr: &stderr,
			}, protocol)
			var exit exec.ExitError
			switch {
			case protocol[:2] == "v4" && (!errors.As(err, &exit) || exit.ExitStatus() != 7):
				t.Errorf("exit code: %v", err)
			case protocol[0] == 'v' && (err == nil || !strings.Contains(err.Error(), "exit code")): // the first version has none
				t.Errorf("exit code: %v", err)
			}
			if stdout.String() != "c talk false\nyou said hello\n" || stderr.String() != "you said hello\n" {
				t.Errorf("%q, %q", &stdout, &stderr)
			}
		})
	}
}

func TestAnEndOfInputIsNoEndOfOutput(t *testing.T) {
	s, _ := serve(t, Config{})
	u := parsed(t)(s.AttachURL(Attach{Container: "c", Want: Want{Stdin: true, Stdout: true}}))
	var stdout bytes.Buffer
	err := spdyStream(t.Context(), u, &rest.Config{}, remotecommand.StreamOptions{Stdin: strings.NewReader("hello\n"), Stdout: &stdout}, "v4.channel.k8s.io")
	if err != nil || stdout.String() != "c\nyou said hello\n" {
		t.Errorf("%v, %q", err, &stdout)
	}
}

func TestATerminalsSizes(t *testing.T) {
	s, _ := serve(t, Config{})
	in, keyboard := io.Pipe()
	out, screen := io.Pipe()
	terminal := make(sizes)
	ended := make(chan error, 1)
	u := execURL(t, s, Want{Stdin: true, Stdout: true, TTY: true})
	go func() { // ends with the command
		ended <- spdyStream(t.Context(), u, &rest.Config{}, remotecommand.StreamOptions{Stdin: in, Stdout: screen, Tty: true, TerminalSizeQueue: terminal}, "v4.channel.k8s.io")
	}()
	want := "c talk true\n"
	if got := read(t, out, len(want)); got != want {
		t.Errorf("%q", got)
	}
	terminal <- fact.WindowSize{Rows: 12, Columns: 34}
	want = "size 12 34\n"
	if got := read(t, out, len(want)); got != want {
		t.Errorf("%q", got)
	}
	if _, err := io.WriteString(keyboard, "exit 0\n"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil { // though the keyboard is still there
		t.Error(err)
	}
	close(terminal)
	keyboard.Close()
}

func read(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		t.Fatal(err)
	}
	return string(buf)
}

func TestExecByWebSocket(t *testing.T) {
	s, _ := serve(t, Config{})
	ws := dialWS(t, execURL(t, s, Want{Stdin: true, Stdout: true, Stderr: true}))
	defer ws.Close()
	hear(t, ws, 1, "c talk false\n")
	say(t, ws, 4, `{"Width":1,"Height":2}`) // where there is no terminal, sizes hold nobody
	say(t, ws, 4, `{"Width":3,"Height":4}`)
	say(t, ws, 0, "hello\n")
	hear(t, ws, 2, "you said hello\n")
	say(t, ws, 0, "exit 9\n")
	hear(t, ws, 3, `"message":"9"`)
}

func TestAVanishedClientTakesItsCommandAlong(t *testing.T) {
	for name, vanish := range map[string]func(t *testing.T, s *Server){
		"SPDY, silent": func(t *testing.T, s *Server) {
			ctx, cancel := context.WithCancel(t.Context())
			started, w := io.Pipe()
			gone := make(chan error, 1)
			u := execURL(t, s, Want{Stdout: true}, "wait")
			go func() {
				gone <- spdyStream(ctx, u, &rest.Config{}, remotecommand.StreamOptions{Stdout: w}, "v4.channel.k8s.io")
			}()
			read(t, started, 1)
			started.Close()
			cancel()
			<-gone
		},
		"WebSocket": func(t *testing.T, s *Server) {
			ws := dialWS(t, execURL(t, s, Want{Stdout: true}, "wait"))
			hear(t, ws, 1, "wait")
			ws.Close()
		},
		"input unread": func(t *testing.T, s *Server) {
			ws := dialWS(t, execURL(t, s, Want{Stdin: true, Stdout: true, Stderr: true}))
			hear(t, ws, 1, "talk")
			flooded := make(chan struct{})
			go func() { // ends when the way is full, or closed
				defer close(flooded)
				for range 2000 { // nobody reads the answers
					if ws.SetWriteDeadline(time.Now().Add(300*time.Millisecond)) != nil {
						return
					}
					if _, err := ws.Write([]byte("\x00" + strings.Repeat("x", 50000) + "\n")); err != nil {
						return
					}
				}
			}()
			<-flooded
			ws.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, f := serve(t, Config{})
			vanish(t, s)
			select {
			case <-f.one:
			case <-time.After(10 * time.Second):
				t.Fatal("the command lives")
			}
		})
	}
}

func TestWhatAClientSaidBeforeItLeftIsHeard(t *testing.T) {
	s, f := serve(t, Config{})
	const clients, lines = 20, 30
	for range clients {
		ws := dialWS(t, parsed(t)(s.AttachURL(Attach{Container: "c", Want: Want{Stdin: true}})))
		var first []byte // what is left unread would take back what was sent
		if err := websocket.Message.Receive(ws, &first); err != nil {
			t.Fatal(err)
		}
		for range lines {
			say(t, ws, 0, "hello\n")
		}
		ws.Close()
	}
	for range clients {
		select {
		case <-f.one:
		case <-time.After(10 * time.Second):
			t.Fatal("an attach lives")
		}
	}
	if n := f.lines.Load(); n != clients*lines {
		t.Errorf("%d lines of %d were heard", n, clients*lines)
	}
}

func TestAClientThatReadsNothingIsLetGoOf(t *testing.T) {
	spdy := func(t *testing.T, u *url.URL) io.Closer {
		c := dialHasty(t, u, "v4.channel.k8s.io")
		c.open("streamType", "error")
		c.open("streamType", "stdout")
		return c.raw
	}
	web := func(t *testing.T, u *url.URL) io.Closer { return dialWS(t, u) }
	for name, dial := range map[string]func(t *testing.T, u *url.URL) io.Closer{"SPDY": spdy, "WebSocket": web} {
		for _, test := range []struct {
			command                  bool
			patience, idle, lastWait time.Duration
		}{
			{false, time.Minute, time.Second / 2, time.Minute}, // it is left to the idle timeout
			{false, time.Second, time.Minute, time.Second / 2}, // the container has lost its patience
			{true, time.Minute, time.Second / 2, time.Minute},  // a command has nobody else to bear it
		} {
			t.Run(fmt.Sprintf("%s, command %v, idle for %v", name, test.command, test.idle), func(t *testing.T) {
				s, f := serve(t, Config{IdleTimeout: test.idle})
				s.lastWait = test.lastWait
				loud, want := test.patience.String(), Want{Stdout: true}
				var u *url.URL
				if test.command {
					u = execURL(t, s, want, loud)
				} else {
					u = parsed(t)(s.AttachURL(Attach{Container: loud, Want: want}))
				}
				c := dial(t, u)
				t.Cleanup(func() { c.Close() })
				select {
				case <-f.one:
				case <-time.After(10 * time.Second):
					t.Fatal("the write holds")
				}
				for limit := time.Now().Add(10 * time.Second); connections(s) > 0; runtime.Gosched() {
					if time.Now().After(limit) {
						t.Fatal("the connection stays")
					}
				}
			})
		}
	}
}

func connections(s *Server) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func TestStreamsThatWereNotAskedFor(t *testing.T) {
	s, f := serve(t, Config{})
	c := dialHasty(t, execURL(t, s, Want{Stdout: true}, "wait"), "v4.channel.k8s.io").listen()
	for _, kind := range []string{"error", "stdin", "stdout", "stdout", "resize", "nonsense", "error", "error", "error", "error", "error", "error"} {
		c.open("streamType", kind)
	}
	select {
	case <-f.began:
	case <-time.After(10 * time.Second):
		t.Fatal("the command has not begun")
	}
	for range 100 {
		c.open("streamType", "stdout")
	}
	c.hangUp() // serve looks at what is left
}

func TestAClientThatHasNotOpenedItsStreams(t *testing.T) {
	for _, end := range []func(s *Server, c *hasty){
		func(_ *Server, c *hasty) { c.hangUp() },
		func(s *Server, c *hasty) { s.End() }, // and the client stays
	} {
		s, _ := serve(t, Config{})
		c := dialHasty(t, execURL(t, s, Want{Stdin: true, Stdout: true}), "v4.channel.k8s.io").listen()
		for _, kind := range []string{"error", "stdout"} {
			c.open("streamType", kind)
		}
		end(s, c)
	}
}

func TestTheServersEndIsTheStreams(t *testing.T) {
	s, f := serve(t, Config{})
	ws := dialWS(t, execURL(t, s, Want{Stdout: true}, "wait"))
	defer ws.Close()
	hear(t, ws, 1, "wait")
	unused := execURL(t, s, Want{Stdout: true})
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if len(f.ended) != 1 || !errors.Is(f.ended[0], context.Canceled) {
		t.Errorf("ended: %v", f.ended)
	}
	if _, err := http.Get(unused.String()); err == nil {
		t.Error("it still serves")
	}
}

func TestWhatCannotRunSaysWhy(t *testing.T) {
	s, _ := serve(t, Config{})
	err := spdyStream(t.Context(), execURL(t, s, Want{Stdout: true}, "missing"), &rest.Config{}, remotecommand.StreamOptions{Stdout: io.Discard}, "v4.channel.k8s.io")
	if err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Error(err)
	}
}

func TestAURLCountsOnce(t *testing.T) {
	s, _ := serve(t, Config{})
	u := execURL(t, s, Want{Stdout: true})
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if resp, err := client.Head(u.String()); err != nil || resp.StatusCode != http.StatusMethodNotAllowed { // which counts not
		t.Errorf("%v, %+v", err, resp)
	}
	for i, want := range []int{http.StatusBadRequest, http.StatusNotFound} { // no upgrade was asked for
		if got := status(t, u.String()); got != want {
			t.Errorf("%d: status %d, want %d", i, got, want)
		}
	}
	u = execURL(t, s, Want{Stdout: true})
	other := *u
	other.Path = strings.Replace(u.Path, "exec", "attach", 1)
	for _, path := range []string{other.String(), u.String(), u.Scheme + "://" + u.Host + "/exec/nonsense", u.Scheme + "://" + u.Host + "/"} {
		if got := status(t, path); got != http.StatusNotFound {
			t.Errorf("%s: status %d", path, got)
		}
	}
}

func status(t *testing.T, url string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

func TestTheAddressOfTheURL(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1": "127.0.0.1", "::1": "::1", "0.0.0.0": "127.0.0.1", "::": "::1"} {
		s, _ := serve(t, Config{Address: address})
		u := execURL(t, s, Want{Stdout: true})
		if u.Scheme != "http" || u.Hostname() != want {
			t.Errorf("%s: %s", address, u)
		}
		if conn, err := net.Dial("tcp", u.Host); err != nil {
			t.Error(err)
		} else if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Open(t.Context(), Config{Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}, Deps{})
	if err == nil || !strings.Contains(err.Error(), "[streaming]") {
		t.Errorf("a port in use: %v", err)
	}
}

func TestTicketsCountForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newTickets()
		issue := func() string {
			t.Helper()
			token, err := k.issue("what")
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		in, late := issue(), issue()
		<-time.After(time.Minute - time.Millisecond)
		if what, ok := k.redeem(in); !ok || what != "what" {
			t.Error("a ticket does not count for a minute")
		}
		<-time.After(2 * time.Millisecond)
		if _, ok := k.redeem(late); ok {
			t.Error("a ticket counts when its time is up")
		}
		for range maxTickets {
			issue()
		}
		if _, err := k.issue(0); !errors.Is(err, errdef.Exhausted) {
			t.Errorf("too many: %v", err)
		}
		<-time.After(time.Minute + time.Millisecond)
		if issue(); len(k.byToken) != 1 {
			t.Errorf("%d tickets", len(k.byToken))
		}
	})
}
