package integration

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"github.com/crid/crid/test/harness"
)

// scrape is what one call of ListPodSandboxMetrics tells, by series: the name and the labels as the descriptors name them.
type scrape map[string]*runtime.Metric

// scraped reads all metrics as the kubelet does, and fails the test where the kubelet would lose some.
func scraped(t *testing.T, c *harness.Crid) scrape {
	t.Helper()
	descriptors, err := c.Runtime.ListMetricDescriptors(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range descriptors {
		keys[d.Name] = d.LabelKeys
	}
	pods, err := c.Runtime.ListPodSandboxMetrics(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := scrape{}
	for _, pod := range pods {
		series := pod.Metrics
		for _, ctr := range pod.ContainerMetrics {
			series = slices.Concat(series, ctr.Metrics)
		}
		for _, m := range series {
			if len(m.LabelValues) != len(keys[m.Name]) || len(m.LabelValues) == 0 || m.Value == nil {
				t.Fatalf("%v: the labels are %q", m, keys[m.Name])
			}
			name := m.Name + " " + strings.Join(m.LabelValues[1:], ",") // without id, which is known by name
			if all[name] != nil {
				t.Errorf("%s is told twice", name)
			}
			all[name] = m
		}
	}
	return all
}

// of is the value of a series of a container or pod, whose own labels come last.
func (s scrape) of(t *testing.T, metric, id string, labels ...string) *runtime.UInt64Value {
	t.Helper()
	for name, m := range s {
		rest, found := strings.CutPrefix(name, "container_"+metric+" "+id+",")
		if found && strings.HasSuffix(","+rest, strings.Join(append([]string{""}, labels...), ",")) {
			return m.Value
		}
	}
	t.Errorf("there is no %s %q of %s", metric, labels, id)
	return nil
}

// byHost are the names that need what this host need not have: counting devices, huge pages, pressure.
var byHost = []string{"container_blkio_device_usage_total", "container_fs_reads_bytes_total", "container_fs_reads_total",
	"container_fs_writes_bytes_total", "container_fs_writes_total", "container_hugetlb_max_usage_bytes", "container_hugetlb_usage_bytes",
	"container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total", "container_pressure_io_stalled_seconds_total",
	"container_pressure_io_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total", "container_pressure_memory_waiting_seconds_total"}

func TestMetricsAreThoseOfTheKernel(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("nc -l -p 7000 & nc -l -p 7001 & dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; "+
			"i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; touch /done; sleep 1000 & wait", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 30000, MemoryLimitInBytes: 64 << 20}
		})
		eventually(t, "the work is done", func() bool { return ctr.Exec("ls /done 2>/dev/null || true") != "" })
		ctr.Exec("ping -c 2 -i 0.1 -s 1000 " + gateway(t, ctr))
		all := scraped(t, c)
		kernel := func(file, key string) uint64 { return harness.Figure(t, ctr.GroupFile(file), key) }
		for metric, want := range map[string]uint64{
			"spec_cpu_shares": 512, "spec_cpu_period": 100000, "spec_cpu_quota": 30000, "spec_memory_limit_bytes": 64 << 20,
			"cpu_user_seconds_total":          kernel("cpuacct.stat", "user") / 100,
			"cpu_cfs_periods_total":           kernel("cpu.stat", "nr_periods"),
			"cpu_cfs_throttled_periods_total": kernel("cpu.stat", "nr_throttled"),
			"cpu_cfs_throttled_seconds_total": kernel("cpu.stat", "throttled_time") / 1e9,
			"memory_usage_bytes":              kernel("memory.usage_in_bytes", ""),
			"memory_max_usage_bytes":          kernel("memory.max_usage_in_bytes", ""),
			"memory_cache":                    kernel("memory.stat", "total_cache"),
			"memory_rss":                      kernel("memory.stat", "total_rss"),
			"memory_failcnt":                  kernel("memory.failcnt", ""),
			"memory_kernel_usage":             kernel("memory.kmem.usage_in_bytes", ""),
			"memory_mapped_file":              kernel("memory.stat", "total_mapped_file"),
			"memory_swap":                     kernel("memory.stat", "total_swap"),
			"memory_working_set_bytes":        kernel("memory.usage_in_bytes", "") - kernel("memory.stat", "total_inactive_file"),
			"oom_events_total":                0, "processes": 4, "threads": 4, // sh, 2 nc, sleep
			"spec_memory_reservation_limit_bytes": 0, "spec_memory_swap_limit_bytes": kernel("memory.memsw.limit_in_bytes", ""),
		} {
			close5(t, metric, all.of(t, metric, ctr.ID), want)
		}
		close5(t, "cpu", all.of(t, "cpu_usage_seconds_total", ctr.ID, "total"), kernel("cpuacct.usage", "")/1e9)
		close5(t, "faults", all.of(t, "memory_failures_total", ctr.ID, "pgfault", "hierarchy"), kernel("memory.stat", "total_pgfault"))
		close5(t, "start", all.of(t, "start_time_seconds", ctr.ID), uint64(ctr.Status().StartedAt/1e9))
		if n := all.of(t, "ulimits_soft", ctr.ID, "max_open_files").GetValue(); strconv.FormatUint(n, 10) != strings.TrimSpace(ctr.Exec("ulimit -n")) {
			t.Errorf("%d files may be open", n)
		}
		if n := all.of(t, "sockets", ctr.ID).GetValue(); n != 2 {
			t.Errorf("%d sockets", n)
		}
		if n := all.of(t, "file_descriptors", ctr.ID).GetValue(); n < 14 || n > 30 { // three each and the sockets; sh has one more
			t.Errorf("%d descriptors", n)
		}
		if n := all.of(t, "network_transmit_bytes_total", pod.ID, "eth0").GetValue(); n < 2000 || n > 100_000 {
			t.Errorf("%d bytes sent", n)
		}
		close5(t, "the pod's cpu", all.of(t, "cpu_usage_seconds_total", pod.ID, "total"), harness.Figure(t, harness.GroupOf(c.Cgroup, "cpuacct.usage"), "")/1e9)
		wantAllNames(t, c, all)
	})
}

// wantAllNames wants at least one series of every metric that is described.
func wantAllNames(t *testing.T, c *harness.Crid, all scrape) {
	t.Helper()
	descriptors, err := c.Runtime.ListMetricDescriptors(c.Context())
	if err != nil || len(descriptors) != 56 {
		t.Errorf("%d descriptors, %v", len(descriptors), err)
	}
	for _, d := range descriptors {
		told := slices.ContainsFunc(keysOf(all), func(name string) bool { return strings.HasPrefix(name, d.Name+" ") })
		if !told && !slices.Contains(byHost, d.Name) {
			t.Errorf("there is no %s", d.Name)
		}
	}
}

func keysOf(all scrape) []string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	return names
}

func TestKillsAreCounted(t *testing.T) {
	c := harness.Start(t)
	ctr := c.RunPod().Run("while ! ls /go 2>/dev/null; do sleep 0.1; done; tail /dev/zero; touch /done; sleep 1000", func(cfg *runtime.ContainerConfig) {
		cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}
	})
	if n := scraped(t, c).of(t, "oom_events_total", ctr.ID).GetValue(); n != 0 {
		t.Errorf("%d kills before any", n)
	}
	ctr.Exec("touch /go")
	eventually(t, "the kernel has killed", func() bool { return ctr.TryExec("ls /done") == nil })
	if n := scraped(t, c).of(t, "oom_events_total", ctr.ID).GetValue(); n != 1 {
		t.Errorf("%d kills", n)
	}
}

// What a pod has used does not become less, whatever becomes of its containers and of crid.
func TestFiguresOnlyGrow(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	var cpu, faults, received uint64
	look := func(when string) {
		t.Helper()
		s, err := c.Runtime.PodSandboxStats(c.Context(), pod.ID)
		if err != nil {
			t.Fatal(err)
		}
		linux := s.Linux
		now := [...]uint64{linux.Cpu.UsageCoreNanoSeconds.Value, linux.Memory.PageFaults.Value, linux.Network.DefaultInterface.RxBytes.Value}
		if now[0] < cpu || now[1] < faults || now[2] < received {
			t.Errorf("%s: %v, before %d, %d, %d", when, now, cpu, faults, received)
		}
		metric := scraped(t, c).of(t, "memory_failures_total", pod.ID, "pgfault", "hierarchy")
		if metric.GetValue() < now[1] {
			t.Errorf("%s: %d faults as a metric, %d in the figures before it", when, metric.GetValue(), now[1])
		}
		cpu, faults, received = now[0], now[1], now[2]
	}
	work := "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; touch /done; sleep 1000"
	first := pod.Run(work)
	eventually(t, "the work is done", func() bool { return first.TryExec("ls /done") == nil })
	first.Exec("ping -c 3 -i 0.1 " + gateway(t, first))
	look("with a container")
	if cpu < 1e7 || faults == 0 || received == 0 {
		t.Fatalf("%d ns of CPU time, %d faults, %d bytes", cpu, faults, received)
	}
	before, err := c.Runtime.ContainerStats(c.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.Restart()
	look("after a restart of crid")
	after, err := c.Runtime.ContainerStats(c.Context(), first.ID)
	if err != nil || after.Cpu.UsageCoreNanoSeconds.Value < before.Cpu.UsageCoreNanoSeconds.Value || after.Cpu.UsageNanoCores == nil {
		t.Errorf("the container: before %v, after %v, %v", before.Cpu, after.GetCpu(), err)
	}
	second := pod.Run("sleep 1000")
	look("with a second container")
	first.Stop(0)
	look("after the first was stopped")
	first.Remove()
	look("after it was removed")
	c.Crash()
	look("after a crash of crid")
	second.Stop(0)
	look("with nothing that runs")
}

// TestStreamsOfLists reads the lists as a kubelet with CRIListStreaming does. That goes back to whole lists for good when
// one stream is not there: the log tells.
func TestStreamsOfLists(t *testing.T) {
	c := harness.Start(t)
	note := strings.Repeat("x", 400<<10) // three do not fit into a message
	for range 5 {
		c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Annotations["big"] = note }).
			Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Annotations = map[string]string{"big": note} })
	}
	endpoint := "unix://" + c.Socket
	client, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(time.Minute).WithUseStreaming(true).Build(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	store, err := remote.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(time.Minute).WithUseStreaming(true).Build(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(client.Close(context.Background()), store.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	ctx := c.Context()
	pods, err := client.ListPodSandbox(ctx, nil)
	wantItems(t, "pods", len(pods), 5, err)
	containers, err := client.ListContainers(ctx, nil)
	wantItems(t, "containers", len(containers), 5, err)
	stats, err := client.ListContainerStats(ctx, nil)
	wantItems(t, "figures of containers", len(stats), 5, err)
	podStats, err := client.ListPodSandboxStats(ctx, nil)
	wantItems(t, "figures of pods", len(podStats), 5, err)
	metrics, err := client.ListPodSandboxMetrics(ctx)
	wantItems(t, "metrics of pods", len(metrics), 5, err)
	images, err := store.ListImages(ctx, nil)
	wantItems(t, "images", len(images), 1, err)
	if containers[0].Annotations["big"] != note {
		t.Error("an annotation is not what it was")
	}
	for _, call := range []string{"StreamPodSandboxes", "StreamContainers", "StreamContainerStats", "StreamPodSandboxStats", "StreamPodSandboxMetrics", "StreamImages"} {
		if !strings.Contains(c.Log(), "msg="+call+" ") {
			t.Errorf("%s was not called", call)
		}
	}
}

func wantItems(t *testing.T, what string, got, want int, err error) {
	t.Helper()
	if err != nil || got != want {
		t.Fatalf("%d %s, want %d, %v", got, what, want, err)
	}
}
