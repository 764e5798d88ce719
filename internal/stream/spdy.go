package stream

import (
	"net/http"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// opening is a stream that a client opens.
type opening struct {
	httpstream.Stream
	replied <-chan struct{} // closed once the client has been told, or could not be
}

// replier is a stream whose opening is answered; only the first answer counts.
type replier interface {
	SendReply(headers http.Header, fin bool) error
}

// usable waits until the client has been told that its stream is open. A stream of which it cannot be told must not
// be written to or closed: that would wait for the reply, for ever. It may be reset.
func (o opening) usable() error {
	<-o.replied
	if r, ok := o.Stream.(replier); ok {
		return r.SendReply(http.Header{}, false)
	}
	return nil
}

// upgrade makes a SPDY connection of a request, or tells the client why not and returns nil. take is called for each
// stream that the client opens, perhaps before upgrade returns, and must not wait; its error resets the stream.
//
// cri-streaming has loops of its own for SPDY. They are not used: a stream that nobody takes, because it is one too
// many or the client is leaving, waits in them for ever and keeps the connection's goroutines and memory.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request, take httpstream.NewStreamHandler) httpstream.Connection {
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, take)
	if conn != nil {
		conn.SetIdleTimeout(s.cfg.IdleTimeout)
	}
	return conn
}
