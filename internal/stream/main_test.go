package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	frames "github.com/moby/spdystream/spdy"
	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// fakes are containers whose only command talks: it answers each line on stdout and stderr, tells sizes, and ends
// with the input, at "exit N" or with its client.
type fakes struct {
	mu    sync.Mutex // guards ended
	ended []error    // how the commands ended
	one   chan struct{}
	began chan struct{}
	lines atomic.Int32 // how many have been heard
}

func newFakes() *fakes { return &fakes{one: make(chan struct{}, 100), began: make(chan struct{}, 100)} }

func (f *fakes) note(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = append(f.ended, err)
	f.one <- struct{}{}
}

func (f *fakes) Exec(ctx context.Context, id string, cmd []string, terminal bool, s Streams) (int, error) {
	f.began <- struct{}{}
	if cmd[0] == "missing" {
		return 0, errors.New("no such command")
	}
	if loud, err := f.loud(ctx, cmd[0], s); loud {
		return 0, err
	}
	code, err := f.talk(ctx, fmt.Sprintf("%s %s %v", id, strings.Join(cmd, " "), terminal), s)
	f.note(err)
	return code, err
}

func (f *fakes) Attach(ctx context.Context, id string, s Streams) error {
	if loud, err := f.loud(ctx, id, s); loud {
		return err
	}
	_, err := f.talk(ctx, id, s)
	f.note(err)
	return err
}

// loud floods a client that does not read, if name is how long that is borne.
func (f *fakes) loud(ctx context.Context, name string, s Streams) (is bool, err error) {
	patience, err := time.ParseDuration(name)
	if err != nil {
		return false, nil
	}
	err = flood(ctx, s.Stdout, patience)
	f.note(err)
	return true, err
}

// flood writes until that fails, or takes longer than patience.
func flood(ctx context.Context, to io.Writer, patience time.Duration) error {
	wrote, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { // ends by a write that fails
		for {
			if _, err := to.Write(make([]byte, 1<<13)); err != nil {
				failed <- err
				return
			}
			select {
			case wrote <- struct{}{}:
			default:
			}
		}
	}()
	for {
		select {
		case <-wrote:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience):
			return errdef.Exhausted
		}
	}
}

func (f *fakes) talk(ctx context.Context, hello string, s Streams) (int, error) {
	code := make(chan int, 1)
	if s.Stdout != nil {
		fmt.Fprintln(s.Stdout, hello)
	}
	if s.Stdin == nil {
		s.Stdin = strings.NewReader("")
		if strings.Contains(hello, "wait") {
			r, w := io.Pipe()
			defer w.Close()
			s.Stdin = r
		}
	}
	go func() { // ends with the input
		for lines := bufio.NewScanner(s.Stdin); lines.Scan(); {
			f.lines.Add(1)
			var n int
			if _, err := fmt.Sscanf(lines.Text(), "exit %d", &n); err == nil {
				code <- n
				return
			}
			for _, w := range []io.Writer{s.Stdout, s.Stderr} {
				if w != nil {
					fmt.Fprintln(w, "you said", lines.Text())
				}
			}
		}
		code <- 0
	}()
	for {
		select {
		case n := <-code:
			return n, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		case size, ok := <-s.Resize:
			if !ok {
				s.Resize = nil
				continue
			}
			fmt.Fprintln(s.Stdout, "size", size.Rows, size.Columns)
		}
	}
}

// NetNS knows one pod, in the network of the test.
func (f *fakes) NetNS(id string) (string, error) {
	if id != "pod" {
		return "", fmt.Errorf("pod %s: %w", id, errdef.NotFound)
	}
	return "", nil
}

// serve opens a server for t and looks at the end for what is left of it.
func serve(t *testing.T, cfg Config) (*Server, *fakes) {
	t.Helper()
	// The first listener makes Go open descriptors that stay.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fds, goroutines := countFds(t), runtime.NumGoroutine()
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1"
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	f := newFakes()
	s, err := Open(t.Context(), cfg, Deps{Containers: f, Pods: f, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for range 2 {
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
		}
		// Clients' goroutines end by themselves, without telling.
		for limit := time.Now().Add(5 * time.Second); countFds(t) > fds || runtime.NumGoroutine() > goroutines; runtime.Gosched() {
			if time.Now().After(limit) {
				all := make([]byte, 1<<20)
				t.Errorf("left behind: %d fds, were %d; %d goroutines, were %d\n%s", countFds(t), fds, runtime.NumGoroutine(), goroutines, all[:runtime.Stack(all, true)])
				return
			}
		}
	})
	return s, f
}

func countFds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// execURL issues a URL for a command that talks.
func execURL(t *testing.T, s *Server, w Want, cmd ...string) *url.URL {
	t.Helper()
	if len(cmd) == 0 {
		cmd = []string{"talk"}
	}
	return parsed(t)(s.ExecURL(Exec{Container: "c", Cmd: cmd, Want: w}))
}

func parsed(t *testing.T) func(text string, err error) *url.URL {
	return func(text string, err error) *url.URL {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(text)
		if err != nil || !u.IsAbs() || u.Host == "" {
			t.Fatalf("%q is no absolute URL: %v", text, err)
		}
		return u
	}
}

// spdyStream is the kubelet's own client.
func spdyStream(ctx context.Context, u *url.URL, config *rest.Config, o remotecommand.StreamOptions, protocols ...string) error {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, "POST", u, protocols...)
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

// dialWS opens a WebSocket of the protocol v4.
func dialWS(t *testing.T, u *url.URL) *websocket.Conn {
	t.Helper()
	ws := *u
	ws.Scheme = "ws"
	config, err := websocket.NewConfig(ws.String(), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	c, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	c.PayloadType = websocket.BinaryFrame
	return c
}

// say sends text on one of the channels of a WebSocket.
func say(t *testing.T, ws *websocket.Conn, channel byte, text string) {
	t.Helper()
	if err := websocket.Message.Send(ws, append([]byte{channel}, text...)); err != nil {
		t.Fatal(err)
	}
}

// hear reads from a WebSocket until a channel has said words.
func hear(t *testing.T, ws *websocket.Conn, channel byte, words string) {
	t.Helper()
	heard := map[byte]string{}
	if err := ws.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(heard[channel], words) {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			t.Fatalf("%v; heard %q, not %q", err, heard, words)
		}
		heard[frame[0]] += string(frame[1:])
	}
}

// hasty is a SPDY client that does not wait for answers, and reads none unless it listens.
type hasty struct {
	t      *testing.T
	raw    net.Conn
	framer *frames.Framer
	last   frames.StreamId
}

func dialHasty(t *testing.T, u *url.URL, protocol string) *hasty {
	t.Helper()
	raw, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	req := &http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Header: http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {protocol},
	}}
	if err := req.Write(raw); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(raw, 16), req) // nothing follows before there are streams
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %+v", err, resp)
	}
	framer, err := frames.NewFramer(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &hasty{t: t, raw: raw, framer: framer, last: 1}
}

// listen reads what it is told.
func (c *hasty) listen() *hasty {
	go func() { _, _ = io.Copy(io.Discard, c.raw) }() // ends with the connection
	return c
}

// open opens a stream with headers in pairs of name and value.
func (c *hasty) open(headers ...string) {
	c.t.Helper()
	h := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	c.last += 2 // odd, as it starts from 1
	if err := c.framer.WriteFrame(&frames.SynStreamFrame{StreamId: c.last, Headers: h}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *hasty) hangUp() {
	c.t.Helper()
	if err := c.raw.Close(); err != nil {
		c.t.Error(err)
	}
}

// sizes is a terminal that changes its size.
type sizes chan fact.WindowSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &remotecommand.TerminalSize{Width: size.Columns, Height: size.Rows}
}

// echoServer is a server in a pod: it answers what it reads once the client has said all, or says bye at once.
func echoServer(t *testing.T, address string) int {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				all, err := io.ReadAll(c)
				if err == nil {
					fmt.Fprintf(c, "%d: %s", len(all), all)
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
