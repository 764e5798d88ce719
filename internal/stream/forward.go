package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dialWait bounds the wait for a pod to take a connection, for both families together.
const dialWait = 10 * time.Second

// forwarder forwards the connection of a WebSocket client.
type forwarder func(pod string, port int32, stream io.ReadWriteCloser) error

// PortForward implements portforward.PortForwarder. The context that the protocols hand over never ends.
func (f forwarder) PortForward(_ context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	return f(pod, port, stream)
}

// forward connects stream to a port of the pod until both sides have ended, one has failed or the client is gone,
// and ctx with it. The error is one of connecting: what happens to a connection is between its ends.
func (s *Server) forward(ctx context.Context, pod string, port int32, stream io.ReadWriteCloser) error {
	if !s.begin() {
		return errClosing
	}
	defer s.running.Done()
	conn, err := s.connect(ctx, pod, port)
	if err != nil {
		return err
	}
	err = join(ctx, conn, stream)
	s.deps.Log.Debug("port-forward ended", "pod", pod, "port", port, "err", err)
	return nil
}

func (s *Server) connect(ctx context.Context, pod string, port int32) (*net.TCPConn, error) {
	netns, err := s.deps.Pods.NetNS(pod)
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, netns, port)
	if err != nil {
		return nil, fmt.Errorf("connect to port %d of pod %s: %w", port, pod, err)
	}
	return conn, nil
}

// resetter is a stream that can be ended both ways.
type resetter interface{ Reset() error }

// dial connects to a port of the loopback of a network namespace, "" for crid's own, by IPv4, else by IPv6.
func dial(ctx context.Context, netns string, port int32) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	v4, failed4 := dialIn(ctx, netns, "127.0.0.1", port)
	if failed4 == nil {
		return v4, nil
	}
	v6, failed6 := dialIn(ctx, netns, "::1", port)
	if failed6 == nil {
		return v6, nil
	}
	return nil, fmt.Errorf("%w; %w", failed4, failed6)
}

func dialIn(ctx context.Context, netns, host string, port int32) (*net.TCPConn, error) {
	var conn net.Conn
	err := within(netns, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// within calls f on a thread in the network namespace at path: a socket belongs to the one in which it is made. The
// thread ends with the call, so that no other goroutine ever runs in the wrong namespace.
func within(path string, f func() error) error {
	if path == "" {
		return f()
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	done := make(chan error, 1)
	go func() { // ends with f; still locked, and so does its thread
		done <- enter(ns, f)
	}()
	return errors.Join(<-done, ns.Close())
}

// enter must be called on a goroutine of its own.
func enter(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread is the one that cannot end. While it is kept here, the work lands on another.
		defer runtime.UnlockOSThread()
		done := make(chan error, 1)
		go func() { done <- enter(ns, f) }() // ends with f
		return <-done
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return f()
}

// join copies both ways until both ends have ended, one has failed, or ctx has ended. It closes conn.
func join(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var both sync.WaitGroup
	// Each ends with its source, or when both ends are closed below.
	both.Go(func() { pass(fail, conn, stream, conn.CloseWrite) })
	both.Go(func() { pass(fail, stream, conn, stream.Close) })
	done := make(chan struct{})
	go func() {
		both.Wait()
		close(done)
	}()
	select {
	case <-done:
		return conn.Close()
	case <-ctx.Done():
	}
	err := errors.Join(context.Cause(ctx), conn.Close())
	if r, ok := stream.(resetter); ok {
		err = errors.Join(err, r.Reset())
	}
	return err
}

// pass copies to the end of from and hands that on by end. It tells fail of what goes wrong.
func pass(fail context.CancelCauseFunc, to io.Writer, from io.Reader, end func() error) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = end()
	}
	if err != nil {
		fail(err)
	}
}
