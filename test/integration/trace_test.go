package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	collect "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// spans is an OpenTelemetry collector that keeps what it is sent.
type spans struct {
	collect.UnimplementedTraceServiceServer

	mu   sync.Mutex // guards list
	list []*otlp.Span
}

func (s *spans) Export(_ context.Context, r *collect.ExportTraceServiceRequest) (*collect.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			s.list = append(s.list, scope.Spans...)
		}
	}
	return &collect.ExportTraceServiceResponse{}, nil
}

// of is the spans of a trace.
func (s *spans) of(trace string) (found []*otlp.Span) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, span := range s.list {
		if fmt.Sprintf("%x", span.TraceId) == trace {
			found = append(found, span)
		}
	}
	return found
}

// startCollector serves a collector until t ends and returns its URL.
func startCollector(t *testing.T) (*spans, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server := &spans{}, grpc.NewServer()
	collect.RegisterTraceServiceServer(server, s)
	go func() { _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(server.Stop)
	return s, "http://" + l.Addr().String()
}

// tree is the spans below the parent, each a line of its ancestors' names and its own, sorted.
func tree(list []*otlp.Span, parent, above string) []string {
	var lines []string
	for _, span := range list {
		if fmt.Sprintf("%x", span.ParentSpanId) == parent {
			line := above + "/" + span.Name
			lines = append(lines, line)
			lines = append(lines, tree(list, fmt.Sprintf("%x", span.SpanId), line)...)
		}
	}
	slices.Sort(lines)
	return lines
}

// The client of three calls has a trace: all that crid does for them becomes part of it, with the right parents.
func TestTraces(t *testing.T) {
	received, url := startCollector(t)
	c := harness.Start(t, harness.Runtime("crun"), harness.Config("[tracing]\nendpoint = \""+url+"\"\nsampling = 0.0"))
	c.Pull(images.Busybox) // not in the trace
	const trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	traced := func() context.Context {
		return metadata.AppendToOutgoingContext(c.Context(), "traceparent", "00-"+trace+"-"+client+"-01")
	}
	config := c.PodConfig()
	ran, err := c.Client().RunPodSandbox(traced(), &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	pod := c.Pod(ran.PodSandboxId, config)
	created, err := c.Client().CreateContainer(traced(), &runtime.CreateContainerRequest{
		PodSandboxId: pod.ID, Config: pod.ContainerConfig("sleep 1000"), SandboxConfig: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctr := pod.Container(created.ContainerId, pod.ContainerConfig("sleep 1000"))
	if _, err := c.Client().StartContainer(traced(), &runtime.StartContainerRequest{ContainerId: ctr.ID}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/runtime.v1.RuntimeService/RunPodSandbox",
		"/runtime.v1.RuntimeService/RunPodSandbox/pod run",
		"/runtime.v1.RuntimeService/RunPodSandbox/pod run/pod run: namespaces",
		"/runtime.v1.RuntimeService/RunPodSandbox/pod run/pod run: network and files/CNI ADD/bridge ADD",
		"/runtime.v1.RuntimeService/RunPodSandbox/pod run/pod run: network and files/CNI ADD/portmap ADD",
		"/runtime.v1.RuntimeService/CreateContainer/container create/container create: mount root filesystem",
		"/runtime.v1.RuntimeService/CreateContainer/container create/container create: create process/conmon create",
		"/runtime.v1.RuntimeService/StartContainer/container start/container start: start process/crun start",
	}
	var got []string
	limit := time.After(time.Minute) // spans come in batches, every five seconds
	for complete := false; !complete; {
		got = tree(received.of(trace), client, "")
		complete = true
		for _, line := range want {
			complete = complete && slices.Contains(got, line)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-limit:
			t.Fatalf("got\n%s\nwant also\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if all := received.of(trace); len(all) != len(got) {
		t.Errorf("%d of %d spans hang in the air", len(all)-len(got), len(all))
	}
	for _, span := range received.of(trace) {
		if span.EndTimeUnixNano < span.StartTimeUnixNano || span.StartTimeUnixNano == 0 {
			t.Errorf("%s goes from %d to %d", span.Name, span.StartTimeUnixNano, span.EndTimeUnixNano)
		}
	}
	received.mu.Lock()
	defer received.mu.Unlock()
	for _, span := range received.list {
		if fmt.Sprintf("%x", span.TraceId) != trace {
			t.Errorf("%s is of another trace, and no other client has one", span.Name)
		}
	}
}

// A collector that is not there costs nobody anything: crid says so in its log, and ends in time.
func TestTracesWithoutACollector(t *testing.T) {
	c := harness.Start(t, harness.Config("[tracing]\nendpoint = \"http://127.0.0.1:9\""), harness.Program(harness.Binary("crid"), "OTEL_EXPORTER_OTLP_HEADERS=secret=1", "OTEL_SERVICE_NAME=x"))
	ctr := c.RunPod().Run("env; sleep 1000")
	monitors := 0
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range processes {
		if args, err := os.ReadFile(filepath.Join(dir, "cmdline")); err != nil || !strings.Contains(string(args), "--cid="+ctr.ID) {
			continue // another's, or gone
		}
		monitors++
		if env, err := os.ReadFile(filepath.Join(dir, "environ")); err != nil || strings.Contains(string(env), "OTEL_") {
			t.Errorf("the monitor has %q %v", env, err)
		}
	}
	if monitors != 1 {
		t.Errorf("found %d monitors", monitors)
	}
	ctr.Stop(0)
	if strings.Contains(ctr.Text(), "OTEL_") {
		t.Errorf("the container has\n%s", ctr.Text())
	}
	began := time.Now()
	c.Restart()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("crid took %v to end and start again", took)
	}
}
