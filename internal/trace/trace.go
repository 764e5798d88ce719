// Package trace makes spans of what rooms tell of their steps and sends them to an OpenTelemetry collector. It does not know
// what a step does, and where no trace goes through a call nothing is made of its steps.
package trace

import (
	"context"
	"fmt"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/step"
)

// Config says where traces go.
type Config struct {
	Endpoint string  // URL of a collector that takes OTLP by gRPC: http://HOST:PORT, or https
	Sampling float64 // part of the calls without a trace of their client's that begin one, from 0 to 1
	Version  string  // of crid
}

// Tracer sends spans in the background, and drops them when the collector does not take them.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Open begins to trace. It does not wait for the collector.
func Open(ctx context.Context, cfg Config) (*Tracer, error) {
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(cfg.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("send traces to %s: %w", cfg.Endpoint, err)
	}
	about := resource.NewSchemaless(attribute.String("service.name", "crid"), attribute.String("service.version", cfg.Version))
	provider := sdk.NewTracerProvider(
		sdk.WithBatcher(exporter), // its goroutine ends with Close
		sdk.WithResource(about),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.Sampling))),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/crid/crid")}, nil
}

// Close sends what is left, until ctx ends.
func (t *Tracer) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Calls begins a span for each call, in the trace of its client where that has one. A reader of events stays for as long as
// its client does: a span of that says nothing.
func (t *Tracer) Calls() stats.Handler {
	return otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider),
		otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(func(call *stats.RPCTagInfo) bool {
			return call.FullMethodName != runtime.RuntimeService_GetContainerEvents_FullMethodName
		}),
	)
}

// Watch makes a span of a step in a call that is traced; it is a step.Watch. Work that nobody has called for has none: its
// spans would hang in the air.
func (t *Tracer) Watch(ctx context.Context, s step.Step) (context.Context, func(error)) {
	if s.Kind == step.Call || !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, name(s))
	if s.ID != "" && span.IsRecording() {
		span.SetAttributes(attribute.String("crid.id", s.ID))
	}
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

// name is what a step's span is called: the room or the program, then what it does.
func name(s step.Step) string {
	switch s.Kind {
	case step.Pod:
		return "pod " + s.Verb
	case step.PodStage:
		return "pod " + s.Verb + ": " + s.Part
	case step.Container:
		return "container " + s.Verb
	case step.ContainerStage:
		return "container " + s.Verb + ": " + s.Part
	case step.CNI:
		return "CNI " + s.Verb
	case step.Pull:
		return "pull image"
	default:
		return s.Part + " " + s.Verb
	}
}
