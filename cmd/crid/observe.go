package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"google.golang.org/grpc/stats"

	"github.com/crid/crid/internal/metrics"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/step"
	"github.com/crid/crid/internal/trace"
)

// observers is who hears of what crid does. Metrics and tracer are nil unless they are configured.
type observers struct {
	log     *slog.Logger
	metrics *metrics.Metrics
	tracer  *trace.Tracer
	began   time.Time
}

// sendGrace is what the last spans have to be sent when crid ends.
const sendGrace = 500 * time.Millisecond

// steps is what rooms tell their steps to: nil when nobody wants to know.
func (o *observers) steps() step.Watch {
	var count, spans step.Watch
	if o.metrics != nil {
		count = o.metrics.Watch
	}
	if o.tracer != nil {
		spans = o.tracer.Watch
	}
	return step.Both(count, spans)
}

// calls is what sees calls before the server does; nil = nobody.
func (o *observers) calls() stats.Handler {
	if o.tracer == nil {
		return nil
	}
	return o.tracer.Calls()
}

// openObservers opens what is configured. A collector need not be there.
func (r *rooms) openObservers(ctx context.Context) error {
	if r.cfg.Metrics.Address != "" {
		r.metrics = metrics.New(versionString())
	}
	if r.cfg.Tracing.Endpoint == "" {
		return nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { r.log.Warn("traces are lost", "err", err) }))
	var err error
	r.tracer, err = trace.Open(ctx, trace.Config{
		Endpoint: r.cfg.Tracing.Endpoint, Sampling: r.cfg.Tracing.Sampling, Version: versionString(),
	})
	if err != nil {
		return err
	}
	r.onClose("traces", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, sendGrace)
		defer cancel()
		if err := r.tracer.Close(ctx); err != nil {
			r.log.Warn("the last traces are lost", "err", err)
		}
		return nil
	})
	return nil
}

// startMetrics serves metrics, if they are to be, until the function it returns is called. Pods matter more: when the
// address cannot be had, Status warns of it.
func (r *rooms) startMetrics(ctx context.Context, active func() int64) (stop func() error) {
	if r.metrics == nil {
		return func() error { return nil }
	}
	r.metrics.Sample(r.samples(active)...)
	l, err := listenMetrics(ctx, r.cfg.Metrics.Address)
	if err != nil {
		warning := fmt.Sprintf("metrics are not served: %v: choose another [metrics] address and restart crid", err)
		r.warn(warning)
		return func() error { return nil }
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", r.metrics.Handler())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	go serveDebug(s, l, func(err error) { r.log.Error("metrics", "err", err) }) // ends by Close
	return s.Close
}

// socketMode is that of a socket for metrics.
const socketMode fs.FileMode = 0o600

func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		return listen(ctx, path, socketMode)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}

// samples is what rooms know anyway.
func (r *rooms) samples(active func() int64) []metrics.Sample {
	start := time.Since(r.began).Seconds() // until now
	return []metrics.Sample{
		{Name: "crid_start_duration_seconds", Help: "Time from crid's start until it served: how long pods and containers took to take up.",
			Now: func() float64 { return start }},
		{Name: "crid_rpcs_in_flight", Help: "Calls that are being answered.", Now: number(active)},
		{Name: "crid_pods", Help: "Pods that are listed.", Now: length(r.pods.List)},
		{Name: "crid_containers", Help: "Containers that are listed.", Now: length(r.containers.List)},
		{Name: "crid_operations_in_flight", Help: "Operations on pods and containers that go on; crictl info tells which.",
			Now: length(r.operationInfo)},
		{Name: "crid_oldest_operation_age_seconds", Help: "Age of the oldest operation on a pod that goes on; 0 when there is none.",
			Now: func() float64 { return oldest(r.pods.InFlight()) }},
		{Name: "crid_tombstones", Help: "Networks of stopped pods that could not be taken down yet.", Now: length(r.pods.Tombstones)},
		{Name: "crid_records_unreadable", Help: "Records of pods and containers that cannot be read.",
			Now: func() float64 { return float64(len(r.pods.Unreadable()) + len(r.containers.Unreadable())) }},
		{Name: "crid_records_unsaved", Help: "Records that a disk has refused and that are in memory only.", Now: length(r.survey.records.unsaved)},
		{Name: "crid_logs_lost", Help: "Containers whose log lost output on a full disk.", Now: length(r.survey.monitors.StoppedLogs)},
		{Name: "crid_events_total", Help: "Events of pods and containers.", Total: true, Now: func() float64 { return float64(r.events.Counts().Published) }},
		{Name: "crid_event_readers", Help: "Streams of events that are open.", Now: func() float64 { return float64(r.events.Counts().Readers) }},
		{Name: "crid_event_readers_lagged_total", Help: "Streams of events ended because their reader was too slow and must list again.",
			Total: true, Now: func() float64 { return float64(r.events.Counts().Lagged) }},
		{Name: "crid_image_pull_bytes_total", Help: "Bytes of layers and configurations read from registries, as they were sent.",
			Total: true, Now: func() float64 { return float64(r.images.PulledBytes()) }},
	}
}

func number(n func() int64) func() float64 { return func() float64 { return float64(n()) } }
func length[T any](list func() []T) func() float64 {
	return func() float64 { return float64(len(list())) }
}

func oldest(operations []sandbox.Operation) float64 {
	var age time.Duration
	for _, o := range operations {
		age = max(age, o.Age)
	}
	return age.Seconds()
}
