package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/event"
)

// GetContainerEvents sends what happens from now on, until the client leaves or crid stops. The client's
// headers arrive once nothing can be missed any more.
func (s *runtimeService) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	ctx, cancel := s.untilEnd(stream.Context())
	defer cancel()
	events := s.events.Subscribe(ctx)
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for e, err := range events {
		if err != nil {
			return err
		}
		if err := stream.Send(s.toEvent(e)); err != nil {
			return err
		}
	}
	if stream.Context().Err() != nil {
		return stream.Context().Err()
	}
	return errDraining
}

// untilEnd returns a context that also ends when crid stops.
func (s *Server) untilEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends with ctx, which the caller cancels
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// toEvent adds to an event how its pod stands now. A pod that is gone has no status.
func (s *Server) toEvent(e event.Event) *runtime.ContainerEventResponse {
	resp := &runtime.ContainerEventResponse{
		ContainerId:        e.ContainerID,
		ContainerEventType: toEventType(e.Kind),
		CreatedAt:          e.At.UnixNano(),
	}
	if pod, err := s.getPod(e.PodID); err == nil {
		_, resp.PodSandboxStatus, resp.ContainersStatuses = s.snapshot(pod)
	}
	return resp
}

func toEventType(k event.Kind) runtime.ContainerEventType {
	switch k {
	case event.Created:
		return runtime.ContainerEventType_CONTAINER_CREATED_EVENT
	case event.Started:
		return runtime.ContainerEventType_CONTAINER_STARTED_EVENT
	case event.Stopped:
		return runtime.ContainerEventType_CONTAINER_STOPPED_EVENT
	default:
		return runtime.ContainerEventType_CONTAINER_DELETED_EVENT
	}
}

// snapshot is how a pod and its containers stand; the time, in nanoseconds, is before any of them was read.
func (s *Server) snapshot(pod Pod) (int64, *runtime.PodSandboxStatus, []*runtime.ContainerStatus) {
	now := time.Now().UnixNano()
	status := toPodStatus(pod)
	var containers []*runtime.ContainerStatus
	for _, c := range s.containers.OfPod(pod.ID()) {
		if visible(c) {
			containers = append(containers, toContainerStatus(c))
		}
	}
	return now, status, containers
}
