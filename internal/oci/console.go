package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// How a runtime gives a command its terminal, which is found out by the first command at one.
const (
	waysUnknown int32 = iota
	bySocket          // it sends the terminal through a console socket and stays until the command has ended (crun)
	byCopying         // it does not stay then (runc), but copies to and from a terminal of crid's
)

// noConsole is the failure of a runtime that has not sent a terminal.
type noConsole struct{ error }

// Unwrap returns why it failed.
func (n noConsole) Unwrap() error { return n.error }

// streamTerminal is Stream at a terminal. A runtime that refuses to stay with a console socket does so before it
// starts anything. What copies is the second choice: crun 1.8.1 loses what a command writes just before it ends,
// and takes no sizes.
func (r *Runtime) streamTerminal(ctx context.Context, id string, e Exec, s Streams) (exitCode int, err error) {
	way := r.way.Load()
	if way != byCopying {
		code, err := r.stream(ctx, id, e, s, connectSocket)
		if err == nil {
			r.way.CompareAndSwap(waysUnknown, bySocket)
		}
		if way == bySocket || !errors.As(err, new(noConsole)) {
			return code, err
		}
	}
	code, err := r.stream(ctx, id, e, s, connectTerminal)
	if err == nil {
		r.way.CompareAndSwap(waysUnknown, byCopying)
	}
	return code, err
}

// consoleSocket is where a runtime sends the master of a command's terminal.
type consoleSocket struct {
	listener *net.UnixListener
	file     *os.File      // the socket's file, which has no name any more
	done     chan struct{} // closed when a terminal came, or none will; nil until receive runs
}

// consolePrefix begins the names of console sockets; no container's id begins with a dot.
const consolePrefix = ".console-"

// connectSocket makes a console socket. It has a name for a moment, in the runtime's root.
func connectSocket(r *Runtime, _ Streams) (theirs ends, ours *stdio, err error) {
	dir, err := os.OpenFile(r.cfg.Root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return ends{}, nil, fmt.Errorf("make console socket: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	mark, err := newMark()
	if err != nil {
		return ends{}, nil, err
	}
	// The root's path may be longer than a socket's name can be.
	path := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), fmt.Sprintf("%s%x", consolePrefix, mark))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return ends{}, nil, fmt.Errorf("make console socket: %w", err)
	}
	failpoint.Hit("oci/console/named")
	l.SetUnlinkOnClose(false)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return ends{}, nil, errors.Join(fmt.Errorf("make console socket: %w", err), l.Close())
	}
	failpoint.Hit("oci/console/unnamed")
	socket := &consoleSocket{listener: l, file: os.NewFile(uintptr(fd), "console socket")}
	return ends{}, &stdio{socket: socket, over: make(chan struct{})}, nil
}

// receive waits for the runtime and hands take the terminal that it sends.
func (c *consoleSocket) receive(take func(console *os.File)) {
	defer close(c.done)
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return // settled
	}
	defer func() { _ = conn.Close() }() // nothing was written
	if console := receiveFile(conn); console != nil {
		take(console)
	}
}

// receiveFile returns the first descriptor that comes, nil when none does.
func receiveFile(conn *net.UnixConn) *os.File {
	oob := make([]byte, unix.CmsgSpace(4))
	if conn.SetReadDeadline(time.Now().Add(sendWait)) != nil {
		return nil
	}
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 4096), oob) // the data is the terminal's name
	if err != nil {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil
	}
	_ = unix.SetNonblock(fds[0], true) // fails on no terminal
	return os.NewFile(uintptr(fds[0]), "terminal")
}

const (
	// sendWait is how long a runtime that has connected may take to send a terminal.
	sendWait = 10 * time.Second
	// queueWait is how long it takes to see a connection that was made before the runtime ended.
	queueWait = 100 * time.Millisecond
)

// settle waits until nothing more can come, after the runtime has ended.
func (c *consoleSocket) settle() {
	if c.done == nil || c.listener.SetDeadline(time.Now().Add(queueWait)) != nil {
		return // closed: it has been settled
	}
	<-c.done
}

func (c *consoleSocket) close() error {
	err := errors.Join(c.listener.Close(), c.file.Close())
	if c.done != nil {
		<-c.done
	}
	return err
}

// connectTerminal makes a terminal for the runtime, which makes another in the container and joins the two. The
// runtime stays until the command has ended, and its exit code is the command's.
func connectTerminal(_ *Runtime, s Streams) (theirs ends, ours *stdio, err error) {
	master, slave, err := openTerminal()
	if err != nil {
		return ends{}, nil, fmt.Errorf("open a terminal: %w", err)
	}
	ours = &stdio{over: make(chan struct{})}
	ours.take(master, s)
	return ends{slave, slave, slave}, ours, nil
}

// openTerminal returns both ends of a new terminal that changes nothing of what passes: the one in the container
// does the work of a terminal.
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	// By the descriptor: whatever is mounted at /dev/pts does not matter.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(errno, master.Close())
	}
	slave = os.NewFile(peer, "terminal")
	mode, err := unix.IoctlGetTermios(int(peer), unix.TCGETS)
	if err == nil {
		err = unix.IoctlSetTermios(int(peer), unix.TCSETS, raw(*mode))
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close(), slave.Close())
	}
	return master, slave, nil
}

// raw is what cfmakeraw(3) makes of a mode.
func raw(t unix.Termios) *unix.Termios {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return &t
}
