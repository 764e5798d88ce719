// Package stream serves exec, attach and port-forward to HTTP clients by SPDY and WebSocket, behind URLs that count
// once. It does not know the CRI, runtimes or monitors: it is handed what runs a command, what attaches, and where
// a pod's network is.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// Config says where to listen and how long to be patient.
type Config struct {
	Address     string // an IP address
	Port        int    // 0 = one that is free
	TLS         TLS
	IdleTimeout time.Duration // after which a stream without traffic is ended
}

// Streams is a client's side of a process. Reads and writes fail once the client is gone.
type Streams struct {
	Stdin          io.Reader              // nil = none
	Stdout, Stderr io.Writer              // nil = none
	Resize         <-chan fact.WindowSize // the last size of the client's terminal
}

// Containers runs commands in containers and attaches to them, by id. Both end with ctx, when the client is gone.
type Containers interface {
	Exec(ctx context.Context, id string, cmd []string, terminal bool, s Streams) (exitCode int, err error)
	Attach(ctx context.Context, id string, s Streams) error
}

// Pods tells where a pod's network is, by its id: the path of its network namespace, "" for that of crid.
type Pods interface {
	NetNS(id string) (string, error)
}

// Deps is what the Server is built on.
type Deps struct {
	Containers Containers
	Pods       Pods
	Log        *slog.Logger
}

// Server serves streams. Its methods may be called concurrently.
type Server struct {
	cfg      Config
	deps     Deps
	base     url.URL
	http     *http.Server
	tickets  *tickets
	lastWait time.Duration // the constant of that name

	mu      sync.Mutex // guards the rest; nothing waits under it
	conns   map[*conn]bool
	closed  bool
	running sync.WaitGroup // what goes on for clients; Add under mu, Wait once closed
}

// Open listens and serves until Close.
func Open(ctx context.Context, cfg Config, d Deps) (*Server, error) {
	s := &Server{cfg: cfg, deps: d, tickets: newTickets(), lastWait: lastWait, conns: map[*conn]bool{}}
	encrypt, err := cfg.TLS.listener(d.Log)
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, family(cfg.Address), net.JoinHostPort(cfg.Address, strconv.Itoa(cfg.Port)))
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w: choose another address or port in [streaming]", err)
	}
	s.base = url.URL{Scheme: cfg.TLS.scheme(), Host: reachable(l.Addr())}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerWait,
		ErrorLog:          slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug), // clients that know no protocol
		ConnContext:       withConn,
		ConnState:         noteHijack,
	}
	s.http.SetKeepAlivesEnabled(false)
	go s.listen(encrypt(tracked{l, s})) // ends by Close
	return s, nil
}

// listen serves until End.
func (s *Server) listen(l net.Listener) {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.deps.Log.Error("streams are no longer served, restart crid", "err", err)
	}
}

// headerWait is how long a client may take to send its request.
const headerWait = 30 * time.Second

// family is the network of an address: Go takes 0.0.0.0 for IPv6 as well unless it is told.
func family(address string) string {
	if ip := net.ParseIP(address); ip.To4() != nil {
		return "tcp4"
	}
	return "tcp"
}

// reachable is the address at which clients of this machine find a listener.
func reachable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	host := net.IPv6loopback.String()
	if tcp.IP.To4() != nil {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// Exec is a command to run in a container.
type Exec struct {
	Container string // id
	Cmd       []string
	Want
}

// Attach is a container to attach to.
type Attach struct {
	Container string // id
	Want
}

// Want says which streams a client wants, and whether there is a terminal.
type Want struct {
	Stdin, Stdout, Stderr, TTY bool
}

// PortForward is a pod to forward ports to.
type PortForward struct {
	Pod   string  // id
	Ports []int32 // for WebSocket clients, who cannot tell later
}

// ExecURL returns the URL at which a client gets e, once and within a minute; so do the others.
func (s *Server) ExecURL(e Exec) (string, error) { return s.issue("exec", e) }

// AttachURL is ExecURL for a.
func (s *Server) AttachURL(a Attach) (string, error) { return s.issue("attach", a) }

// PortForwardURL is ExecURL for p.
func (s *Server) PortForwardURL(p PortForward) (string, error) { return s.issue("portforward", p) }

func (s *Server) issue(verb string, what any) (string, error) {
	token, err := s.tickets.issue(what)
	if err != nil {
		return "", fmt.Errorf("%s: %w", verb, err)
	}
	return s.base.JoinPath(verb, token).String(), nil
}

// End begins the end: it takes no more clients and cuts off those who are there. Repeatable.
func (s *Server) End() {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	_ = s.http.Close() // of the listener and of idle connections
	for c := range conns {
		_ = c.Close() // the client hears of it
	}
}

// Close ends every stream and waits, no longer than ctx, until nothing goes on for any client. Repeatable.
func (s *Server) Close(ctx context.Context) error {
	s.End()
	done := make(chan struct{})
	go func() { // ends with the last of them
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end streams: %w", ctx.Err())
	}
}

// begin counts in what goes on for a client; it tells false when the server is closing.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// errClosing is the error of a call that comes too late.
var errClosing = fmt.Errorf("crid is stopping: %w", errdef.Unavailable)
