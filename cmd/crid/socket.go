package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// listen opens a unix socket that never has more rights than mode, whatever the umask. A socket that a dead
// crid left is replaced: the caller holds the locks of both roots. One that somebody answers is refused. The socket's file
// stays behind when it is closed, so that a crid that starts on a full disk has room for its own.
func listen(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	failpoint.Hit("crid/listen/dir-made")
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	// The mode of an unbound socket limits the file that bind makes.
	limit := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var refused error
		err := c.Control(func(fd uintptr) { refused = unix.Fchmod(int(fd), uint32(mode)) })
		return errors.Join(err, refused)
	}}
	l, err := limit.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	failpoint.Hit("crid/listen/bound")
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the socket's mode: %w", err), l.Close())
	}
	if unixListener, ok := l.(*net.UnixListener); ok {
		unixListener.SetUnlinkOnClose(false)
	}
	failpoint.Hit("crid/listen/opened")
	return l, nil
}

// clearSocket removes a socket that nobody answers.
func clearSocket(ctx context.Context, path string) error {
	stat, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the socket: %w", err)
	case stat.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is no socket: remove it or choose another path", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
		return errors.Join(fmt.Errorf("%s is served by another program: stop it or choose another path", path), c.Close())
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	failpoint.Hit("crid/listen/cleared")
	return nil
}
