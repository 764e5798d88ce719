package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// needUnified skips t on a host with cgroup v1.
func needUnified(t *testing.T) {
	t.Helper()
	if !harness.Unified() {
		t.Skip("this host has no cgroup v2 alone")
	}
}

// What only v2 has arrives at the start and by an update, beside the CRI's own fields.
func TestUnifiedResources(t *testing.T) {
	needUnified(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{
				MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
				Unified: map[string]string{"memory.high": "41943040", "memory.oom.group": "1", "memory.min": "4194304", "pids.max": "77"},
			}
		})
		want := func(files map[string]string) {
			t.Helper()
			for file, value := range files {
				if got := ctr.Group(file); got != value {
					t.Errorf("%s holds %q, want %q", file, got, value)
				}
			}
		}
		want(map[string]string{"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "41943040", "memory.oom.group": "1", "memory.min": "4194304", "pids.max": "77"})
		if err := update(c, ctr, &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max", "memory.swap.max": "1048576"}}); err != nil {
			t.Error(err)
		}
		want(map[string]string{"memory.max": "67108864", "memory.swap.max": "1048576", "memory.high": "max", "memory.oom.group": "1", "memory.min": "4194304", "pids.max": "77"})
		c.Crash()
		if err := update(c, ctr, &runtime.LinuxContainerResources{CpuShares: 1024}); err != nil {
			t.Error(err)
		}
		want(map[string]string{"cpu.weight": "39", "memory.max": "67108864", "memory.swap.max": "1048576", "memory.high": "max", "memory.min": "4194304", "pids.max": "77"})
	})
}

// A container whose swap limit is not given must not swap.
func TestNoSwapUnlessGiven(t *testing.T) {
	needUnified(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		})
		if got := ctr.Group("memory.swap.max"); got != "0" {
			t.Errorf("memory.swap.max holds %q", got)
		}
	})
}

// A limit of huge pages binds: the kernel gives one page and not two.
func TestHugePages(t *testing.T) {
	needUnified(t)
	const pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	before, err := os.ReadFile(pool)
	if err != nil {
		t.Skip("this host has no huge pages of 2 MiB: ", err)
	}
	put(t, pool, "8", 0o644)
	t.Cleanup(func() { put(t, pool, string(before), 0o644) })
	pages := t.TempDir()
	if err := unix.Mount("none", pages, "hugetlbfs", 0, "pagesize=2M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pages, 0); err != nil {
			t.Error(err)
		}
	})
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}}
			cfg.Mounts = []*runtime.Mount{{HostPath: pages, ContainerPath: "/pages"}}
		})
		want := func(limit string) {
			t.Helper()
			if got := ctr.Group("hugetlb.2MB.max"); got != limit {
				t.Errorf("hugetlb.2MB.max holds %q, want %s", got, limit)
			}
			// crun leaves alone what is promised, runc does not.
			if got := ctr.Group("hugetlb.2MB.rsvd.max"); got != limit && got != "max" {
				t.Errorf("hugetlb.2MB.rsvd.max holds %q, want %s", got, limit)
			}
		}
		want("2097152")
		if got := ctr.Exec("fallocate -l 2097152 /pages/one && echo one; fallocate -l 2097152 /pages/two && echo two; rm -f /pages/*"); got != "one\n" {
			t.Errorf("with a limit of one page: %q", got)
		}
		if err := update(c, ctr, &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}); err != nil {
			t.Error(err)
		}
		want("4194304")
		if got := ctr.Exec("fallocate -l 2097152 /pages/one && echo one; fallocate -l 2097152 /pages/two && echo two; rm -f /pages/*"); got != "one\ntwo\n" {
			t.Errorf("with a limit of two pages: %q", got)
		}
	})
}

// Stats tell how long a container waited for CPU, memory and IO where the kernel measures it.
func TestPressure(t *testing.T) {
	needUnified(t)
	if _, err := os.ReadFile("/proc/pressure/cpu"); err != nil {
		t.Skip("this host does not measure pressure: ", err)
	}
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("while :; do :; done & while :; do :; done", func(cfg *runtime.ContainerConfig) {
		cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 100000}
	})
	eventually(t, "the container waits for the CPU", func() bool {
		s, err := c.Runtime.ContainerStats(c.Context(), ctr.ID)
		return err == nil && s.Cpu.GetPsi().GetSome().GetTotal() > 0 && s.Memory.GetPsi().GetFull() != nil && s.Io.GetPsi().GetFull() != nil
	})
	s, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
	if err != nil || s.Linux.Cpu.GetPsi().GetSome().GetTotal() == 0 || s.Linux.Memory.GetPsi() == nil {
		t.Errorf("the pod: %v, %v", s, err)
	}
}

// A container that manages cgroups of its own, as systemd in a container does: its own is no leaf any more, and its
// processes are below. crid still counts, kills, executes, resizes, and finds them after a restart; one of the cgroups is
// frozen.
func TestNestedCgroups(t *testing.T) {
	needUnified(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := privilegedPod(c)
		// A privileged container has the host's cgroup namespace.
		ctr := pod.Run(`cd /sys/fs/cgroup$(sed s/0::// /proc/self/cgroup); mkdir init frozen
			echo 1 >init/cgroup.procs
			sleep 1001 & echo $! >frozen/cgroup.procs
			echo '+memory +pids' >cgroup.subtree_control || exit 9
			echo 1 >frozen/cgroup.freeze
			echo ready; sleep 1000`, privileged)
		// Its log tells: the process of an exec would keep the cgroup from handing controllers down.
		eventually(t, "the cgroups to be made", func() bool { return strings.Contains(ctr.Log(), " ready\n") })
		if got := ctr.Exec("cat /proc/self/cgroup"); !strings.Contains(got, "/crid-"+ctr.ID) {
			t.Errorf("a command is in %q", got)
		}
		stats, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
		if err != nil || stats.Linux.Process.ProcessCount.Value != 2 { // sh has become a sleep at its end
			t.Errorf("%v, %v", stats.GetLinux().GetProcess(), err)
		}
		if err := update(c, ctr, &runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 100}); err != nil {
			t.Error(err)
		}
		if got := ctr.Group("memory.max"); got != "134217728" {
			t.Errorf("memory.max holds %q", got)
		}
		c.Crash()
		ctr.Exec("true")
		ctr.Stop(0)
		if _, err := os.Stat(filepath.Dir(ctr.GroupFile("cgroup.procs"))); err == nil {
			ctr.Remove()
		}
		if _, err := os.Stat(filepath.Dir(ctr.GroupFile("cgroup.procs"))); err == nil {
			t.Error("its cgroup is left")
		}
	})
}

// A container that somebody has frozen, as `runc pause` does, is stopped like any other.
func TestAFrozenContainerIsStopped(t *testing.T) {
	needUnified(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000 & sleep 1000")
		put(t, ctr.GroupFile("cgroup.freeze"), "1", 0o644)
		ctr.Stop(1)
		if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
			t.Errorf("status %v", s)
		}
	})
}
