package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// forwards are the connections that a client forwards to a pod over one of SPDY, a pair of streams for each.
type forwards struct {
	pod   string
	ready chan struct{} // closed when conn is set
	conn  httpstream.Connection

	mu    sync.Mutex // guards the rest; nothing waits under it
	over  bool
	pairs map[string]*pair // that are not complete, by what their streams have in common
	open  map[httpstream.Stream]bool
}

// pair is one connection to forward.
type pair struct {
	port       int32
	data, errs opening
	late       *time.Timer // gives up waiting for the other stream
}

// forwardSPDY serves port-forwards until the client leaves, or ctx ends.
func (s *Server) forwardSPDY(ctx context.Context, w http.ResponseWriter, r *http.Request, pod string) {
	if _, err := httpstream.Handshake(r, w, portforward.SupportedProtocols); err != nil {
		return // the client has been told
	}
	f := &forwards{pod: pod, ready: make(chan struct{}), pairs: map[string]*pair{}, open: map[httpstream.Stream]bool{}}
	f.conn = s.upgrade(w, r, func(stream httpstream.Stream, replied <-chan struct{}) error {
		complete, err := f.take(opening{stream, replied})
		if complete != nil {
			go s.forwardPair(ctx, f, complete) // ends with the connection to the pod, or by end
		}
		return err
	})
	if f.conn == nil {
		return
	}
	close(f.ready)
	select {
	case <-f.conn.CloseChan():
	case <-ctx.Done():
	}
	_ = r.Context().Value(connKey{}).(*conn).Close() // what is being written would hold the rest
	f.end()
	_ = f.conn.Close() // the client is gone
}

// take takes a stream and returns the pair that it completes, if it does.
func (f *forwards) take(o opening) (complete *pair, err error) {
	port, err := strconv.ParseUint(o.Headers().Get(portforward.PortHeader), 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("stream with port %q", o.Headers().Get(portforward.PortHeader))
	}
	id := requestID(o)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return nil, errors.New("stream of a client that has left")
	}
	p := f.pairs[id]
	if p == nil {
		p = &pair{}
		p.late = time.AfterFunc(creationWait, func() { f.giveUp(id, p) })
		f.pairs[id] = p
	}
	switch kind := o.Headers().Get(portforward.StreamType); {
	case kind == portforward.StreamTypeData && p.data.Stream == nil:
		p.data, p.port = o, int32(port)
	case kind == portforward.StreamTypeError && p.errs.Stream == nil:
		p.errs = o
	default:
		return nil, fmt.Errorf("stream of type %q in request %s", kind, id)
	}
	f.open[o.Stream] = true
	if p.data.Stream == nil || p.errs.Stream == nil {
		return nil, nil
	}
	p.late.Stop()
	delete(f.pairs, id)
	return p, nil
}

// requestID is what the streams of a pair have in common. Clients before Kubernetes 1.2 open the stream for errors
// and then the other, and say nothing.
func requestID(o opening) string {
	if id := o.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	first := o.Identifier()
	if o.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		first -= 2
	}
	return strconv.FormatUint(uint64(first), 10)
}

// giveUp ends a pair whose other stream has not come.
func (f *forwards) giveUp(id string, p *pair) {
	f.mu.Lock()
	waiting := f.pairs[id] == p
	if waiting {
		delete(f.pairs, id)
	}
	f.mu.Unlock()
	if waiting {
		f.finish(p, fmt.Errorf("request %s: its streams were not opened in %v", id, creationWait))
	}
}

// forwardPair forwards one connection.
func (s *Server) forwardPair(ctx context.Context, f *forwards, p *pair) {
	err := errors.Join(p.data.usable(), p.errs.usable())
	if err == nil {
		err = s.forward(ctx, f.pod, p.port, p.data)
	}
	if err != nil {
		s.deps.Log.Info("port-forward failed", "pod", f.pod, "port", p.port, "err", err)
		err = fmt.Errorf("error forwarding port %d to pod %s: %w", p.port, f.pod, err)
	}
	f.finish(p, err)
}

// finish ends the streams of a pair, of which one may be missing, and says why if there is a reason. To reset a stream
// that has been closed tells the client nothing, but lets go of it.
func (f *forwards) finish(p *pair, why error) {
	<-f.ready
	if o := p.errs; o.Stream != nil {
		if o.usable() == nil {
			if why != nil {
				_, _ = o.Write([]byte(why.Error())) // a client that is gone need not know
			}
			_ = o.Close()
		}
		f.drop(o)
	}
	if o := p.data; o.Stream != nil {
		if o.usable() == nil && why == nil {
			_ = o.Close()
		}
		f.drop(o)
	}
}

func (f *forwards) drop(o opening) {
	_ = o.Reset() // fails when the client is gone
	f.conn.RemoveStreams(o.Stream)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, o.Stream)
}

// end resets what is open: only that lets go of who reads from or writes to a stream.
func (f *forwards) end() {
	f.mu.Lock()
	f.over = true
	open := slices.Collect(maps.Keys(f.open))
	for _, p := range f.pairs {
		p.late.Stop()
	}
	f.mu.Unlock()
	for _, stream := range open {
		_ = stream.Reset() // the client is gone
	}
}
