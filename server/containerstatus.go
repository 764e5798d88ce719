package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
)

func (s *runtimeService) ListContainers(_ context.Context, r *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	return whole(&runtime.ListContainersResponse{}, s.containerItems(r.GetFilter()))
}

func (s *runtimeService) StreamContainers(r *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	return inChunks(stream, s.containerItems(r.GetFilter()))
}

// containerItems are the containers that a client knows of and asks for.
func (s *Server) containerItems(f *runtime.ContainerFilter) items {
	return func(yield func([]byte, error) bool) {
		for _, c := range s.containers.List() {
			status := c.Status() // once: what is told is what was asked for
			if visible(c) && wantsContainer(f, c, status) && !yield(encodeContainer(c, status)) {
				return
			}
		}
	}
}

func wantsContainer(f *runtime.ContainerFilter, c ContainerRecord, status container.Status) bool {
	return named(c.ID(), f.GetId()) &&
		named(c.PodID(), f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == toContainerState(status.State)) &&
		matches(c.Config().GetLabels(), f.GetLabelSelector())
}

// containerStamp is what of a container's item may change, and whose configuration the rest is.
type containerStamp struct {
	config            *runtime.ContainerConfig
	state             container.State
	createdAt         int64
	imageRef, imageID string
}

func encodeContainer(c Container, status container.Status) ([]byte, error) {
	stamp := containerStamp{c.Config(), status.State, status.CreatedAt.UnixNano(), status.ImageRef, status.ImageID}
	return encodeOnce(c.Memo(), stamp, func() proto.Message { return toContainerItem(c, status) })
}

func (s *runtimeService) ContainerStatus(_ context.Context, r *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.Config().GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("container %s: its record cannot be read, remove it with RemoveContainer: %w", c.ID(), errdef.Unavailable)
	}
	resp := &runtime.ContainerStatusResponse{Status: toContainerStatus(c)}
	if r.GetVerbose() {
		resp.Info, err = s.containerInfo(c)
	}
	return resp, err
}

// containerInfo is what verbose ContainerStatus tells besides, in the words of other runtimes, which
// crictl's users and tools know.
func (s *Server) containerInfo(c Container) (map[string]string, error) {
	raw, err := s.containers.Spec(c.ID())
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return info(map[string]any{"info": struct {
		SandboxID   string          `json:"sandboxID"`
		PID         int             `json:"pid"`
		RuntimeSpec json.RawMessage `json:"runtimeSpec,omitempty"`
	}{c.PodID(), c.Status().PID, raw}})
}

func toContainerItem(c ContainerRecord, status container.Status) *runtime.Container {
	config := c.Config()
	return &runtime.Container{
		Id:           c.ID(),
		PodSandboxId: c.PodID(),
		Metadata:     config.GetMetadata(),
		Image:        toImageSpec(config.GetImage()),
		ImageRef:     status.ImageRef,
		State:        toContainerState(status.State),
		CreatedAt:    status.CreatedAt.UnixNano(),
		Labels:       config.GetLabels(),
		Annotations:  config.GetAnnotations(),
		ImageId:      status.ImageID,
	}
}

func toContainerStatus(c ContainerRecord) *runtime.ContainerStatus {
	config, status := c.Config(), c.Status()
	return &runtime.ContainerStatus{
		Id:          c.ID(),
		Metadata:    config.GetMetadata(),
		State:       toContainerState(status.State),
		CreatedAt:   status.CreatedAt.UnixNano(),
		StartedAt:   nanos(status.StartedAt),
		FinishedAt:  nanos(status.FinishedAt),
		ExitCode:    status.ExitCode,
		Image:       toImageSpec(config.GetImage()),
		ImageRef:    status.ImageRef,
		Reason:      status.Reason,
		Message:     status.Message,
		Labels:      config.GetLabels(),
		Annotations: config.GetAnnotations(),
		Mounts:      status.Mounts,
		LogPath:     status.LogPath,
		Resources:   toResources(status.Resources),
		ImageId:     status.ImageID,
		User:        toUser(status),
		StopSignal:  status.StopSignal,
	}
}

// nanos is 0, not a date before Christ, for what has not happened.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// toImageSpec names the image as the user did: the kubelet creates containers by image id and says in
// user_specified_image what the pod has.
func toImageSpec(spec *runtime.ImageSpec) *runtime.ImageSpec {
	return &runtime.ImageSpec{
		Image:              cmp.Or(spec.GetUserSpecifiedImage(), spec.GetImage()),
		Annotations:        spec.GetAnnotations(),
		UserSpecifiedImage: spec.GetUserSpecifiedImage(),
		RuntimeHandler:     spec.GetRuntimeHandler(),
	}
}

func toContainerState(s container.State) runtime.ContainerState {
	switch s {
	case container.Created:
		return runtime.ContainerState_CONTAINER_CREATED
	case container.Running:
		return runtime.ContainerState_CONTAINER_RUNNING
	case container.Exited:
		return runtime.ContainerState_CONTAINER_EXITED
	default:
		return runtime.ContainerState_CONTAINER_UNKNOWN
	}
}

func toResources(r *runtime.LinuxContainerResources) *runtime.ContainerResources {
	if r == nil {
		return nil
	}
	return &runtime.ContainerResources{Linux: r}
}

// toUser tells whom the first process runs as.
func toUser(s container.Status) *runtime.ContainerUser {
	user := &runtime.LinuxContainerUser{
		Uid:                int64(s.User.UID),
		Gid:                int64(s.User.GID),
		SupplementalGroups: make([]int64, 0, len(s.User.Additional)),
	}
	for _, gid := range s.User.Additional {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(gid))
	}
	return &runtime.ContainerUser{Linux: user}
}
