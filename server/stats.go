package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stats"
)

// Stats measures pods and containers; *stats.Reader does. Lists leave out what is gone meanwhile.
type Stats interface {
	Container(ctx context.Context, c stats.Container) (*runtime.ContainerStats, error)
	Containers(ctx context.Context, all []stats.Container) []*runtime.ContainerStats
	Pod(ctx context.Context, p stats.Pod) (*runtime.PodSandboxStats, error)
	Pods(ctx context.Context, all []stats.Pod) []*runtime.PodSandboxStats
	Metrics(ctx context.Context, all []stats.Pod) []*runtime.PodSandboxMetrics
}

// ContainerStats of a container that has ended tells what it has written and nothing else: the rest is gone.
func (s *runtimeService) ContainerStats(ctx context.Context, r *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.Config().GetMetadata() == nil {
		return nil, fmt.Errorf("container %s: its record cannot be read, remove it: %w", c.ID(), errdef.Unavailable)
	}
	measured, err := s.stats.Container(ctx, toMeasure(c))
	if err != nil {
		return nil, err
	}
	return &runtime.ContainerStatsResponse{Stats: measured}, nil
}

// ListContainerStats tells of those that run.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	return &runtime.ListContainerStatsResponse{Stats: s.stats.Containers(ctx, s.running(r.GetFilter()))}, nil
}

func (s *runtimeService) StreamContainerStats(r *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	return inChunks(stream, encodeEach(s.stats.Containers(stream.Context(), s.running(r.GetFilter()))))
}

// running are the containers that run and that a client asks for.
func (s *Server) running(f *runtime.ContainerStatsFilter) []stats.Container {
	var running []stats.Container
	for _, c := range s.containers.List() {
		if visible(c) && c.Status().State == container.Running && named(c.ID(), f.GetId()) &&
			named(c.PodID(), f.GetPodSandboxId()) && matches(c.Config().GetLabels(), f.GetLabelSelector()) {
			running = append(running, toMeasure(c))
		}
	}
	return running
}

func (s *runtimeService) PodSandboxStats(ctx context.Context, r *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	pod, err := s.getPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	measured, err := s.stats.Pod(ctx, s.podToMeasure(pod))
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: measured}, nil
}

// ListPodSandboxStats tells of pods that are ready: nothing of the others uses anything.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	return &runtime.ListPodSandboxStatsResponse{Stats: s.stats.Pods(ctx, s.ready(r.GetFilter()))}, nil
}

func (s *runtimeService) StreamPodSandboxStats(r *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	return inChunks(stream, encodeEach(s.stats.Pods(stream.Context(), s.ready(r.GetFilter()))))
}

// ready are the pods that are ready and that a client asks for.
func (s *Server) ready(f *runtime.PodSandboxStatsFilter) []stats.Pod {
	var ready []stats.Pod
	for _, pod := range s.pods.List() {
		if pod.Status().State == sandbox.Ready && named(pod.ID(), f.GetId()) && matches(pod.Config().GetLabels(), f.GetLabelSelector()) {
			ready = append(ready, s.podToMeasure(pod))
		}
	}
	return ready
}

// ListMetricDescriptors says the same each time: the kubelet asks once.
func (s *runtimeService) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return &runtime.ListMetricDescriptorsResponse{Descriptors: stats.Descriptors()}, nil
}

func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: s.stats.Metrics(ctx, s.ready(nil))}, nil
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	return inChunks(stream, encodeEach(s.stats.Metrics(stream.Context(), s.ready(nil))))
}

// toMeasure is the container as it is measured: one that has ended has no cgroup any more.
func toMeasure(c Container) stats.Container {
	config, status := c.Config(), c.Status()
	m := stats.Container{
		Since: status.CreatedAt, Started: status.StartedAt, PID: status.PID, Hidden: !visible(c),
		Image: toImageSpec(config.GetImage()).GetImage(),
		Attributes: &runtime.ContainerAttributes{
			Id:          c.ID(),
			Metadata:    config.GetMetadata(),
			Labels:      config.GetLabels(),
			Annotations: config.GetAnnotations(),
		},
	}
	if status.State == container.Created || status.State == container.Running {
		m.Cgroup = c.Cgroup()
	}
	return m
}

// podToMeasure takes the cgroup that a client has named for the pod's own, as the kubelet's are. The default is
// shared by all pods that name none.
func (s *Server) podToMeasure(pod Pod) stats.Pod {
	config, status := pod.Config(), pod.Status()
	m := stats.Pod{NetNS: status.NetNS, Since: status.CreatedAt, Attributes: &runtime.PodSandboxAttributes{
		Id:          pod.ID(),
		Metadata:    config.GetMetadata(),
		Labels:      config.GetLabels(),
		Annotations: config.GetAnnotations(),
	}}
	if config.GetLinux().GetCgroupParent() != "" {
		m.Cgroup = status.CgroupParent
	}
	for _, c := range s.containers.OfPod(pod.ID()) {
		if c.Status().State == container.Running {
			m.Containers = append(m.Containers, toMeasure(c))
		}
	}
	return m
}
