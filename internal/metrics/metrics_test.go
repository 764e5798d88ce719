package metrics

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/step"
)

// scrape returns what is served.
func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("scrape: %d %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

func tell(m *Metrics, s step.Step, err error) {
	_, end := m.Watch(context.Background(), s)
	end(err)
}

func TestStepsAreCounted(t *testing.T) {
	m := New("v1")
	tell(m, step.Step{Kind: step.Call, Verb: "RunPodSandbox"}, step.Outcome{Code: "OK"})
	tell(m, step.Step{Kind: step.Call, Verb: "RunPodSandbox"}, step.Outcome{Code: "AlreadyExists", Err: errdef.Exists})
	for range 3 {
		tell(m, step.Step{Kind: step.PodStage, Verb: "run", Part: "namespaces", ID: "abc"}, fmt.Errorf("x: %w", errdef.Unavailable))
	}
	tell(m, step.Step{Kind: step.Pull, ID: "busybox"}, fmt.Errorf("x: %w", errdef.NotFound))
	tell(m, step.Step{Kind: step.CNI, Verb: "DEL"}, fmt.Errorf("x: %w: %w", errdef.Unavailable, context.DeadlineExceeded))
	tell(m, step.Step{Kind: step.Program, Part: "crun", Verb: "start"}, fmt.Errorf("x"))
	m.Sample(Sample{Name: "crid_fish", Help: "Fish.", Now: func() float64 { return 7 }},
		Sample{Name: "crid_fish_total", Help: "Fish ever.", Total: true, Now: func() float64 { return 9 }})
	got := scrape(t, m)
	for _, line := range []string{
		`crid_rpc_duration_seconds_count{code="OK",rpc="RunPodSandbox"} 1`,
		`crid_rpc_duration_seconds_count{code="AlreadyExists",rpc="RunPodSandbox"} 1`,
		`crid_pod_stage_duration_seconds_count{operation="run",stage="namespaces"} 3`,
		`crid_image_pull_failures_total{reason="not_found"} 1`,
		`crid_image_pull_duration_seconds_count 1`,
		`crid_cni_operation_failures_total{operation="DEL",reason="deadline_exceeded"} 1`,
		`crid_program_failures_total{operation="start",program="crun",reason="other"} 1`,
		`crid_fish 7`,
		`crid_fish_total 9`,
		`# TYPE crid_fish_total counter`,
		`process_open_fds `,
		`go_goroutines `,
		`crid_build_info{goversion="go`,
	} {
		if !strings.Contains(got, "\n"+line) {
			t.Errorf("there is no %s in\n%s", line, got)
		}
	}
	for _, id := range []string{"abc", "busybox"} {
		if strings.Contains(got, id) {
			t.Errorf("%s became a label", id)
		}
	}
}

// BenchmarkStep is what a step costs when it is counted.
func BenchmarkStep(b *testing.B) {
	m, err := New("v1"), fmt.Errorf("x: %w", errdef.Unavailable)
	for name, c := range map[string]struct {
		s   step.Step
		err error
	}{
		"call":   {step.Step{Kind: step.Call, Verb: "Status"}, step.Outcome{Code: "OK"}},
		"stage":  {step.Step{Kind: step.PodStage, Verb: "run", Part: "namespaces"}, nil},
		"failed": {step.Step{Kind: step.CNI, Verb: "ADD"}, err},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tell(m, c.s, c.err)
			}
		})
	}
}
