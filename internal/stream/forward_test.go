package stream

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	streamhttp "k8s.io/streaming/pkg/httpstream"
)

// ports is a client's connection for port-forwards.
type ports struct {
	t    *testing.T
	conn streamhttp.Connection
	n    int
}

func dialForward(t *testing.T, u *url.URL) *ports {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	return &ports{t: t, conn: conn}
}

// open opens the streams of one connection to a port.
func (f *ports) open(port int) (data, errs streamhttp.Stream) {
	f.t.Helper()
	headers := f.next(port)
	return f.stream(headers, "data"), f.stream(headers, "error")
}

// next is what the streams of another connection have in common.
func (f *ports) next(port int) http.Header {
	f.n++
	headers := http.Header{}
	headers.Set("port", fmt.Sprint(port))
	headers.Set("requestID", fmt.Sprint(f.n))
	return headers
}

func (f *ports) stream(headers http.Header, kind string) streamhttp.Stream {
	f.t.Helper()
	headers.Set("streamType", kind)
	stream, err := f.conn.CreateStream(headers)
	if err != nil {
		f.t.Fatal(err)
	}
	return stream
}

// refused opens a connection that cannot be and looks at what the client hears.
func (f *ports) refused(port int, words ...string) {
	f.t.Helper()
	data, errs := f.open(port)
	heard := all(f.t, errs)
	for _, w := range words {
		if !strings.Contains(heard, w) {
			f.t.Errorf("%q does not say %q", heard, w)
		}
	}
	if got := all(f.t, data); got != "" {
		f.t.Errorf("the other stream says %q", got)
	}
}

// all reads a stream to its end, but not for ever.
func all(t *testing.T, r io.Reader) string {
	t.Helper()
	read := make(chan string, 1)
	go func() { // ends with the stream
		text, err := io.ReadAll(r)
		if err != nil {
			text = append(text, err.Error()...)
		}
		read <- string(text)
	}()
	select {
	case text := <-read:
		return text
	case <-time.After(10 * time.Second):
		t.Fatal("the stream does not end")
		return ""
	}
}

func TestPortForward(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			s, _ := serve(t, Config{})
			port := echoServer(t, address)
			f := dialForward(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "pod"})))
			defer f.conn.Close()
			for range 3 { // over one connection
				data, errs := f.open(port)
				long := strings.Repeat("hello", 50000)
				go func() { // ends when all is sent
					if _, err := io.WriteString(data, long); err != nil {
						t.Error(err)
					}
					if err := data.Close(); err != nil { // half of it: the answer follows
						t.Error(err)
					}
				}()
				if got := all(t, data); got != fmt.Sprintf("%d: %s", len(long), long) {
					t.Errorf("%d bytes: %.50s", len(got), got)
				}
				if got := all(t, errs); got != "" {
					t.Error(got)
				}
			}
			f.refused(1, "port 1 of pod pod", "refused")
		})
	}
}

func TestPortForwardOfAnUnknownPod(t *testing.T) {
	s, _ := serve(t, Config{})
	f := dialForward(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "other"})))
	defer f.conn.Close()
	f.refused(80, "not found")
}

func TestAVanishedClientsConnectionsAreClosed(t *testing.T) {
	s, _ := serve(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := dialForward(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "pod"})))
	f.open(l.Addr().(*net.TCPAddr).Port)
	idle, err := l.Accept() // which says nothing and does not close
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := f.conn.Close(); err != nil {
		t.Error(err)
	}
	if got := all(t, idle); got != "" && !strings.Contains(got, "reset") {
		t.Error(got)
	}
	if err := idle.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Error(err)
	}
	for err == nil { // the other half is closed as well, not the client's alone
		_, err = idle.Write(make([]byte, 1<<16))
	}
	if os.IsTimeout(err) {
		t.Error("the connection to the pod stays")
	}
}

func TestAClientThatVanishesAmidItsStreamsLeavesNothing(t *testing.T) {
	s, _ := serve(t, Config{})
	port := echoServer(t, "127.0.0.1")
	for range 30 {
		c := dialHasty(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "pod"})), "portforward.k8s.io").listen()
		for i := range 40 { // most of them pairs
			c.open("port", fmt.Sprint(port), "requestID", fmt.Sprint(max(2, i/2)), "streamType", []string{"data", "error"}[i%2])
		}
		c.hangUp()
	}
}

func TestPortForwardsStreamsThatCannotBe(t *testing.T) {
	s, _ := serve(t, Config{})
	port := echoServer(t, "127.0.0.1")
	f := dialForward(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "pod"})))
	defer f.conn.Close()
	for _, bad := range []func(http.Header){
		func(h http.Header) { h.Set("port", "0") },
		func(h http.Header) { h.Set("port", "65536") },
		func(h http.Header) { h.Del("port") },
		func(h http.Header) { h.Set("streamType", "other") },
	} {
		headers := f.next(port)
		headers.Set("streamType", "data")
		bad(headers)
		if _, err := f.conn.CreateStream(headers); err == nil {
			t.Errorf("accepted: %v", headers)
		}
	}
	headers := f.next(port)
	f.stream(headers, "error")
	headers.Set("streamType", "error")
	if _, err := f.conn.CreateStream(headers); err == nil {
		t.Error("accepted twice")
	}
	data := f.stream(headers, "data") // and the connection goes on
	if _, err := io.WriteString(data, "hello"); err != nil {
		t.Error(err)
	}
	if err := data.Close(); err != nil {
		t.Error(err)
	}
	if got := all(t, data); got != "5: hello" {
		t.Errorf("%q", got)
	}
}

func TestPortForwardByWebSocket(t *testing.T) {
	s, _ := serve(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	ws := dialWS(t, parsed(t)(s.PortForwardURL(PortForward{Pod: "pod", Ports: []int32{int32(port)}})))
	defer ws.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	hear(t, ws, 0, string([]byte{byte(port), byte(port >> 8)}))
	say(t, ws, 0, "hello")
	if got := read(t, c, 5); got != "hello" {
		t.Errorf("%q", got)
	}
	if _, err := io.WriteString(c, "bye"); err != nil {
		t.Error(err)
	}
	hear(t, ws, 0, "bye")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	var frame []byte
	for err == nil {
		err = websocket.Message.Receive(ws, &frame)
	}
	if os.IsTimeout(err) {
		t.Error("the WebSocket stays when all its ports have ended")
	}
}
