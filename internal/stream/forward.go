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
	"time"

	"golang.org/x/sys/unix"
)

// dialWait bounds the wait for a pod to take a connection, for both families together.
const dialWait = 10 * time.Second

// forwarder forwards one connection of a client.
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
	netns, err := s.deps.Pods.NetNS(pod)
	if err != nil {
		return err
	}
	conn, err := dial(ctx, netns, port)
	if err != nil {
		return fmt.Errorf("connect to port %d of pod %s: %w", port, pod, err)
	}
	err = join(ctx, conn, stream)
	s.deps.Log.Debug("port-forward ended", "pod", pod, "port", port, "err", err)
	return nil
}

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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends both copies
	up := make(chan struct{})
	go func() { // ends with the client's stream, which is reset below if it does not end by itself
		defer close(up)
		_, err := io.Copy(conn, stream)
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil {
			cancel(err)
		}
	}()
	_, err := io.Copy(stream, conn)
	if err == nil {
		err = stream.Close() // its half of it
	}
	if err != nil {
		cancel(err)
	}
	select {
	case <-up:
	case <-ctx.Done():
	}
	// A stream that failed, or whose other half the client keeps open, is of no use any more.
	if r, ok := stream.(interface{ Reset() error }); ok && ctx.Err() != nil {
		err = errors.Join(err, r.Reset())
	}
	if stop() {
		err = errors.Join(err, conn.Close())
	}
	return err
}
