package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// fetchMetrics fetches the metrics over the socket.
func fetchMetrics(t *testing.T, network, address string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
	resp, err := client.Get("http://crid/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %s %v\n%s", resp.Status, err, text)
	}
	return string(text)
}

// valueOf is that of the series, 0 where there is none.
func valueOf(t *testing.T, text, series string) float64 {
	t.Helper()
	found := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(series) + " (.*)$").FindStringSubmatch(text)
	if found == nil {
		return 0
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestOwnMetrics(t *testing.T) {
	const address = "127.0.0.1:9537" // of the tests' own network namespace
	c := harness.Start(t, harness.Runtime("crun"), harness.Config("[metrics]\naddress = \""+address+"\""))
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	ctr.Exec("true")
	if err := ctr.TryExec("exit 3"); err == nil {
		t.Error("exit 3 is no error")
	}
	if _, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref("there-is-none:1")}, nil, nil); err == nil {
		t.Error("an image that nobody has was pulled")
	}
	unknown := fmt.Sprintf("Unknown%d", time.Now().UnixNano())
	if err := c.Connection().Invoke(c.Context(), "/runtime.v1.RuntimeService/"+unknown, &runtime.VersionRequest{}, &runtime.VersionResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method that there is not: %v", err)
	}
	ctr.Stop(0)
	got := fetchMetrics(t, "tcp", address)
	for series, want := range map[string]float64{
		`crid_rpc_duration_seconds_count{code="OK",rpc="RunPodSandbox"}`:                                1,
		`crid_rpc_duration_seconds_count{code="OK",rpc="CreateContainer"}`:                              1,
		`crid_rpc_duration_seconds_count{code="OK",rpc="ExecSync"}`:                                     2,
		`crid_pod_operation_duration_seconds_count{operation="run"}`:                                    1,
		`crid_pod_stage_duration_seconds_count{operation="run",stage="namespaces"}`:                     1,
		`crid_pod_stage_duration_seconds_count{operation="run",stage="network and files"}`:              1,
		`crid_container_operation_duration_seconds_count{operation="create"}`:                           1,
		`crid_container_operation_duration_seconds_count{operation="start"}`:                            1,
		`crid_container_operation_duration_seconds_count{operation="stop"}`:                             1,
		`crid_container_stage_duration_seconds_count{operation="create",stage="mount root filesystem"}`: 1,
		`crid_container_stage_duration_seconds_count{operation="create",stage="create process"}`:        1,
		`crid_program_duration_seconds_count{operation="start",program="crun"}`:                         1,
		`crid_program_duration_seconds_count{operation="create",program="conmon"}`:                      1,
		`crid_program_duration_seconds_count{operation="ADD",program="bridge"}`:                         1,
		`crid_cni_operation_duration_seconds_count{operation="ADD"}`:                                    1,
		`crid_exec_duration_seconds_count{runtime="crun"}`:                                              2,
		`crid_image_pull_failures_total{reason="not_found"}`:                                            1,
		`crid_pods`:       1,
		`crid_containers`: 1,
		`crid_tombstones`: 0,
	} {
		if v := valueOf(t, got, series); v != want {
			t.Errorf("%s is %v, want %v", series, v, want)
		}
	}
	for _, series := range []string{"crid_image_pull_bytes_total", "crid_start_duration_seconds", "process_start_time_seconds", "crid_events_total"} {
		if valueOf(t, got, series) <= 0 {
			t.Errorf("%s is nothing", series)
		}
	}
	for _, name := range []string{unknown, pod.ID, ctr.ID, "busybox"} {
		if strings.Contains(got, name) {
			t.Errorf("%s became a label", name)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// A network that cannot be taken down counts as a failure and as a tombstone, until it could be.
func TestOwnMetricsOfANetworkThatFails(t *testing.T) {
	socket := t.TempDir() + "/metrics.sock"
	n := newFaultyNetwork(t)
	c := n.start(harness.Config("[metrics]\naddress = \"unix://" + socket + "\""))
	pod := c.RunPod()
	n.fail(faults{Del: 100})
	pod.Stop()
	got := fetchMetrics(t, "unix", socket)
	if valueOf(t, got, "crid_tombstones") != 1 || valueOf(t, got, `crid_cni_operation_failures_total{operation="DEL",reason="unavailable"}`) < 1 {
		t.Errorf("not counted in\n%s", got)
	}
	n.fail(faults{})
	limit := time.After(time.Minute)
	for valueOf(t, fetchMetrics(t, "unix", socket), "crid_tombstones") != 0 {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-limit:
			t.Fatal("the tombstone stays")
		}
	}
}
