package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tracked is a listener whose connections the server knows.
type tracked struct {
	net.Listener
	server *Server
}

func (t tracked) Accept() (net.Conn, error) {
	for {
		accepted, err := t.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, server: t.server, moved: make(chan struct{}, 1), gone: make(chan struct{})}
		if t.server.admit(c) {
			return c, nil
		}
		_ = accepted.Close() // the server closes; Accept fails next
	}
}

func (s *Server) admit(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *Server) forget(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// conn is a client's connection. Nobody owns it alone: whoever finds that it is over closes it.
type conn struct {
	net.Conn
	server   *Server
	hijacked atomic.Bool   // it carries streams, no longer HTTP
	moved    chan struct{} // holds a token once something has been read
	once     sync.Once

	mu      sync.Mutex // guards bounded; nothing waits under it
	bounded bool       // somebody has set a deadline for writes

	gone chan struct{} // closed by Close
	err  error         // of Close; read only after gone
}

// Close ends the connection and all that goes on over it. Repeatable.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.server.forget(c)
		close(c.gone)
	})
	return c.err
}

// Read tells lingering of its progress.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		select {
		case c.moved <- struct{}{}:
		default:
		}
	}
	return n, err
}

// Write fails when the client takes nothing for as long as a stream may be idle: it would hold all that is to be said
// over the connection, its end included. With half a frame sent the connection is over.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.bound(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close() // the client cannot hear why
	}
	return n, err
}

// bound gives a write its time, unless somebody has set a deadline.
func (c *conn) bound() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bounded {
		return nil
	}
	return c.Conn.SetWriteDeadline(time.Now().Add(c.server.cfg.IdleTimeout))
}

// SetWriteDeadline bounds all writes from now on, also those under way.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bounded = !t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline is for reads alone: the protocols move it with all that they read and write.
func (c *conn) SetDeadline(t time.Time) error { return c.Conn.SetReadDeadline(t) }

// linger returns once what the client sent before it left has been read, as far as somebody reads it.
func (c *conn) linger() {
	timer := time.NewTimer(lingering)
	defer timer.Stop()
	for {
		select {
		case <-c.moved:
			timer.Reset(lingering)
		case <-timer.C:
			return
		case <-c.gone:
			return
		}
	}
}

// lingering is how long nothing may be read of what a client that has left sent before.
const lingering = time.Second

// watch closes c as soon as the client is gone, whether or not anybody reads from c: a client's input that a
// process does not read keeps all else of the connection from being read. A client that has sent the last of its
// bytes is gone: in neither protocol does the connection carry on in one direction. If all counts that it sent, c
// is closed once that has been read.
func (c *conn) watch(allCounts bool) error {
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	failed := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	// A descriptor of its own, or waiting would keep others from reading. The socket is nonblocking, so waiting costs
	// no thread.
	view := os.NewFile(uintptr(fd), "connection")
	watching, err := view.SyscallConn()
	if err != nil {
		return errors.Join(err, view.Close())
	}
	go func() { // ends with the connection
		<-c.gone
		_ = view.Close() // nothing was written; ends the wait below
	}()
	go func() { // ends with the client, or the connection
		if watching.Read(func(fd uintptr) bool { return hungUp(int(fd)) }) == nil {
			if allCounts {
				c.linger()
			}
			_ = c.Close() // the client cannot hear why
		}
	}()
	return nil
}

// hungUp tells whether the other end of a socket sends no more.
func hungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// withConn notes the connection for its requests.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, bare(nc))
}

// noteHijack notes that a connection has been taken over from HTTP.
func noteHijack(nc net.Conn, state http.ConnState) {
	if state == http.StateHijacked {
		bare(nc).hijacked.Store(true)
	}
}

// bare is the connection below TLS, if that is in between. All of them come from tracked.
func bare(nc net.Conn) *conn {
	if encrypted, ok := nc.(*tls.Conn); ok {
		nc = encrypted.NetConn()
	}
	return nc.(*conn)
}
