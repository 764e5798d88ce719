package integration

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// The path of a unix socket has 107 bytes at most; a monitor's directory has an id of 64 in it already.
func TestALongRunroot(t *testing.T) {
	long := "/run/" + strings.Repeat("x", 60) + "/" + strings.Repeat("y", 60)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		})
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })
		if err := c.Runtime.ReopenContainerLog(c.Context(), ctr.ID); err != nil {
			t.Error(err)
		}
		c.Crash()
		if got := ctr.Exec("echo here"); got != "here\n" {
			t.Errorf("after a restart: %q", got)
		}
	}, harness.Config("runroot = \""+long+"\""))
}

// Limits of huge pages, which the kubelet sets for every container, are left out on a host that cannot set them; what
// else this host does not have is refused.
func TestLimitsThatTheHostDoesNotHave(t *testing.T) {
	var pages []*runtime.HugepageLimit
	for size, dir := range map[string]string{"2MB": "hugepages-2048kB", "1GB": "hugepages-1048576kB"} {
		if _, err := os.Stat("/sys/kernel/mm/hugepages/" + dir); err == nil || !hasHugetlb(t) {
			pages = append(pages, &runtime.HugepageLimit{PageSize: size})
		}
	}
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{
				CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20,
				HugepageLimits: pages,
			}
		})
		got := ctr.Exec("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")
		if got != "67108864\n50000\n" && got != "67108864\n50000 100000\n" {
			t.Errorf("limits in force: %q", got)
		}
		if r := ctr.Status().Resources.GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 50000 {
			t.Errorf("limits as told: %v", r)
		}
		if got := len(ctr.Status().Resources.GetLinux().GetHugepageLimits()); got != 0 && !hasHugetlb(t) {
			t.Errorf("%d limits of huge pages are told of that there are not", got)
		}
		_, err := pod.TryCreate(pod.ContainerConfig("true", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{Unified: map[string]string{"nonesuch.max": "1"}}
		}))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `linux.resources.unified: "nonesuch.max"`) {
			t.Errorf("a file that no cgroup has: %v", err)
		}
	})
}

// hasHugetlb tells whether this host has the cgroup controller of huge pages.
func hasHugetlb(t *testing.T) bool {
	t.Helper()
	file := "/proc/self/cgroup"
	if harness.Unified() {
		file = "/sys/fs/cgroup/cgroup.controllers"
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(raw), "hugetlb")
}

// A volume of the whole host holds crid's own mounts, and must not keep them when others go.
func TestAVolumeOfTheHostsRootKeepsNothing(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		other := pod.Run("sleep 1000")
		for _, m := range []*runtime.Mount{
			{},
			{Readonly: true, RecursiveReadOnly: true},
			{Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		} {
			pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
				m.HostPath, m.ContainerPath = "/", "/host"
				cfg.Mounts = []*runtime.Mount{m}
			})
		}
		other.Remove()
		files, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			raw, err := os.ReadFile("/proc/" + f.Name() + "/mountinfo")
			if err == nil && strings.Contains(string(raw), other.ID) {
				t.Errorf("process %s still has the removed container's root filesystem mounted", f.Name())
			}
		}
	})
}
