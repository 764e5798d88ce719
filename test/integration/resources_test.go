package integration

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// limits are the files of a container's cgroups that updates change: on v1, and on v2.
var limits = [2][]string{
	{"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
	{"cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max"},
}

// inForce is what the kernel has, in the order of limits.
func inForce(ctr *harness.Container) []string {
	files := limits[0]
	if harness.Unified() {
		files = limits[1]
	}
	var values []string
	for _, file := range files {
		values = append(values, ctr.Group(file))
	}
	return values
}

// onThisHost turns what v1 is to have in force into what v2 is to have, where that is what there is.
func onThisHost(t *testing.T, v1 []string) []string {
	t.Helper()
	if !harness.Unified() {
		return v1
	}
	number := func(i int) int {
		n, err := strconv.Atoi(v1[i])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	quota := v1[2]
	if quota == "-1" {
		quota = "max"
	}
	weight := 1 + (number(0)-2)*9999/262142 // how runtimes map the one range to the other
	return []string{strconv.Itoa(weight), quota + " " + v1[1], v1[3], v1[4], strconv.Itoa(number(5) - number(4))}
}

func update(c *harness.Crid, ctr *harness.Container, change *runtime.LinuxContainerResources) error {
	return c.Runtime.UpdateContainerResources(c.Context(), ctr.ID, &runtime.ContainerResources{Linux: change})
}

func TestUpdateResources(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Create("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0"}
		})
		wantInForce := func(want ...string) {
			t.Helper()
			if got, want := inForce(ctr), onThisHost(t, want); !slices.Equal(got, want) {
				t.Errorf("in force: %v\nwant:     %v", got, want)
			}
		}
		wantInForce("512", "100000", "50000", "0", "67108864", "67108864")
		for i, step := range []struct {
			change *runtime.LinuxContainerResources
			want   []string
		}{
			{&runtime.LinuxContainerResources{CpuQuota: -1}, []string{"512", "100000", "-1", "0", "67108864", "67108864"}},
			{&runtime.LinuxContainerResources{CpusetCpus: "0-1", CpusetMems: "0"}, []string{"512", "100000", "-1", "0-1", "67108864", "67108864"}},
			{&runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, []string{"512", "100000", "-1", "0-1", "134217728", "134217728"}},
			{&runtime.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 48 << 20}, []string{"512", "100000", "-1", "0-1", "33554432", "50331648"}},
			{&runtime.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000, CpuShares: 2, HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}}},
				[]string{"2", "50000", "20000", "0-1", "33554432", "50331648"}},
		} {
			if i == 2 {
				ctr.Start()
			}
			if err := update(c, ctr, step.change); err != nil {
				t.Errorf("%v: %v", step.change, err)
			}
			wantInForce(step.want...)
		}
		before := []string{"2", "50000", "20000", "0-1", "33554432", "50331648"}
		for _, bad := range []struct {
			change *runtime.LinuxContainerResources
			code   codes.Code
			words  string
		}{
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpusetCpus: "4000"}, codes.InvalidArgument, "linux.cpuset_cpus"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpusetMems: "0-"}, codes.InvalidArgument, "linux.cpuset_mems"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 40 << 20, CpuQuota: 3}, codes.InvalidArgument, "linux.cpu_quota"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 5}, codes.InvalidArgument, "linux.cpu_period"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpuQuota: 1 << 62}, codes.InvalidArgument, "linux.cpu_quota"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 49 << 20}, codes.InvalidArgument, "linux.memory_swap_limit_in_bytes"}, // above memory and swap
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 4096}, codes.FailedPrecondition, "memory limit"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, Unified: map[string]string{"memory.nonesuch": "max"}}, codes.InvalidArgument, "linux.unified"},
		} {
			if err := update(c, ctr, bad.change); status.Code(err) != bad.code || !strings.Contains(err.Error(), bad.words) {
				t.Errorf("%v: %v, want %s and %s", bad.change, err, bad.code, bad.words)
			}
			wantInForce(before...)
		}
		if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("status %v", s)
		}
		c.Crash()
		r := ctr.Status().GetResources().GetLinux()
		if r.GetCpuQuota() != 20000 || r.GetCpuPeriod() != 50000 || r.GetCpuShares() != 2 || r.GetMemoryLimitInBytes() != 32<<20 || r.GetMemorySwapLimitInBytes() != 48<<20 ||
			r.GetCpusetCpus() != "0-1" || r.GetCpusetMems() != "0" {
			t.Errorf("told after a restart: %v", r)
		}
		if err := update(c, ctr, &runtime.LinuxContainerResources{CpusetCpus: "1"}); err != nil {
			t.Error(err)
		}
		wantInForce("2", "50000", "20000", "1", "33554432", "50331648")
		ctr.Stop(0)
		if err := update(c, ctr, &runtime.LinuxContainerResources{CpuShares: 5}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("of a stopped container: %v", err)
		}
	})
}

// As the kubelet resizes a pod: the pod first, then each container, and the pod again.
func TestResizeAPod(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	resources := &runtime.LinuxContainerResources{CpuShares: 200, MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 80 << 20}
	for range 2 {
		_, err := c.Runtime.UpdatePodSandboxResources(c.Context(), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: pod.ID, Overhead: &runtime.LinuxContainerResources{}, Resources: resources})
		if err != nil {
			t.Error(err)
		}
		if err := update(c, ctr, resources); err != nil {
			t.Error(err)
		}
	}
	if r := ctr.Status().GetResources().GetLinux(); r.GetCpuShares() != 200 || r.GetMemoryLimitInBytes() != 80<<20 {
		t.Errorf("told: %v", r)
	}
}

// The runtime of one handler hangs in its `update`: its container is told so in time and can be stopped, and
// nobody else notices.
func TestAHangingUpdate(t *testing.T) {
	script := filepath.Join(t.TempDir(), "hanging")
	hang := "#!/bin/sh\ncase \"$*\" in *' update '*) exec sleep 1000;; esac\nexec crun \"$@\"\n"
	if err := os.WriteFile(script, []byte(hang), 0o755); err != nil {
		t.Fatal(err)
	}
	c := harness.Start(t, harness.Config("[runtimes.hanging]\npath = \""+script+"\""))
	config := c.PodConfig()
	id, err := c.Runtime.RunPodSandbox(c.Context(), config, "hanging")
	if err != nil {
		t.Fatal(err)
	}
	pod, other := c.Pod(id, config), c.RunPod().Run("sleep 1000")
	ctr := pod.Run("sleep 1000")
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	err = c.Runtime.UpdateContainerResources(ctx, ctr.ID, &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{CpuShares: 99}})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the update: %v", err)
	}
	if err := update(c, other, &runtime.LinuxContainerResources{CpuShares: 99}); err != nil {
		t.Errorf("that of another container: %v", err)
	}
	if r := ctr.Status().GetResources().GetLinux(); r.GetCpuShares() == 99 {
		t.Errorf("told: %v", r)
	}
	ctr.Stop(0)
	ctr.Remove()
}
