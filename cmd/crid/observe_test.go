package main

import (
	"log/slog"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/crid/crid/internal/metrics"
)

// TestMetricsAreDocumented holds docs/operations.md and the metrics together.
func TestMetricsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(crid_[a-z_]+)`").FindAllSubmatch(text, -1) {
		documented = append(documented, string(row[1]))
	}
	m := metrics.New("v1")
	r := &rooms{survey: &survey{}}
	m.Sample(r.samples(func() int64 { return 0 })...)
	for _, name := range m.Names() {
		if !slices.Contains(documented, name) {
			t.Errorf("%s has no row in docs/operations.md", name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(m.Names(), name) {
			t.Errorf("docs/operations.md has a row of %s, which there is not", name)
		}
	}
	if len(documented) < 20 {
		t.Errorf("only %d metrics are documented", len(documented))
	}
}

func TestNobodyWatchesByDefault(t *testing.T) {
	r := &rooms{}
	if err := r.openObservers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.steps() != nil || r.calls() != nil || r.metrics != nil || len(r.closers) != 0 {
		t.Errorf("somebody watches: %+v", r.observers)
	}
	if err := r.startMetrics(t.Context(), nil)(); err != nil {
		t.Error(err)
	}
}

// Pods matter more than metrics: an address that cannot be had is a warning.
func TestMetricsThatCannotBeServed(t *testing.T) {
	r := &rooms{survey: &survey{}, observers: observers{log: slog.New(slog.DiscardHandler)}}
	r.cfg.Metrics.Address = "192.0.2.1:9537" // nobody's
	if err := r.openObservers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.startMetrics(t.Context(), func() int64 { return 0 })(); err != nil {
		t.Error(err)
	}
	if len(r.warnings) != 1 {
		t.Errorf("warnings: %q", r.warnings)
	}
}
