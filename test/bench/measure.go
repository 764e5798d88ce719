package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// measure runs every part against every endpoint and prints one table.
func (f flags) measure(ctx context.Context, all []*endpoint) error {
	if err := f.pull(ctx, all); err != nil {
		return err
	}
	parts := []func(context.Context, []*endpoint) error{f.oneAtATime, f.manyAtOnce, f.holding}
	if f.stats {
		parts = []func(context.Context, []*endpoint) error{f.figures}
	}
	if f.events {
		parts = []func(context.Context, []*endpoint) error{f.exits}
	}
	for _, part := range parts {
		if err := part(ctx, all); err != nil {
			return err
		}
	}
	return report(all)
}

// pull gives every endpoint the image.
func (f flags) pull(ctx context.Context, all []*endpoint) error {
	for _, e := range all {
		if _, err := e.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: f.image}}); err != nil {
			return fmt.Errorf("%s: pull %s: %w", e.name, f.image, err)
		}
	}
	return nil
}

// oneAtATime interleaves the endpoints: round after round, each first in turn.
func (f flags) oneAtATime(ctx context.Context, all []*endpoint) error {
	for round := range f.rounds {
		for i := range all {
			e := all[(i+round)%len(all)]
			p, err := e.up(ctx, f.image)
			if err == nil {
				err = e.ask(ctx, p)
			}
			if err := errors.Join(err, e.down(ctx, p)); err != nil {
				return err
			}
		}
	}
	return nil
}

// manyAtOnce starts many pods, a few at a time, three rounds for each endpoint.
func (f flags) manyAtOnce(ctx context.Context, all []*endpoint) error {
	for round := range 3 {
		for i := range all {
			e := all[(i+round)%len(all)].quiet()
			began := time.Now()
			pods, err := e.several(ctx, f.many, f.atOnce, f.image)
			e.loud.note(fmt.Sprintf("= %d pods, %d at a time", f.many, f.atOnce), time.Since(began))
			began = time.Now()
			err = errors.Join(err, e.away(ctx, pods, f.atOnce))
			e.loud.note(fmt.Sprintf("= %d pods down, %d at a time", f.many, f.atOnce), time.Since(began))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// holding measures lists and memory with many pods.
func (f flags) holding(ctx context.Context, all []*endpoint) error {
	for _, e := range all {
		idle, err := e.memory()
		if err != nil {
			return err
		}
		q := e.quiet()
		pods, err := q.several(ctx, f.held, f.atOnce, f.image)
		if err != nil {
			return errors.Join(err, q.away(ctx, pods, f.atOnce))
		}
		full, err := e.memory()
		if err != nil {
			return err
		}
		fmt.Printf("%s: %.1f MiB idle, %.1f MiB with %d pods: %.2f MiB a pod\n", e.name,
			float64(idle)/(1<<20), float64(full)/(1<<20), f.held, (float64(full)-float64(idle))/(1<<20)/float64(f.held))
		for range 200 {
			if err := errors.Join(
				e.timed("ListContainers, pods held", func() error {
					_, err := e.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
					return err
				}),
				e.timed("ListPodSandbox, pods held", func() error {
					_, err := e.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
					return err
				}),
			); err != nil {
				return err
			}
		}
		if err := q.away(ctx, pods, f.atOnce); err != nil {
			return err
		}
	}
	return nil
}

// crowd is an endpoint whose single calls are not noted: among many at once they say little.
type crowd struct {
	*endpoint
	loud *endpoint
}

func (e *endpoint) quiet() crowd {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count += 1000 // names of its own
	return crowd{&endpoint{name: e.name, runtime: e.runtime, images: e.images, cgroup: e.cgroup, count: e.count, took: map[string][]time.Duration{}}, e}
}

func (c crowd) several(ctx context.Context, n, atOnce int, image string) ([]*pod, error) {
	pods := make([]*pod, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i := range pods {
		g.Go(func() (err error) {
			pods[i], err = c.up(ctx, image)
			return err
		})
	}
	return pods, g.Wait()
}

func (c crowd) away(ctx context.Context, pods []*pod, atOnce int) error {
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, p := range pods {
		if p != nil {
			g.Go(func() error { return c.down(ctx, p) })
		}
	}
	return g.Wait()
}

// report prints p50 and p99 of every call, and the first endpoint's p50 as a ratio to each other's.
func report(all []*endpoint) error {
	var calls []string
	for _, e := range all {
		for call := range e.took {
			if !slices.Contains(calls, call) {
				calls = append(calls, call)
			}
		}
	}
	sort.Strings(calls)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := "\t"
	for i, e := range all {
		head += e.name + " p50\tp99\t"
		if i > 0 {
			head += all[0].name + "/" + e.name + "\t"
		}
	}
	fmt.Fprintln(w, head)
	for _, call := range calls {
		line := strings.TrimSpace(call) + "\t"
		for i, e := range all {
			line += fmt.Sprintf("%s\t%s\t", ms(quantile(e.took[call], 0.5)), ms(quantile(e.took[call], 0.99)))
			if i > 0 {
				line += fmt.Sprintf("%.2f\t", float64(quantile(all[0].took[call], 0.5))/float64(quantile(e.took[call], 0.5)))
			}
		}
		fmt.Fprintln(w, line)
	}
	return w.Flush()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// quantile is the smallest sample that at least the share q of all samples does not exceed; 0 without samples.
func quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
