package trace

import (
	"errors"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/crid/crid/internal/step"
)

// kept is a Tracer whose spans are kept.
func kept(t *testing.T) (*Tracer, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	tracer := &Tracer{provider: provider, tracer: provider.Tracer("test")}
	return tracer, spans
}

func TestStepsAreSpans(t *testing.T) {
	tracer, spans := kept(t)
	ctx, call := tracer.tracer.Start(t.Context(), "call")
	names := map[step.Step]string{
		{Kind: step.Pod, Verb: "run", ID: "p1"}:                             "pod run",
		{Kind: step.PodStage, Verb: "run", Part: "namespaces"}:              "pod run: namespaces",
		{Kind: step.Container, Verb: "create"}:                              "container create",
		{Kind: step.ContainerStage, Verb: "create", Part: "create process"}: "container create: create process",
		{Kind: step.CNI, Verb: "ADD"}:                                       "CNI ADD",
		{Kind: step.Program, Verb: "ADD", Part: "bridge"}:                   "bridge ADD",
		{Kind: step.Exec, Verb: "exec", Part: "crun"}:                       "crun exec",
		{Kind: step.Pull}: "pull image",
	}
	failed := errors.New("no")
	for s, want := range names {
		spans.Reset()
		_, end := tracer.Watch(ctx, s)
		end(failed)
		got := spans.GetSpans()
		if len(got) != 1 || got[0].Name != want || got[0].Parent.SpanID() != call.SpanContext().SpanID() || got[0].Status.Code != codes.Error {
			t.Errorf("%v became %v", s, got)
		}
		if id := s.ID; id != "" && (len(got[0].Attributes) != 1 || got[0].Attributes[0].Value.AsString() != id) {
			t.Errorf("%v has the attributes %v", s, got[0].Attributes)
		}
	}
}

// What nobody has called for, what is not sampled, and a call, which has a span of its own, become none.
func TestStepsThatAreNoSpans(t *testing.T) {
	tracer, spans := kept(t)
	called, call := tracer.tracer.Start(t.Context(), "call")
	unsampled := trace.ContextWithSpanContext(t.Context(), call.SpanContext().WithTraceFlags(0))
	for _, none := range []func() func(error){
		func() func(error) { _, end := tracer.Watch(t.Context(), step.Step{Kind: step.Pod}); return end },
		func() func(error) { _, end := tracer.Watch(unsampled, step.Step{Kind: step.Pod}); return end },
		func() func(error) { _, end := tracer.Watch(called, step.Step{Kind: step.Call}); return end },
	} {
		none()(nil)
	}
	if got := spans.GetSpans(); len(got) != 0 {
		t.Errorf("there are %v", got)
	}
}

// A collector that is not there holds nobody when crid begins to trace.
func TestOpenDoesNotWait(t *testing.T) {
	tracer, err := Open(t.Context(), Config{Endpoint: "http://127.0.0.1:9", Sampling: 1})
	if err != nil {
		t.Fatal(err)
	}
	if tracer.Calls() == nil {
		t.Error("nobody sees calls")
	}
	if err := tracer.Close(t.Context()); err != nil { // there is nothing to send
		t.Error(err)
	}
}
