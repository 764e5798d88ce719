package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const (
	// attachSocket is where the monitor serves those who attach, in its directory.
	attachSocket = "attach"
	// maxPacket is more than conmon sends at once, and as much as is sent to it: it cuts off what is longer.
	maxPacket = 8 << 10
	// kept is how many packets a client may fall behind.
	kept = 128
	// patience is how long a client that has fallen behind is waited for, all in all. The monitor waits all the while,
	// and the container with it.
	patience = 5 * time.Second
	// regained is how much of the patience is there again for every packet that the client takes: slow is not stuck.
	regained = patience / 5
	// maxRest is how many packets are kept for a client once the container has ended, when nobody waits for it any more.
	// They are what was in the container's pipes and on the way from the monitor.
	maxRest = 1024
)

// fromStderr begins a packet of what the container wrote to stderr; 2 is stdout.
const fromStderr = 3

// Streams is where the stdio of a container goes while somebody is attached. Whoever hands it in closes the ends
// once Attach has returned: only that ends a Read of Stdin or a Write that is under way.
type Streams struct {
	Stdin          io.Reader              // nil = none
	Stdout, Stderr io.Writer              // nil = dropped; all that a terminal shows goes to Stdout
	Resize         <-chan fact.WindowSize // of the container's terminal; nil = never
}

// Attach connects s to the container's main process until that has ended, or ctx has; what was written before is
// not repeated. Several may be attached at a time. The end of Stdin is the end of the container's stdin if that is
// to be closed after its first client (Spec.StdinOnce), and Attach goes on; where stdin stays open it ends Attach, and
// what came by then is still written. Where there is no stdin it means nothing. errdef.WrongState when the container
// has ended; errdef.Exhausted when s takes nothing for so long that the container would be held up.
func (p *Process) Attach(ctx context.Context, s Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &listener{packets: make(chan packet, kept), left: ctx.Done(), dropped: make(chan struct{}), saidAll: make(chan struct{})}
	link, err := p.hub.join(p, l)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", p.id, err)
	}
	defer p.hub.leave(l)
	if s.Stdin != nil {
		go func() { // ends with the client's input, which its owner closes
			if link.feed(ctx, s.Stdin) {
				close(l.saidAll)
			}
		}()
	}
	if s.Resize != nil {
		go p.resize(ctx, link.mode, s.Resize) // ends with the channel, or when the client leaves
	}
	shown := make(chan error, 1)
	go func() { shown <- l.show(ctx, s) }() // ends with the packets, when the client leaves, or by a write that fails
	select {
	case err = <-shown:
	case <-l.dropped:
		err = fmt.Errorf("the client does not read what the container writes: %w", errdef.Exhausted)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("attached to container %s: %w", p.id, err)
	}
	return nil
}

// packet is what the container wrote at once.
type packet struct {
	from byte
	data []byte
}

// listener is one client that is attached.
type listener struct {
	packets chan packet     // closed by the hub when there is no more output
	rest    []packet        // what follows them; the hub's until it closes packets
	lag     time.Duration   // how much of the patience is used up; the hub's
	left    <-chan struct{} // closed when the client leaves
	dropped chan struct{}   // closed when it was too slow
	saidAll chan struct{}   // closed when its input has ended, and it with that
}

// show writes the container's output to the client until there is no more, or the client leaves or has said all.
func (l *listener) show(ctx context.Context, s Streams) error {
	for {
		p, more := l.next(ctx)
		if !more {
			return ctx.Err()
		}
		if err := s.write(p); err != nil {
			return err
		}
	}
}

// next waits for a packet. A client that has said all gets what has come by then.
func (l *listener) next(ctx context.Context) (p packet, more bool) {
	select {
	case p, more = <-l.packets:
		if !more && len(l.rest) > 0 {
			p, l.rest, more = l.rest[0], l.rest[1:], true
		}
	case <-l.saidAll:
		select {
		case p, more = <-l.packets:
		default:
		}
	case <-ctx.Done():
	}
	return p, more
}

func (s Streams) write(p packet) error {
	to := s.Stdout
	if p.from == fromStderr {
		to = s.Stderr
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(p.data)
	return err
}

// offer gives the listener a packet if it has room for it.
func (l *listener) offer(p packet) bool {
	if len(l.rest) > 0 {
		return false
	}
	select {
	case l.packets <- p:
		l.lag = max(0, l.lag-regained)
		return true
	default:
		return false
	}
}

// await gives the listener a packet when it has room for it, and tells whether it had in time. Once the container has
// ended it waits no longer: only when all of the output has been taken is the exit recorded.
func (l *listener) await(p packet, gone <-chan struct{}) bool {
	began := time.Now()
	timer := time.NewTimer(patience - l.lag)
	defer timer.Stop()
	if len(l.rest) == 0 {
		select {
		case l.packets <- p:
			l.lag = max(0, l.lag+time.Since(began)-regained)
			return true
		case <-l.left:
			return true
		case <-timer.C:
			return false
		case <-gone:
		}
	}
	l.rest = append(l.rest, p)
	return len(l.rest) <= maxRest
}

// hub shares one connection to the monitor among the clients of a container. Conmon 2.1.6 keeps the descriptor of a
// client that went away until it has something to write to it, for ever in a silent container: the connection stays
// for the next client until there is output that nobody wants. It also takes the end of any client as the end of a
// stdin that is to be closed after its first client, even of one that only listened; so there the connection stays as
// long as crid does, and that is the limit of it: nothing else could keep the connection, or close the stdin that
// conmon holds.
type hub struct {
	mu        sync.Mutex // guards the fields; nothing waits under it: the connect to a unix socket does not
	link      *link      // nil = not connected
	listeners []*listener
}

// link is one connection to the monitor.
type link struct {
	conn    *net.UnixConn
	mode    mode
	writing chan struct{} // holds a token while somebody writes
	ended   chan struct{} // closed when nothing more comes
}

// join makes l hear what the container writes from now on.
func (h *hub) join(p *Process, l *listener) (*link, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.link == nil {
		link, err := p.connect()
		if err != nil {
			return nil, err
		}
		h.link = link
		go h.read(link, p.containerGone) // ends with the monitor, or when nobody listens, or at release
	}
	h.listeners = append(h.listeners, l)
	return h.link, nil
}

func (h *hub) leave(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners = slices.DeleteFunc(h.listeners, func(other *listener) bool { return other == l })
}

// close ends the connection, and with it all that is attached.
func (h *hub) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.link == nil {
		return nil
	}
	if err := h.link.conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// read hands out what the container writes until there is no more, or nobody who wants it. The container has ended
// when gone is closed.
func (h *hub) read(k *link, gone <-chan struct{}) {
	defer func() { _ = k.conn.Close() }() // nothing is lost: what was written has been sent
	defer close(k.ended)
	buf := make([]byte, maxPacket+1)
	for {
		n, err := k.conn.Read(buf)
		if n == 0 || err != nil {
			break // the monitor has ended, or the connection was closed
		}
		h.deliver(packet{from: buf[0], data: slices.Clone(buf[1:n])}, gone)
		if h.unwanted(k) {
			return
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link = nil
	for _, l := range h.listeners {
		close(l.packets)
	}
	h.listeners = nil
}

// deliver gives everybody the packet, and waits for those who have fallen behind, for all at the same time. Who cannot
// take it hears no more.
func (h *hub) deliver(p packet, gone <-chan struct{}) {
	h.mu.Lock()
	listeners := slices.Clone(h.listeners)
	h.mu.Unlock()
	var behind sync.WaitGroup
	for _, l := range listeners {
		if l.offer(p) {
			continue
		}
		behind.Go(func() { // ends when the listener's time is up
			if !l.await(p, gone) {
				h.leave(l)
				close(l.dropped)
			}
		})
	}
	behind.Wait()
}

// unwanted tells whether the connection may go, and forgets it then.
func (h *hub) unwanted(k *link) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.listeners) > 0 || k.mode.endsStdin() {
		return false
	}
	h.link = nil
	return true
}

// mode is how a monitor treats the container's stdin.
type mode struct {
	stdin    bool // it has one
	open     bool // it stays open when a client goes away
	terminal bool
}

// endsStdin tells whether the end of a connection is the end of the container's stdin.
func (m mode) endsStdin() bool { return m.stdin && !m.open }

// connect connects to the monitor.
func (p *Process) connect() (*link, error) {
	mode, err := p.readMode()
	if err != nil {
		return nil, err
	}
	// The path may be longer than a socket's name can be.
	dir, err := unix.Open(p.Bundle(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open monitor directory: %w", err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, attachSocket)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	err = errors.Join(err, unix.Close(dir))
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("the monitor does not listen: %w", errdef.WrongState)
	}
	if err != nil {
		return nil, fmt.Errorf("reach the monitor: %w", err)
	}
	return &link{conn: conn, mode: mode, writing: make(chan struct{}, 1), ended: make(chan struct{})}, nil
}

// readMode reads from the monitor's command line how it treats stdin.
func (p *Process) readMode() (mode, error) {
	args, err := p.arguments()
	if err != nil {
		return mode{}, err
	}
	return mode{
		stdin:    slices.Contains(args, flagStdin),
		open:     slices.Contains(args, flagLeaveOpen),
		terminal: slices.Contains(args, flagTerminal),
	}, nil
}

// feed passes the client's input on until its end, and that as well if it is to end the container's. It tells whether
// the client is to go: what stays open is there for others.
func (k *link) feed(ctx context.Context, from io.Reader) (over bool) {
	buf := make([]byte, maxPacket)
	for taken := k.mode.stdin; ; {
		n, err := from.Read(buf)
		// An empty packet would be the end of the input. Input that nobody takes is read all the same: it would hold
		// the client's other streams.
		if n > 0 && taken {
			taken = k.write(ctx, buf[:n])
		}
		if err == nil {
			continue
		}
		if taken && k.mode.endsStdin() {
			k.closeStdin()
			return false
		}
		return taken
	}
}

// closeStdin ends the container's stdin, after what another client is writing, if the container reads that.
func (k *link) closeStdin() {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case k.writing <- struct{}{}:
		defer func() { <-k.writing }()
	case <-k.ended:
	case <-timer.C:
	}
	_ = k.conn.CloseWrite() // fails when the container has ended
}

// write sends the container a piece of input and tells whether it takes more. One that does not read holds its
// clients up, but not when they leave.
func (k *link) write(ctx context.Context, piece []byte) bool {
	select {
	case k.writing <- struct{}{}:
		defer func() { <-k.writing }()
	case <-ctx.Done():
		return true
	case <-k.ended:
		return false
	}
	gaveUp := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = k.conn.SetWriteDeadline(time.Now()) // fails when closed, which ends the write as well
		close(gaveUp)
	})
	_, err := k.conn.Write(piece)
	if stop() {
		return err == nil
	}
	<-gaveUp
	return k.conn.SetWriteDeadline(time.Time{}) == nil // for the next
}

// resize tells the monitor the sizes of the client's terminal until ctx ends.
func (p *Process) resize(ctx context.Context, m mode, sizes <-chan fact.WindowSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if m.terminal {
				// A container that has ended needs none, and the next one counts if this is lost.
				_ = p.command(ctx, fmt.Sprintf(resizeCommand, size.Rows, size.Columns))
			}
		case <-ctx.Done():
			return
		}
	}
}
