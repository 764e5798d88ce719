package oci

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/fact"
)

// Streams is where the stdio of a command goes. Whoever hands it in closes the ends once the command has ended or
// the context has: only that ends a Read of Stdin or a Write that is under way.
type Streams struct {
	Stdin          io.Reader              // nil = /dev/null, or a terminal at which nobody types
	Stdout, Stderr io.Writer              // nil = dropped; all that a terminal shows goes to Stdout
	Resize         <-chan fact.WindowSize // of the terminal; nil = never
}

// ends are the descriptors that the runtime gets. stdin may be nil; stdout and stderr may be the same.
type ends struct {
	stdin, stdout, stderr *os.File
}

func (e ends) close() error {
	var failed error
	seen := map[*os.File]bool{nil: true}
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
		if !seen[f] {
			failed = errors.Join(failed, f.Close())
		}
		seen[f] = true
	}
	return failed
}

// stdio is crid's side of a command's stdio.
type stdio struct {
	stdin   *os.File // nil = none; the terminal, or a pipe that ends with the client's input
	console *os.File // nil = no terminal
	pumps   []*pump
	socket  *consoleSocket // nil = none; else a terminal comes through it, and only that sets the others
	over    chan struct{}  // closed by close
}

// connector makes the two sides of the stdio of a command in a container of r.
type connector func(r *Runtime, s Streams) (theirs ends, ours *stdio, err error)

// connectPipes makes a pipe for each stream.
func connectPipes(_ *Runtime, s Streams) (theirs ends, ours *stdio, err error) {
	ours = &stdio{over: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, theirs.close(), ours.close())
		}
	}()
	if s.Stdin != nil {
		if theirs.stdin, ours.stdin, err = os.Pipe(); err != nil {
			return theirs, ours, err
		}
	}
	var from *os.File
	if from, theirs.stdout, err = os.Pipe(); err != nil {
		return theirs, ours, err
	}
	ours.pumps = append(ours.pumps, newPump(from, s.Stdout))
	if from, theirs.stderr, err = os.Pipe(); err != nil {
		return theirs, ours, err
	}
	ours.pumps = append(ours.pumps, newPump(from, s.Stderr))
	return theirs, ours, nil
}

// run begins to pass on.
func (o *stdio) run(s Streams) {
	if o.socket == nil {
		o.pass(s)
		return
	}
	o.socket.done = make(chan struct{})
	go o.socket.receive(func(console *os.File) { // ends at settle
		o.take(console, s)
		o.pass(s)
	})
}

// take makes a terminal the only stdio.
func (o *stdio) take(console *os.File, s Streams) {
	o.console, o.pumps = console, []*pump{newPump(console, s.Stdout)}
	if s.Stdin != nil {
		o.stdin = console
	}
}

func (o *stdio) pass(s Streams) {
	for _, p := range o.pumps {
		p.done = make(chan struct{})
		go p.run() // ends with the writers, or at finish or close
	}
	if o.stdin != nil {
		go o.feed(s.Stdin) // ends with the client's input, which its owner closes
	}
	if s.Resize != nil {
		go o.resize(s.Resize) // ends with the channel, or at close
	}
}

// settle waits for a terminal that is on its way when the runtime has ended. It tells whether there is stdio.
func (o *stdio) settle() bool {
	if o.socket == nil {
		return true
	}
	o.socket.settle()
	return o.console != nil
}

// feed passes the client's input on. A terminal does not end with it.
func (o *stdio) feed(from io.Reader) {
	_, err := io.Copy(o.stdin, from)
	if o.console == nil {
		_ = o.stdin.Close() // the command reads the end now; closed already when it has ended
	}
	if err != nil {
		// The command reads no more. Input that lay about would hold the client's other streams.
		_, _ = io.Copy(io.Discard, from)
	}
}

func (o *stdio) resize(sizes <-chan fact.WindowSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			o.setSize(size)
		case <-o.over:
			return
		}
	}
}

// setSize gives the terminal a size. There is nothing to resize without one, or after its end.
func (o *stdio) setSize(size fact.WindowSize) {
	if o.console == nil {
		return
	}
	conn, err := o.console.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
}

// finish waits until all output has been passed on: what the writers have written by the time until, or by their
// end. The time does not hurry a slow reader.
func (o *stdio) finish(until time.Time) {
	for _, p := range o.pumps {
		// Pipes and terminals take deadlines; should one not, closing it ends the reader.
		if err := p.from.SetReadDeadline(until); err != nil {
			_ = p.from.Close()
		}
	}
	for _, p := range o.pumps {
		<-p.done
	}
}

// close lets go of everything and waits until nothing is being passed on.
func (o *stdio) close() error {
	o.settle()
	close(o.over)
	files := []*os.File{o.stdin, o.console}
	for _, p := range o.pumps {
		files = append(files, p.from)
	}
	var failed error
	if o.socket != nil {
		failed = o.socket.close()
	}
	for _, f := range files {
		if f == nil {
			continue
		}
		if err := f.Close(); !errors.Is(err, os.ErrClosed) { // stdin may have ended, and a terminal is there twice
			failed = errors.Join(failed, err)
		}
	}
	for _, p := range o.pumps {
		if p.done != nil {
			<-p.done
		}
	}
	return failed
}

// pump passes on what a command writes.
type pump struct {
	from *os.File
	to   io.Writer
	done chan struct{} // closed when everything has been passed on; nil until it runs
}

func newPump(from *os.File, to io.Writer) *pump {
	if to == nil {
		to = io.Discard
	}
	return &pump{from: from, to: to}
}

func (p *pump) run() {
	defer close(p.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := p.from.Read(buf)
		if n > 0 {
			if _, err := p.to.Write(buf[:n]); err != nil {
				_ = p.from.Close() // who writes on gets SIGPIPE, as in a shell
				return
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.rest()
			return
		case err != nil: // the end: EOF, or EIO of a terminal that nobody has open
			return
		}
	}
}

// rest passes on what is there, once time is up: a slow reader may have left it.
func (p *pump) rest() {
	conn, err := p.from.SyscallConn()
	if err != nil {
		return
	}
	left := 0
	if conn.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil || err != nil {
		return
	}
	if p.from.SetReadDeadline(time.Time{}) == nil {
		_, _ = io.CopyN(p.to, p.from, int64(left)) // a reader that is gone misses nothing
	}
}
