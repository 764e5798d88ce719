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

func TestPortForwardsLeaveNothing(t *testing.T) {
	c := harness.Start(t) // which looks at what is left
	pod := c.RunPod()
	pod.Run("", func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image, cfg.Command = harness.Ref("crid/web:1"), []string{"/bin/web", "-listen", ":80"}
	})
	dial := func() streamhttp.Connection {
		resp, err := c.Runtime.PortForward(c.Context(), &runtime.PortForwardRequest{PodSandboxId: pod.ID})
		if err != nil {
			t.Fatal(err)
		}
		return dialForward(t, resp.Url)
	}
	first := dial()
	eventually(t, "an answer", func() bool { return strings.Contains(ask(first, 1, 80), "200 OK") })
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	for range 20 {
		conn := dial()
		for i := range 5 {
			if answer := ask(conn, i+1, 80); !strings.Contains(answer, "200 OK") {
				t.Fatal(answer)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	resp, err := c.Runtime.PortForward(c.Context(), &runtime.PortForwardRequest{PodSandboxId: pod.ID, Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWS(t, resp.Url) // into the pod's network as well
	defer ws.Close()
	if _, err := ws.Write([]byte("\x00GET / HTTP/1.1\r\nHost: pod\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	hearWS(t, ws, 0, "hello from")
	pod.Stop() // amid a connection that is kept alive
	var frame []byte
	for err == nil {
		err = websocket.Message.Receive(ws, &frame)
	}
	if os.IsTimeout(err) {
		t.Error("the connection to a pod that has ended stays")
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

// ask sends an HTTP request through a port-forward, closes its half and returns the whole answer, or what went wrong:
// where nobody listens yet, the stream is reset at any step.
func ask(conn streamhttp.Connection, request, port int) string {
	headers := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(request)}, "Streamtype": {"error"}}
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return err.Error()
	}
	said := make(chan string, 1)
	go func() { // ends with the stream; unread, it would hold others
		text, err := io.ReadAll(errs)
		if err != nil {
			text = append(text, err.Error()...)
		}
		said <- string(text)
	}()
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return err.Error()
	}
	_, err = io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
	if err = errors.Join(err, data.Close(), errs.Close()); err != nil {
		return err.Error() + <-said
	}
	answer, err := io.ReadAll(data)
	if err != nil {
		return err.Error() + <-said
	}
	return string(answer) + <-said
}
