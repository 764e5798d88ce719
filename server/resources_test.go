package server

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResourcesReachTheContainer(t *testing.T) {
	h, c := withContainer(t)
	update := func(id string, r *runtime.LinuxContainerResources) error {
		_, err := h.runtime.UpdateContainerResources(t.Context(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
		return err
	}
	if err := update("c", &runtime.LinuxContainerResources{CpuShares: 7}); err != nil || !slices.Equal(c.did, []string{"update 7 shares"}) {
		t.Errorf("did %q, %v", c.did, err)
	}
	codeOf(t, update("x", nil), codes.NotFound, "container x")
	codeOf(t, update("c", &runtime.LinuxContainerResources{CpuPeriod: -1}), codes.InvalidArgument, "linux.cpu_period")
}

func TestResourcesOfAPodAreAccepted(t *testing.T) {
	h := withPod(t)
	update := func(id string, shares int64) error {
		_, err := h.runtime.UpdatePodSandboxResources(t.Context(), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: id, Resources: &runtime.LinuxContainerResources{CpuShares: shares}})
		return err
	}
	if err := update("p", 7); err != nil {
		t.Error(err)
	}
	codeOf(t, update("x", 7), codes.NotFound, "pod x")
	codeOf(t, update("p", -7), codes.InvalidArgument, "resources.cpu_shares")
}
