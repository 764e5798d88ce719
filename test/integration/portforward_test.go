package integration

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

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
	}{{own, "127.0.0.1:80", 80}, {own, "[::1]:81", 81}, {own, "0.0.0.0:82", 82}, {host, "127.0.0.1:18083", 18083}} {
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
// where nobody listens yet, the streams are reset at any step.
func ask(conn streamhttp.Connection, request, port int) string {
	headers := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(request)}, "Streamtype": {"error"}}
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return err.Error()
	}
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return err.Error()
	}
	_, err = io.WriteString(data, "GET / HTTP/1.0\r\n\r\n")
	if err = errors.Join(err, data.Close(), errs.Close()); err != nil {
		return err.Error()
	}
	answer, err := io.ReadAll(data)
	said, failed := io.ReadAll(errs)
	if err = errors.Join(err, failed); err != nil {
		return err.Error()
	}
	return string(answer) + string(said)
}
