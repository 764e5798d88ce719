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
			answer := ask(t, conn, tries, to.port)
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

// ask sends an HTTP request through a port-forward, closes its half and returns the whole answer.
func ask(t *testing.T, conn streamhttp.Connection, request, port int) string {
	t.Helper()
	headers := http.Header{"Port": {strconv.Itoa(port)}, "Requestid": {strconv.Itoa(request)}, "Streamtype": {"error"}}
	errs, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(data, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(data.Close(), errs.Close()); err != nil {
		t.Error(err)
	}
	answer, err := io.ReadAll(data)
	if err != nil {
		return err.Error()
	}
	said, err := io.ReadAll(errs)
	if err != nil {
		return err.Error()
	}
	return string(answer) + string(said)
}
