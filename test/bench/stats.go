package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// asked is how often each list is asked for.
const asked = 200

// figures measures lists and figures with many pods held, what they cost the server's processors, and what the server
// does when nobody asks.
func (f flags) figures(ctx context.Context, all []*endpoint) error {
	for _, e := range all {
		crowd := e.quiet()
		pods, err := crowd.several(ctx, f.held, f.atOnce, f.image)
		if err == nil {
			err = f.idling(ctx, e)
		}
		for _, q := range questions(e) {
			if err == nil {
				err = e.costs(ctx, q)
			}
		}
		if err := errors.Join(err, crowd.away(ctx, pods, f.atOnce)); err != nil {
			return err
		}
	}
	return nil
}

// question is a call that answers with a list.
type question struct {
	what string
	call func(ctx context.Context) error
}

func questions(e *endpoint) []question {
	return []question{
		{"ListContainers", func(ctx context.Context) error {
			_, err := e.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
			return err
		}},
		{"ListPodSandbox", func(ctx context.Context) error {
			_, err := e.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
			return err
		}},
		{"StreamContainers", func(ctx context.Context) error {
			s, err := e.runtime.StreamContainers(ctx, &runtime.StreamContainersRequest{})
			return drain(s, err)
		}},
		{"ListContainerStats", func(ctx context.Context) error {
			_, err := e.runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func(ctx context.Context) error {
			_, err := e.runtime.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
			return err
		}},
		{"ListPodSandboxMetrics", func(ctx context.Context) error {
			_, err := e.runtime.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
			return err
		}},
	}
}

// drain reads a stream to its end.
func drain[R any](s grpc.ServerStreamingClient[R], err error) error {
	for err == nil {
		_, err = s.Recv()
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// costs asks for a list again and again. One call is not counted: the first makes what later ones find made.
func (e *endpoint) costs(ctx context.Context, q question) error {
	if err := q.call(ctx); err != nil {
		fmt.Printf("%s: no %s: %v\n", e.name, q.what, err)
		return nil
	}
	before, err := e.processorTime()
	if err != nil {
		return err
	}
	for range asked {
		if err := e.timed(q.what, func() error { return q.call(ctx) }); err != nil {
			return err
		}
	}
	after, err := e.processorTime()
	fmt.Printf("%s: %s: %s of the server's processors a call\n", e.name, q.what, ms((after-before)/asked))
	return err
}

// idling measures what the server does of itself.
func (f flags) idling(ctx context.Context, e *endpoint) error {
	before, err := e.processorTime()
	if err != nil {
		return err
	}
	select {
	case <-time.After(f.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := e.processorTime()
	fmt.Printf("%s: %.2f ms of processors a second with %d pods, when nobody asks\n", e.name,
		float64(after-before)/1e6/f.idle.Seconds(), f.held)
	return err
}

// clockTick is the unit of the kernel's figures in /proc/PID/stat.
const clockTick = 10 * time.Millisecond

// processorTime is what the endpoint's processes, and those that they waited for, have used of processors.
func (e *endpoint) processorTime() (time.Duration, error) {
	var total time.Duration
	err := e.processes(func(dir string) {
		raw, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return // gone meanwhile
		}
		_, rest, _ := strings.Cut(string(raw), ") ") // after the name, which may hold anything
		fields := strings.Fields(rest)
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(field, 10, 64) // the kernel's own numbers
			total += time.Duration(n) * clockTick
		}
	})
	return total, err
}
