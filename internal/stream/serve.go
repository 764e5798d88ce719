package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"

	"github.com/crid/crid/internal/fact"
)

// creationWait is how long a client may take to open the streams that it asked for.
const creationWait = remotecommand.DefaultStreamCreationTimeout

// lastWait is how long a client may take to read the rest, once what it came for has ended.
const lastWait = 10 * time.Second

// handler answers the URLs that were issued, and nothing else.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, verb := range []string{"exec", "attach", "portforward"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			mux.HandleFunc(method+" /"+verb+"/{token}", func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, verb) })
		}
		// GET takes HEAD in; one that only looks would use the token up.
		mux.HandleFunc(http.MethodHead+" /"+verb+"/{token}", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusMethodNotAllowed)
		})
	}
	return mux
}

// serve answers one request. Its context ends when the client is gone, which HTTP does not tell once a connection has
// been taken over.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, verb string) {
	what, ok := s.tickets.redeem(r.PathValue("token"))
	if !ok || verbOf(what) != verb {
		http.NotFound(w, r)
		return
	}
	c := r.Context().Value(connKey{}).(*conn)
	// What is typed for a container counts, whether or not its author stays. A command ends with its client.
	if err := c.watch(verb == "attach"); err != nil {
		http.Error(w, fmt.Sprintf("watch the connection: %v", err), http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with the request
		select {
		case <-c.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	r = r.WithContext(ctx)
	switch what := what.(type) {
	case Exec:
		s.serveExec(w, r, what)
	case Attach:
		s.serveAttach(w, r, what)
	case PortForward:
		s.servePortForward(w, r, what)
	}
	// What the protocols leave open would stay until the client goes.
	if c.hijacked.Load() {
		_ = c.Close() // the last word has been written
	}
}

// verbOf is the verb of the URLs that stand for what.
func verbOf(what any) string {
	switch what.(type) {
	case Exec:
		return "exec"
	case Attach:
		return "attach"
	}
	return "portforward"
}

func (w Want) options() *remotecommand.Options {
	return &remotecommand.Options{Stdin: w.Stdin, Stdout: w.Stdout, Stderr: w.Stderr, TTY: w.TTY}
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, e Exec) {
	run := s.execution(e)
	if !wsstream.IsWebSocketRequest(r) {
		s.runSPDY(w, r, e.Want, "executing command in", run)
		return
	}
	remotecommand.ServeExec(w, r, run, "", "", e.Container, e.Cmd, e.options(), s.cfg.IdleTimeout, creationWait, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, a Attach) {
	run := s.attachment(a)
	if !wsstream.IsWebSocketRequest(r) {
		s.runSPDY(w, r, a.Want, "attaching to", run)
		return
	}
	remotecommand.ServeAttach(w, r, run, "", "", a.Container, a.options(), s.cfg.IdleTimeout, creationWait, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, p PortForward) {
	if !wsstream.IsWebSocketRequest(r) {
		s.forwardSPDY(r.Context(), w, r, p.Pod)
		return
	}
	forward := forwarder(func(pod string, port int32, stream io.ReadWriteCloser) error {
		return s.forward(r.Context(), pod, port, stream)
	})
	portforward.ServePortForward(w, r, forward, p.Pod, "", &portforward.V4Options{Ports: p.Ports},
		s.cfg.IdleTimeout, creationWait, portforward.SupportedProtocols)
}

// session is what the protocols call to do something for a client.
func (s *Server) session(verb, container string, want Want, do func(ctx context.Context, streams Streams) error) session {
	log := s.deps.Log.With("container", container)
	return func(ctx context.Context, in io.Reader, out, errs io.WriteCloser, sizes <-chan remotecommand.TerminalSize) error {
		if !s.begin() {
			return errClosing
		}
		defer s.running.Done()
		streams := want.streams(in, out, errs)
		streams.Resize = latest(ctx, sizes)
		err := do(ctx, streams)
		c := ctx.Value(connKey{}).(*conn)
		if ctx.Err() != nil { // nobody is there to hear, and a write that is under way is in vain
			log.Debug(verb+": the client is gone", "err", errors.Join(err, c.Close()))
			return nil
		}
		// Neither what is left to say nor a write that is under way waits for a client that reads nothing.
		err = cmp.Or(err, c.SetWriteDeadline(time.Now().Add(s.lastWait)))
		if exit, ok := errors.AsType[exec.ExitError](err); err != nil && !(ok && exit.Exited()) {
			log.Info(verb+" failed", "err", err)
		}
		return err
	}
}

func (s *Server) execution(e Exec) session {
	return s.session("exec", e.Container, e.Want, func(ctx context.Context, streams Streams) error {
		code, err := s.deps.Containers.Exec(ctx, e.Container, e.Cmd, e.TTY, streams)
		if err == nil && code != 0 {
			return exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
		}
		return err
	})
}

func (s *Server) attachment(a Attach) session {
	return s.session("attach", a.Container, a.Want, func(ctx context.Context, streams Streams) error {
		return s.deps.Containers.Attach(ctx, a.Container, streams)
	})
}

// streams is what the client was promised of what the protocol hands over: a WebSocket has all of them.
func (w Want) streams(in io.Reader, out, errs io.WriteCloser) Streams {
	var s Streams
	if w.Stdin && in != nil {
		s.Stdin = in
	}
	if w.Stdout && out != nil {
		s.Stdout = out
	}
	if w.Stderr && errs != nil {
		s.Stderr = errs
	}
	return s
}

// latest hands on the sizes of a terminal, of which only the last counts. They are read whether or not there is a
// terminal: unread ones hold a client's other streams.
func latest(ctx context.Context, sizes <-chan remotecommand.TerminalSize) <-chan fact.WindowSize {
	if sizes == nil {
		return nil
	}
	out := make(chan fact.WindowSize, 1)
	go func() { // ends with the client's sizes, or with ctx
		defer close(out)
		for {
			select {
			case size, ok := <-sizes:
				if !ok {
					return
				}
				select {
				case <-out:
				default:
				}
				out <- fact.WindowSize{Rows: size.Height, Columns: size.Width}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
