package integration

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	streamhttp "k8s.io/streaming/pkg/httpstream"

	"github.com/crid/crid/test/harness"
)

func TestPortForward(t *testing.T) {
	c := harness.Start(t)
	own, host := c.RunPod(), c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	for _, to := range []struct {
		pod    *harness.Pod
		listen string
		port   int
	}{{own, "127.0.0.1:80", 80}, {own, "[::1]:81", 81}, {own, "0.0.0.0:82", 82}, {host, "127.0.0.1:18083", 18083}, {host, "[::1]:18084", 18084}} {
		to.pod.Run("", func(cfg *runtime.ContainerConfig) {
			cfg.Image.Image, cfg.Command = harness.Ref("crid/web:1"), []string{"/bin/web", "-listen", to.listen}
		})
		resp, err := c.Runtime.PortForward(c.Context(), &runtime.PortForwardRequest{PodSandboxId: to.pod.ID, Port: []int32{int32(to.port)}})
		if err != nil {
			t.Fatal(err)
		}
		conn := dialForward(t, resp.Url)
		tries := 0
		eventually(t, "an answer of "+to.listen, func() bool {
			tries++
			answer := ask(conn, tries, to.port)
			return strings.Contains(answer, "200 OK") && strings.Contains(answer, "hello from")
		})
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// forwards is a client of a pod that serves the web at port 80.
type forwards struct {
	t   *testing.T
	c   *harness.Crid
	pod *harness.Pod
}

func newForwards(t *testing.T) forwards {
	t.Helper()
	c := harness.Start(t) // which looks at what is left
	f := forwards{t, c, c.RunPod()}
	f.pod.Run("", func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image, cfg.Command = harness.Ref("crid/web:1"), []string{"/bin/web", "-listen", ":80"}
	})
	first := f.dial()
	eventually(t, "an answer", func() bool { return strings.Contains(ask(first, 1, 80), "200 OK") })
	f.close(first)
	return f
}

func (f forwards) url(ports ...int32) string {
	f.t.Helper()
	resp, err := f.c.Runtime.PortForward(f.c.Context(), &runtime.PortForwardRequest{PodSandboxId: f.pod.ID, Port: ports})
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Url
}

func (f forwards) dial() streamhttp.Connection {
	f.t.Helper()
	return dialForward(f.t, f.url())
}

func (f forwards) close(conn streamhttp.Connection) {
	f.t.Helper()
	if err := conn.Close(); err != nil {
		f.t.Error(err)
	}
}

func TestPortForwardsLeaveNothing(t *testing.T) {
	f := newForwards(t)
	for range 20 {
		conn := f.dial()
		for i := range 5 {
			if answer := ask(conn, i+1, 80); !strings.Contains(answer, "200 OK") {
				t.Fatal(answer)
			}
		}
		f.close(conn)
	}
}

func TestForwardsEndWithTheirPod(t *testing.T) {
	f := newForwards(t)
	const request = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n" // keeps its connection alive
	ws := dialWS(t, f.url(80))
	defer ws.Close()
	if _, err := ws.Write([]byte("\x00" + request)); err != nil {
		t.Fatal(err)
	}
	hearWS(t, ws, 0, "hello from")
	conn := f.dial()
	defer conn.Close()
	alive, _, err := openForward(conn, 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	heard, ended := &screen{}, make(chan error, 1)
	go func() { // ends with the stream
		_, err := io.Copy(heard, alive)
		ended <- err
	}()
	if _, err := io.WriteString(alive, request); err != nil {
		t.Fatal(err)
	}
	heard.await(t, "hello from")
	f.pod.Stop()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the stream to a pod that has ended stays")
	}
	if answer := ask(conn, 2, 80); !strings.Contains(answer, "pod "+f.pod.ID) {
		t.Errorf("a port of a pod that has ended: %q", answer)
	}
	var frame []byte
	for err == nil {
		err = websocket.Message.Receive(ws, &frame)
	}
	if os.IsTimeout(err) {
		t.Error("the WebSocket to a pod that has ended stays")
	}
}

func dialForward(t *testing.T, address string) streamhttp.Connection {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u).Dial("portforward.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// openForward opens the streams of one connection to a port. said is what goes wrong with it, once that has ended.
func openForward(conn streamhttp.Connection, request, port int) (data streamhttp.Stream, said <-chan string, err error) {
	headers := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(request)}, "Streamtype": {"error"}}
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return nil, nil, err
	}
	whole := make(chan string, 1)
	go func() { // ends with the stream; unread, it would hold others
		text, err := io.ReadAll(errs)
		if err != nil {
			text = append(text, err.Error()...)
		}
		whole <- string(text)
	}()
	headers.Set("streamType", "data")
	data, err = conn.CreateStream(headers)
	return data, whole, errors.Join(err, errs.Close())
}

// ask sends an HTTP request through a port-forward, closes its half and returns the whole answer, or what went wrong:
// where nobody listens yet, the stream is reset at any step.
func ask(conn streamhttp.Connection, request, port int) string {
	data, said, err := openForward(conn, request, port)
	if err != nil {
		return err.Error()
	}
	_, err = io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
	if err = errors.Join(err, data.Close()); err != nil {
		return err.Error() + <-said
	}
	answer, err := io.ReadAll(data)
	if err != nil {
		return err.Error() + <-said
	}
	return string(answer) + <-said
}
