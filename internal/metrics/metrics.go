// Package metrics counts what rooms tell of their steps, in the words of Prometheus. It does not know pods, containers or
// images by name, only how many, how long and how it ended, so that what it keeps does not grow with a node's life.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/step"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Buckets, in seconds. A read takes microseconds, a runtime's verb milliseconds, a crowd seconds, and what hangs minutes.
var (
	callBuckets = []float64{.0001, .0005, .001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 240}
	stepBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 240}
	longBuckets = []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800}
)

const buildInfo = "crid_build_info"

// Metrics is what is counted since it was made.
type Metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
	steps    map[step.Kind]family
	names    []string
}

// family is what is kept of one kind of steps.
type family struct {
	seconds  *prometheus.HistogramVec
	failures *prometheus.CounterVec // has the labels of seconds and the reason; nil where an error is no failure of its own
	labels   func(step.Step) []string
}

// New makes the metrics of the crid of this version, with those of its process and of Go.
func New(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), names: []string{buildInfo}}
	m.calls = m.histogram("crid_rpc_duration_seconds", "Time from a call's arrival to its answer, by gRPC code.", callBuckets, "rpc", "code")
	m.steps = map[step.Kind]family{
		step.Pod:            m.family("crid_pod_operation", "operations on pods", stepBuckets, verb, "operation"),
		step.PodStage:       m.stage("crid_pod_stage_duration_seconds", "Time in a stage of an operation on a pod.", "operation", "stage"),
		step.Container:      m.family("crid_container_operation", "operations on containers", stepBuckets, verb, "operation"),
		step.ContainerStage: m.stage("crid_container_stage_duration_seconds", "Time in a stage of an operation on a container.", "operation", "stage"),
		step.CNI:            m.family("crid_cni_operation", "CNI verbs, all plugins of a network together", stepBuckets, verb, "operation"),
		step.Program:        m.family("crid_program", "runs of a runtime, a CNI plugin or a monitor up to its answer", stepBuckets, programVerb, "program", "operation"),
		step.Exec:           m.family("crid_exec", "commands in containers, from their turn to their end", longBuckets, part, "runtime"),
		step.Pull:           m.family("crid_image_pull", "downloads of images", longBuckets, none),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: buildInfo, Help: "Always 1; its labels say which crid this is.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(build,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector())
	return m
}

func none(step.Step) []string          { return nil }
func verb(s step.Step) []string        { return []string{s.Verb} }
func part(s step.Step) []string        { return []string{s.Part} }
func programVerb(s step.Step) []string { return []string{s.Part, s.Verb} }
func verbStage(s step.Step) []string   { return []string{s.Verb, s.Part} }

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	m.names = append(m.names, name)
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) family(name, of string, buckets []float64, values func(step.Step) []string, labels ...string) family {
	f := family{
		seconds:  m.histogram(name+"_duration_seconds", "Time of "+of+".", buckets, labels...),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: name + "_failures_total", Help: "Failures of " + of + ", by reason."}, append(labels, "reason")),
		labels:   values,
	}
	m.names = append(m.names, name+"_failures_total")
	m.registry.MustRegister(f.failures)
	return f
}

func (m *Metrics) stage(name, help string, labels ...string) family {
	return family{seconds: m.histogram(name, help, stepBuckets, labels...), labels: verbStage}
}

// Watch counts steps; it is a step.Watch.
func (m *Metrics) Watch(ctx context.Context, s step.Step) (context.Context, func(error)) {
	began := time.Now()
	if s.Kind == step.Call {
		return ctx, func(err error) {
			var o step.Outcome
			errors.As(err, &o)
			m.calls.WithLabelValues(s.Verb, o.Code).Observe(time.Since(began).Seconds())
		}
	}
	f := m.steps[s.Kind]
	return ctx, func(err error) {
		labels := f.labels(s)
		f.seconds.WithLabelValues(labels...).Observe(time.Since(began).Seconds())
		if err != nil && f.failures != nil {
			f.failures.WithLabelValues(append(labels, reason(err))...).Inc()
		}
	}
}

// reasons are what failures are counted by: the first that an error is.
var reasons = []struct {
	err  error
	name string
}{
	{errdef.SignatureInvalid, "signature_invalid"},
	{errdef.RegistryUnavailable, "registry_unavailable"},
	{errdef.Exhausted, "exhausted"},
	{errdef.NotFound, "not_found"},
	{errdef.Exists, "exists"},
	{errdef.Invalid, "invalid"},
	{errdef.WrongState, "wrong_state"},
	{errdef.Unsupported, "unsupported"},
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "deadline_exceeded"},
	{errdef.Unavailable, "unavailable"},
}

func reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "other"
}

// Sample is a number that a room knows anyway and is asked for at each scrape.
type Sample struct {
	Name, Help string
	Total      bool // it only grows
	Now        func() float64
}

// Sample adds samples to what is served.
func (m *Metrics) Sample(samples ...Sample) {
	for _, s := range samples {
		m.names = append(m.names, s.Name)
		opts := prometheus.Opts{Name: s.Name, Help: s.Help}
		if s.Total {
			m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts(opts), s.Now))
		} else {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts), s.Now))
		}
	}
}

// Names are those of all metrics but of Go's and of the process, whether anything was counted yet or not.
func (m *Metrics) Names() []string { return m.names }

// scrapes is how many scrapes are answered at the same time.
const scrapes = 4

// Handler answers a scrape. It waits for no room and no program.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: scrapes, ErrorHandling: promhttp.HTTPErrorOnError})
}
