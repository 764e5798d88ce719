package storage

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	gaugeAge      = 10 * time.Second // an answer that is older has the next measurement begun
	gaugeStale    = time.Minute      // one that is older yet is waited to be replaced: nobody has asked for long
	gaugePatience = 2 * time.Second  // for so long
	gaugeRest     = 10               // a measurement is followed by a rest of so many times what it took, a minute at most
)

// gauge answers from memory how much something takes. It measures when it is told of a change, and behind an answer that
// is old.
type gauge struct {
	measure func(ctx context.Context) (Usage, error)
	wake    chan struct{} // holds one: a measurement is due
	last    atomic.Pointer[measurement]
}

type measurement struct {
	usage Usage
	err   error
	taken bool
	next  chan struct{} // closed when a newer measurement is there
}

func newGauge(measure func(ctx context.Context) (Usage, error)) *gauge {
	g := &gauge{measure: measure, wake: make(chan struct{}, 1)}
	g.last.Store(&measurement{next: make(chan struct{})})
	return g
}

// kick asks for a new measurement.
func (g *gauge) kick() {
	select {
	case g.wake <- struct{}{}:
	default: // one is already due
	}
}

// read returns the last measurement. It waits for the first one, and a moment where the last is very old.
func (g *gauge) read(ctx context.Context) (Usage, error) {
	m := g.last.Load()
	age := time.Since(m.usage.At)
	if m.taken && age < gaugeAge {
		return m.usage, m.err
	}
	g.kick()
	if m.taken && age < gaugeStale {
		return m.usage, m.err
	}
	var patience <-chan time.Time
	if m.taken {
		patience = time.After(gaugePatience)
	}
	select {
	case <-m.next:
	case <-patience:
	case <-ctx.Done():
		return Usage{}, fmt.Errorf("measure what is on the disk: %w", context.Cause(ctx))
	}
	m = g.last.Load()
	return m.usage, m.err
}

// run measures until ctx ends, and reports how each measurement ended.
func (g *gauge) run(ctx context.Context, report func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		}
		began := time.Now()
		usage, err := g.measure(ctx)
		if ctx.Err() != nil {
			return
		}
		report(err)
		usage.At = time.Now()
		old := g.last.Swap(&measurement{usage: usage, err: err, taken: true, next: make(chan struct{})})
		close(old.next)
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(gaugeRest*time.Since(began), time.Minute)):
		}
	}
}
