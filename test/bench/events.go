package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tellLimit bounds the wait for one event.
const tellLimit = 30 * time.Second

// exits measures from the kill of a container's process to the event that tells of its end, round after round, with -held
// pods beside.
func (f flags) exits(ctx context.Context, all []*endpoint) error {
	for _, e := range all {
		q := e.quiet()
		pods, err := q.several(ctx, f.held, f.atOnce, f.image)
		for range f.rounds {
			if err == nil {
				err = e.exit(ctx, q, f.image)
			}
		}
		if err := errors.Join(err, q.away(ctx, pods, f.atOnce)); err != nil {
			return err
		}
	}
	return nil
}

// exit measures one.
func (e *endpoint) exit(ctx context.Context, q crowd, image string) (err error) {
	reading, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	events, err := e.runtime.GetContainerEvents(reading, &runtime.GetEventsRequest{})
	if err != nil {
		return err
	}
	p, err := q.up(ctx, image)
	defer func() { err = errors.Join(err, q.down(ctx, p)) }()
	if err != nil {
		return err
	}
	if err := told(events, p.container, runtime.ContainerEventType_CONTAINER_STARTED_EVENT); err != nil {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	pid, err := e.process(ctx, p.container)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d of %s: %w", pid, p.container, err)
	}
	if err := told(events, p.container, runtime.ContainerEventType_CONTAINER_STOPPED_EVENT); err != nil {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	e.note("exit to event", time.Since(began))
	return nil
}

// told waits for an event of a container.
func told(events runtime.RuntimeService_GetContainerEventsClient, id string, what runtime.ContainerEventType) error {
	for {
		e, err := events.Recv()
		if err != nil {
			return fmt.Errorf("%v of container %s was not told: %w", what, id, err)
		}
		if e.ContainerId == id && e.ContainerEventType == what {
			return nil
		}
	}
}

// process is the pid of a container's main process, as both servers tell it.
func (e *endpoint) process(ctx context.Context, id string) (int, error) {
	status, err := e.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return 0, err
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil || info.PID <= 0 {
		return 0, fmt.Errorf("%s: container %s has no pid in %q: %w", e.name, id, status.Info["info"], err)
	}
	return info.PID, nil
}
