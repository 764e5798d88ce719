package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// kernel is what the cgroup at path has used, as the kernel says.
type kernel struct{ cpu, memory, inactive, rss, faults uint64 }

func asked(t *testing.T, path string) kernel {
	t.Helper()
	of := func(file, key string) uint64 { return harness.Figure(t, harness.GroupOf(path, file), key) }
	if harness.Unified() {
		return kernel{of("cpu.stat", "usage_usec") * 1000, of("memory.current", ""), of("memory.stat", "inactive_file"),
			of("memory.stat", "anon"), of("memory.stat", "pgfault")}
	}
	return kernel{of("cpuacct.usage", ""), of("memory.usage_in_bytes", ""), of("memory.stat", "total_inactive_file"),
		of("memory.stat", "total_rss"), of("memory.stat", "total_pgfault")}
}

// close5 wants two figures, read one after the other, to be equal within 5 %.
func close5(t *testing.T, name string, got *runtime.UInt64Value, want uint64) {
	t.Helper()
	if got == nil || got.Value*20 < want*19 || got.Value*20 > want*21 {
		t.Errorf("%s: told %v, the kernel says %d", name, got, want)
	}
}

func TestStatsAreThoseOfTheKernel(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; touch /done; sleep 1000",
			func(cfg *runtime.ContainerConfig) {
				cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
			})
		eventually(t, "the work is done", func() bool { return ctr.Exec("ls /done 2>/dev/null || true") != "" })
		stats, err := c.Runtime.ContainerStats(c.Context(), ctr.ID)
		if err != nil {
			t.Fatal(err)
		}
		k := asked(t, c.Cgroup+"/crid-"+ctr.ID)
		working := k.memory - k.inactive
		close5(t, "cpu", stats.Cpu.UsageCoreNanoSeconds, k.cpu)
		close5(t, "memory", stats.Memory.UsageBytes, k.memory)
		close5(t, "working set", stats.Memory.WorkingSetBytes, working)
		close5(t, "available", stats.Memory.AvailableBytes, 64<<20-working)
		close5(t, "rss", stats.Memory.RssBytes, k.rss)
		close5(t, "faults", stats.Memory.PageFaults, k.faults)
		if stats.Attributes.Metadata.Name != ctr.Config.Metadata.Name || stats.Swap.SwapUsageBytes == nil || stats.Cpu.Timestamp < time.Now().Add(-time.Minute).UnixNano() {
			t.Errorf("stats %v", stats)
		}
		if w := stats.WritableLayer; w.GetUsedBytes().GetValue() < 8<<20 || w.GetUsedBytes().GetValue() > 9<<20 || w.GetInodesUsed().GetValue() == 0 {
			t.Errorf("written: %v; want 8 MiB and a little", w)
		}
		ctr.Stop(0)
		if after, err := c.Runtime.ContainerStats(c.Context(), ctr.ID); err != nil || after.Cpu != nil || after.WritableLayer == nil {
			t.Errorf("once it has ended: %v, %v", after, err)
		}
		if _, err := c.Runtime.ContainerStats(c.Context(), "nonesuch"); status.Code(err) != codes.NotFound {
			t.Errorf("of nobody: %v", err)
		}
	})
}

func TestPodStats(t *testing.T) {
	c := harness.Start(t)
	pod, other := c.RunPod(), c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	a, b := pod.Run("sleep 1000 & sleep 1000 & wait"), pod.Run("sleep 1000")
	pod.Create("sleep 1")
	before, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	a.Exec("ping -c 5 -i 0.1 -s 1000 " + gateway(t, a))
	after, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	if eth := after.Linux.Network.DefaultInterface; eth.Name != "eth0" || len(after.Linux.Network.Interfaces) != 0 ||
		eth.TxBytes.Value < before.Linux.Network.DefaultInterface.TxBytes.Value+5000 || eth.RxBytes.Value < 5000 {
		t.Errorf("network: %v", after.Linux.Network)
	}
	var ids []string
	for _, s := range after.Linux.Containers {
		ids = append(ids, s.Attributes.Id)
	}
	if len(ids) != 2 || !slices.Contains(ids, a.ID) || !slices.Contains(ids, b.ID) || after.Linux.Process.ProcessCount.Value != 4 { // sh, 2 sleep, sleep
		t.Errorf("containers %q, %v", ids, after.Linux.Process)
	}
	k := asked(t, c.Cgroup)
	close5(t, "cpu", after.Linux.Cpu.UsageCoreNanoSeconds, k.cpu)
	close5(t, "memory", after.Linux.Memory.UsageBytes, k.memory)
	all, err := c.Runtime.ListPodSandboxStats(c.Context(), &runtime.PodSandboxStatsFilter{})
	if err != nil || len(all) != 2 {
		t.Errorf("list: %d, %v", len(all), err)
	}
	host, err := c.Runtime.PodSandboxStats(c.Context(), other.ID)
	if err != nil || host.Linux.Network != nil || len(host.Linux.Containers) > 0 {
		t.Errorf("on the host's network: %v, %v", host, err)
	}
	pod.Stop()
	stopped, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
	if err != nil || stopped.Attributes.Id != pod.ID || stopped.Linux.Network != nil {
		t.Errorf("a stopped pod: %v, %v", stopped, err)
	}
}

// gateway is where the container's packets go.
func gateway(t *testing.T, ctr *harness.Container) string {
	t.Helper()
	fields := strings.Fields(ctr.Exec("ip route | grep default"))
	if len(fields) < 3 {
		t.Fatalf("route %q", fields)
	}
	return fields[2]
}

// As the kubelet asks, every ten seconds and more often while it evicts.
func TestStatsOfManyAreQuick(t *testing.T) {
	c := harness.Start(t, harness.Quiet())
	for range 20 {
		pod := c.RunPod()
		for range 3 {
			pod.Run("sleep 1000")
		}
	}
	median := func(ask func() int) time.Duration {
		var took []time.Duration
		for range 21 {
			began := time.Now()
			if n := ask(); n == 0 {
				t.Fatal("nothing was told")
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	containers := median(func() int {
		all, err := c.Runtime.ListContainerStats(c.Context(), &runtime.ContainerStatsFilter{})
		if err != nil || len(all) != 60 {
			t.Fatalf("%d containers, %v", len(all), err)
		}
		return len(all)
	})
	pods := median(func() int {
		all, err := c.Runtime.ListPodSandboxStats(c.Context(), &runtime.PodSandboxStatsFilter{})
		if err != nil || len(all) != 20 {
			t.Fatalf("%d pods, %v", len(all), err)
		}
		return len(all)
	})
	t.Logf("60 containers: %v; their 20 pods: %v", containers, pods)
	if containers > 100*time.Millisecond || pods > 200*time.Millisecond { // ten times what it takes on a quiet machine
		t.Errorf("60 containers take %v, their pods %v", containers, pods)
	}
}
