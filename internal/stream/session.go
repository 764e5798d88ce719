package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/utils/exec"
)

// session runs what a client of exec or attach wants, with what its protocol made of its streams.
type session func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, sizes <-chan remotecommand.TerminalSize) error

// ExecInContainer implements remotecommand.Executor, which has as many parameters as this.
func (run session) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errs io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return run(ctx, in, out, errs, sizes)
}

// AttachContainer implements remotecommand.Attacher, which has as many parameters as this.
func (run session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, sizes <-chan remotecommand.TerminalSize) error {
	return run(ctx, in, out, errs, sizes)
}

// runSPDY serves one session by SPDY. What goes wrong with it is said to be an error of doing.
func (s *Server) runSPDY(w http.ResponseWriter, r *http.Request, want Want, doing string, run session) {
	protocol, err := httpstream.Handshake(r, w, remotecommand.SupportedStreamingProtocols)
	if err != nil {
		return // the client has been told
	}
	a := newArrivals(want, protocol)
	conn := s.upgrade(w, r, a.take)
	if conn == nil {
		return
	}
	defer func() {
		a.end()
		_ = conn.Close() // the client hears of it, if it is there
	}()
	if err := a.wait(r.Context(), conn.CloseChan()); err != nil {
		s.deps.Log.Debug("a client did not open its streams", "err", err)
		return
	}
	var sizes <-chan remotecommand.TerminalSize
	if terminal := a.got[remotecommand.StreamTypeResize].Stream; terminal != nil {
		sizes = readSizes(r.Context(), terminal)
	}
	stream := func(kind string) httpstream.Stream { return a.got[kind].Stream }
	err = run(r.Context(), stream(remotecommand.StreamTypeStdin), stream(remotecommand.StreamTypeStdout), stream(remotecommand.StreamTypeStderr), sizes)
	if _, err := stream(remotecommand.StreamTypeError).Write(verdict(protocol, doing, err)); err != nil {
		s.deps.Log.Debug("a client did not hear the end", "err", err)
	}
}

// arrivals are the streams that a client of exec or attach opens.
type arrivals struct {
	all chan struct{} // closed when all that are wanted have come

	mu     sync.Mutex // guards the rest until all is closed; nothing waits under it
	wanted map[string]bool
	got    map[string]opening
	over   bool
}

func newArrivals(want Want, protocol string) *arrivals {
	resizes := protocol == remotecommand.StreamProtocolV4Name || protocol == remotecommand.StreamProtocolV3Name
	return &arrivals{
		all: make(chan struct{}),
		wanted: map[string]bool{
			remotecommand.StreamTypeError:  true,
			remotecommand.StreamTypeStdin:  want.Stdin,
			remotecommand.StreamTypeStdout: want.Stdout,
			remotecommand.StreamTypeStderr: want.Stderr,
			remotecommand.StreamTypeResize: want.TTY && resizes,
		},
		got: map[string]opening{},
	}
}

// take takes a stream if it is wanted.
func (a *arrivals) take(stream httpstream.Stream, replied <-chan struct{}) error {
	kind := stream.Headers().Get(remotecommand.StreamType)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over || !a.wanted[kind] {
		return fmt.Errorf("stream of type %q, which was not asked for", kind)
	}
	a.wanted[kind] = false
	a.got[kind] = opening{stream, replied}
	for _, missing := range a.wanted {
		if missing {
			return nil
		}
	}
	close(a.all)
	return nil
}

// wait waits until all streams are there and may be used.
func (a *arrivals) wait(ctx context.Context, gone <-chan bool) error {
	late := time.NewTimer(creationWait)
	defer late.Stop()
	select {
	case <-a.all:
	case <-gone:
		select {
		case <-a.all: // it may have said something before it left
		default:
			return errors.New("the client has left")
		}
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		return fmt.Errorf("they were not there in %v", creationWait)
	}
	for _, o := range a.got {
		if err := o.usable(); err != nil {
			return err
		}
	}
	return nil
}

// end resets all streams: only that lets go of who reads from or writes to one.
func (a *arrivals) end() {
	a.mu.Lock()
	a.over = true
	got := a.got
	a.mu.Unlock()
	for _, o := range got {
		_ = o.Reset() // fails when the client is gone
	}
}

// maxSize is how many bytes a client may use to say how large its terminal is.
const maxSize = 4 << 10

// readSizes reads the sizes of the client's terminal, until one is none or is too long: it is held in memory.
func readSizes(ctx context.Context, from io.Reader) <-chan remotecommand.TerminalSize {
	sizes := make(chan remotecommand.TerminalSize)
	go func() { // ends with the stream, or with ctx
		defer close(sizes)
		one := &io.LimitedReader{R: from}
		for decoder := json.NewDecoder(one); ; {
			var size remotecommand.TerminalSize
			one.N = maxSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case sizes <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// lastWord is what version 4 of the protocol says last: a metav1.Status.
type lastWord struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// verdict is what the client hears last. Before version 4 that is nothing, or what went wrong; in version 1 nothing in
// any case, since its clients hear no output any more once they have heard of an error.
func verdict(protocol, doing string, err error) []byte {
	last := lastWord{Status: "Success"}
	if exit, ok := errors.AsType[exec.ExitError](err); ok && exit.Exited() {
		last = lastWord{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}},
		}
	} else if err != nil {
		last = lastWord{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: fmt.Sprintf("Internal error occurred: error %s container: %v", doing, err),
		}
	}
	switch protocol {
	case remotecommand.StreamProtocolV1Name:
		return nil
	case remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV3Name:
		return []byte(last.Message)
	}
	text, _ := json.Marshal(last) // of strings and numbers: it cannot fail
	return text
}
