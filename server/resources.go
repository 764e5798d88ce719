package server

import (
	"cmp"
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/oci/spec"
)

// UpdateContainerResources returns once all of the change is in force, or with an error once nothing is.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if err := spec.ValidateChange("linux", r.GetLinux()); err != nil {
		return nil, err
	}
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := c.Update(ctx, r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtime.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources tells what the pod as a whole may use. The caller sets that in the pod's cgroup, which is
// its own, and asks crid before it does so: nothing is left to be done here but to say that nothing stands against it.
func (s *runtimeService) UpdatePodSandboxResources(_ context.Context, r *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	err := cmp.Or(
		spec.ValidateChange("overhead", r.GetOverhead()),
		spec.ValidateChange("resources", r.GetResources()),
	)
	if err != nil {
		return nil, err
	}
	if _, err := s.getPod(r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, nil
}
