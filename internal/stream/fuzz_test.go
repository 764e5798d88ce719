package stream

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// FuzzConnection sends any bytes to the server as a client, with a URL that counts in the place of URL: whatever they
// are, the connection ends with its client, and the next one is served.
func FuzzConnection(f *testing.F) {
	upgrade := func(headers string) string { return "GET URL HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" }
	ws := upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n")
	for _, s := range []string{
		"", "GET / HTTP/1.1\r\n\r\n", "POST URL HTTP/1.0\r\n\r\n", upgrade(""), "GET /exec/../URL HTTP/1.1\r\nHost: \x00\r\n\r\n",
		upgrade("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n") + "\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
		ws + "\x82\x86\x00\x00\x00\x00\x00hello", ws + "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		ws + "\x82\x99\x00\x00\x00\x00\x04{\"Width\":-1,\"Height\":9e9}", ws + "\x82\x83\x00\x00\x00\x00\xff\x00\x07",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	fakes := newFakes()
	fakes.one = make(chan struct{}, 1<<20)
	s, err := Open(f.Context(), Config{Address: "127.0.0.1", IdleTimeout: time.Minute}, Deps{Containers: fakes, Pods: fakes, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.End)
	f.Fuzz(func(t *testing.T, raw []byte, exec bool) {
		want := Want{Stdin: true, Stdout: true, TTY: true}
		issue := func() (string, error) { return s.AttachURL(Attach{Container: "c", Want: want}) }
		if exec {
			issue = func() (string, error) { return s.ExecURL(Exec{Container: "c", Cmd: []string{"talk"}, Want: want}) }
		}
		url, err := issue()
		if err != nil {
			t.Fatal(err)
		}
		defer s.tickets.redeem(path.Base(url)) // if nobody did: there are so many at a time only
		conn, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(bytes.ReplaceAll(raw, []byte("URL"), []byte(strings.TrimPrefix(url, s.base.String())))) // it may hang up
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20)) // what it says is for clients that speak its language
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		resp, err := http.Get(s.base.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("the next client gets %s, %v", resp.Status, err)
		}
	})
}

// FuzzSizes reads any bytes as what a client says of its terminal's size: what it says again and again arrives, and what has
// no end is not held.
func FuzzSizes(f *testing.F) {
	for _, s := range []string{`{"Width":80,"Height":24}`, `{"Width":80}{"Height":1}`, `{"Width":-1}`, "\"", "[", "", " ", "null", `{"Width":1e9}`, `{"Else":[[[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		read := 0
		endless := readerFunc(func(p []byte) (int, error) {
			if len(raw) == 0 || read > len(raw)+(1<<20) {
				return 0, io.EOF
			}
			n := 0
			for ; n < len(p); n++ {
				p[n] = raw[min(read+n, len(raw)-1)] // the last byte comes again and again
			}
			read += n
			return n, nil
		})
		n := 0
		for range readSizes(t.Context(), endless) {
			n++
		}
		if most := (n + 2) * 2 * maxSize; read > max(most, len(raw)) {
			t.Errorf("%d sizes in %q, and %d bytes were read", n, raw, read)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// FuzzPairs takes any headers for those of the two streams of a connection to forward: they are a pair when they say so, for
// a port that there is, and nothing waits for a stream that is refused.
func FuzzPairs(f *testing.F) {
	f.Add("80", "data", "1", "80", "error", "1")
	f.Add("80", "error", "", "80", "data", "")
	f.Add("0", "data", "1", "65536", "error", "1")
	f.Add("80", "data", "1", "80", "data", "1")
	f.Add("-1", "", "\x00", "٣", "Data", "\xff")
	f.Fuzz(func(t *testing.T, port1, kind1, id1, port2, kind2, id2 string) {
		all := &forwards{pairs: map[string]*pair{}, open: map[httpstream.Stream]bool{}}
		defer all.end()
		headers := func(port, kind, id string) http.Header {
			h := http.Header{}
			h.Set(portforward.PortHeader, port)
			h.Set(portforward.StreamType, kind)
			h.Set(portforward.PortForwardRequestIDHeader, id)
			return h
		}
		if p, err := all.take(opening{&playedStream{1, headers(port1, kind1, id1)}, nil}); p != nil || err == nil && kind1 != "data" && kind1 != "error" {
			t.Errorf("one stream is %v, %v", p, err)
		}
		p, err := all.take(opening{&playedStream{3, headers(port2, kind2, id2)}, nil})
		if p != nil && (err != nil || p.port < 1 || kind1 == kind2 || id1 != id2) {
			t.Errorf("%v, %v", p, err)
		}
		if p != nil && len(all.pairs) > 0 {
			t.Errorf("%v waits", all.pairs)
		}
	})
}

// playedStream is a stream that nobody reads.
type playedStream struct {
	id      uint32
	headers http.Header
}

func (s *playedStream) Read([]byte) (int, error)    { return 0, io.EOF }
func (s *playedStream) Write(p []byte) (int, error) { return len(p), nil }
func (s *playedStream) Close() error                { return nil }
func (s *playedStream) Reset() error                { return nil }
func (s *playedStream) Headers() http.Header        { return s.headers }
func (s *playedStream) Identifier() uint32          { return s.id }
