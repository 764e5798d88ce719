package server

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/sandbox"
)

// withAll has a pod with a container in every state, and a pause.
func withAll(t *testing.T) *house {
	t.Helper()
	h, running := withContainer(t)
	for _, state := range []container.State{container.Creating, container.Created, container.Exited} {
		c := *running
		c.id, c.config = string(state), containerConfig(string(state))
		c.status.State = state
		h.containers.byID[c.id] = &c
	}
	pause := *running
	pause.id, pause.pause = "pause", true
	h.containers.byID["pause"] = &pause
	return h
}

func TestContainerStatsByState(t *testing.T) {
	h := withAll(t)
	for id, cgroup := range map[string]string{"c": "/p/crid-c", "created": "/p/crid-created", "exited": ""} {
		resp, err := h.runtime.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: id})
		if err != nil || resp.Stats.Attributes.Id != id || resp.Stats.Attributes.Metadata.GetName() != id || h.stats.containers[0].Cgroup != cgroup {
			t.Errorf("%s: %v, %v; measured in %q", id, resp, err, h.stats.containers[0].Cgroup)
		}
	}
	for _, id := range []string{"creating", "pause", "x"} {
		_, err := h.runtime.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: id})
		codeOf(t, err, codes.NotFound, id)
	}
}

func TestListContainerStatsFilters(t *testing.T) {
	h := withAll(t)
	labels := h.containers.byID["c"].config.Labels
	for _, c := range []struct {
		name   string
		filter *runtime.ContainerStatsFilter
		want   []string
	}{
		{"all that run", nil, []string{"c"}},
		{"by id", &runtime.ContainerStatsFilter{Id: "c"}, []string{"c"}},
		{"by another's id", &runtime.ContainerStatsFilter{Id: "created"}, nil},
		{"by pod", &runtime.ContainerStatsFilter{PodSandboxId: "p"}, []string{"c"}},
		{"by another pod", &runtime.ContainerStatsFilter{PodSandboxId: "q"}, nil},
		{"by its labels", &runtime.ContainerStatsFilter{LabelSelector: labels}, []string{"c"}},
		{"by other labels", &runtime.ContainerStatsFilter{LabelSelector: map[string]string{"no": "such"}}, nil},
	} {
		resp, err := h.runtime.ListContainerStats(t.Context(), &runtime.ListContainerStatsRequest{Filter: c.filter})
		var got []string
		for _, s := range resp.GetStats() {
			got = append(got, s.Attributes.Id)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, %v", c.name, got, err)
		}
	}
}

func TestPodStats(t *testing.T) {
	h := withAll(t)
	p := h.pods.byID["p"]
	p.status.CgroupParent, p.status.NetNS = "/p", "/run/netns/p"
	resp, err := h.runtime.PodSandboxStats(t.Context(), &runtime.PodSandboxStatsRequest{PodSandboxId: "p"})
	if err != nil || resp.Stats.Attributes.Id != "p" || resp.Stats.Attributes.Metadata == nil {
		t.Errorf("%v, %v", resp, err)
	}
	var measured []string
	for _, c := range h.stats.containers {
		if c.Hidden != (c.Attributes.Id == "pause") {
			t.Errorf("%s: hidden is %v", c.Attributes.Id, c.Hidden)
		}
		measured = append(measured, c.Attributes.Id)
	}
	if slices.Sort(measured); !slices.Equal(measured, []string{"c", "pause"}) || h.stats.pods[0].NetNS != "/run/netns/p" {
		t.Errorf("measured %q of %+v", measured, h.stats.pods[0])
	}
	if h.stats.pods[0].Cgroup != "" {
		t.Error("the default cgroup parent is taken for the pod's own")
	}
	p.config.Linux = &runtime.LinuxPodSandboxConfig{CgroupParent: "/p"}
	list := func(f *runtime.PodSandboxStatsFilter) int {
		t.Helper()
		resp, err := h.runtime.ListPodSandboxStats(t.Context(), &runtime.ListPodSandboxStatsRequest{Filter: f})
		if err != nil {
			t.Error(err)
		}
		return len(resp.GetStats())
	}
	if n := list(nil); n != 1 || h.stats.pods[0].Cgroup != "/p" {
		t.Errorf("%d pods, measured %+v", n, h.stats.pods)
	}
	if list(&runtime.PodSandboxStatsFilter{Id: "x"}) != 0 || list(&runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"no": "such"}}) != 0 {
		t.Error("a filter did not count")
	}
	p.status.State = sandbox.NotReady
	if n := list(nil); n != 0 {
		t.Errorf("%d pods that are not ready", n)
	}
	_, err = h.runtime.PodSandboxStats(t.Context(), &runtime.PodSandboxStatsRequest{PodSandboxId: "x"})
	codeOf(t, err, codes.NotFound, "pod x")
}
