package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

// ContainerRecord is what the server reads of a container; it never waits.
type ContainerRecord interface {
	ID() string
	PodID() string
	Pause() bool                      // crid's own: no client may see it
	Config() *runtime.ContainerConfig // read-only
	Status() container.Status
}

// ContainerLife is what can be done to a container.
type ContainerLife interface {
	Start(ctx context.Context) error
	Stop(ctx context.Context, grace time.Duration) error
	Remove(ctx context.Context) error
	ReopenLog(ctx context.Context) error
	Exec(ctx context.Context, cmd []string, timeout time.Duration, limit int) (ExecResult, error)
}

// ContainerLimits is what a container may use.
type ContainerLimits interface {
	Cgroup() string // path of the container's own
	// Update changes what change specifies, all of it or nothing.
	Update(ctx context.Context, change *runtime.LinuxContainerResources) error
}

// Container is one container; *container.Container is one.
type Container interface {
	Listed
	ContainerRecord
	ContainerLife
	ContainerLimits
}

// Containers is what the server asks of the room of containers. An id may be shortened while it is unique.
type Containers interface {
	Create(ctx context.Context, r container.Request) (Container, error)
	Get(id string) (Container, error)
	List() []Container              // those that clients know of
	OfPod(podID string) []Container // all of a pod, those being created and the pause included
	Spec(id string) ([]byte, error) // the OCI configuration that the runtime was given, JSON
}

func (s *runtimeService) CreateContainer(ctx context.Context, r *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	config := r.GetConfig()
	if err := checkContainer(config); err != nil {
		return nil, err
	}
	pod, err := s.getPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := spec.ValidateContainer(config, pod.Config()); err != nil {
		return nil, err
	}
	image, err := s.images.Resolve(ctx, config.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	volumes, err := s.volumeImages(ctx, config.GetMounts())
	if err != nil {
		return nil, err
	}
	pid := config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	ctx, env, leave, err := pod.Enter(ctx, pid)
	if err != nil {
		return nil, err
	}
	defer leave()
	m := config.GetMetadata()
	created, err := s.containers.Create(ctx, container.Request{
		Key:     container.Key{PodID: pod.ID(), Name: m.GetName(), Attempt: m.GetAttempt()},
		Pod:     env,
		Config:  config,
		Image:   image,
		Volumes: volumes,
	})
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: created.ID()}, nil
}

// volumeImages finds the images that mounts name. The kubelet has pulled them.
func (s *Server) volumeImages(ctx context.Context, mounts []*runtime.Mount) (map[string]storage.Image, error) {
	var found map[string]storage.Image
	for i, m := range mounts {
		name := m.GetImage().GetImage()
		if name == "" {
			continue
		}
		_, err := s.imageRef(m)
		var image storage.Image
		if err == nil {
			image, err = s.images.Resolve(ctx, name)
		}
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] (%s): %w: %w", i, m.GetContainerPath(), err, errdef.ImageVolume)
		}
		if found == nil {
			found = map[string]storage.Image{}
		}
		found[name] = image
	}
	return found, nil
}

// checkContainer validates what can be told without asking anybody.
func checkContainer(config *runtime.ContainerConfig) error {
	return cmp.Or(
		checkName("config.metadata.name", config.GetMetadata().GetName(), true),
		checkName("config.image.image", config.GetImage().GetImage(), true),
		checkName("config.log_path", config.GetLogPath(), false),
		checkConfig("config", config),
		checkLabels("config", config),
	)
}

func (s *runtimeService) StartContainer(ctx context.Context, r *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	return &runtime.StartContainerResponse{}, nil
}

// StopContainer of a container that is not there is done already.
func (s *runtimeService) StopContainer(ctx context.Context, r *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	grace, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	c, err := s.getContainer(r.GetContainerId())
	if err == nil {
		err = c.Stop(ctx, grace)
	}
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return &runtime.StopContainerResponse{}, nil
}

// RemoveContainer of a container that is not there is done already.
func (s *runtimeService) RemoveContainer(ctx context.Context, r *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	c, err := s.getContainer(r.GetContainerId())
	if err == nil {
		err = c.Remove(ctx)
	}
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return &runtime.RemoveContainerResponse{}, nil
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.ReopenLog(ctx); err != nil {
		return nil, err
	}
	return &runtime.ReopenContainerLogResponse{}, nil
}

// getContainer returns a container that clients know of, or NotFound.
func (s *Server) getContainer(id string) (Container, error) {
	if err := checkName("container_id", id, true); err != nil {
		return nil, err
	}
	c, err := s.containers.Get(id)
	if err != nil {
		return nil, err
	}
	if !visible(c) {
		return nil, fmt.Errorf("container %s: %w", id, errdef.NotFound)
	}
	return c, nil
}

func visible(c ContainerRecord) bool {
	return !c.Pause() && c.Status().State != container.Creating
}

// seconds reads a number of seconds; what a Duration cannot hold is as good as forever.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, fmt.Errorf("%s is %d, it must not be negative: %w", field, n, errdef.Invalid)
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second, nil
}
