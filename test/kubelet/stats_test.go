package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/crid/crid/test/harness"
)

// TestFigures has the kubelet take all figures and events from crid, with those features of its that change what it asks
// of a runtime.
func TestFigures(t *testing.T) {
	k := start(t, harness.Start(t, harness.Quiet()), gates("PodAndContainerStatsFromCRI", "EventedPLEG", "CRIListStreaming", "ContainerStopSignals"))
	t.Run("stop signal", func(t *testing.T) { stopSignal(t, k) })
	t.Run("events", func(t *testing.T) { exitsByEvent(t, k) })
	pod := k.figures(t)
	t.Run("summary", func(t *testing.T) { k.summary(t, pod) })
	t.Run("metrics", func(t *testing.T) { k.metrics(t, pod) })
	t.Run("no complaints", func(t *testing.T) { k.fellBack(t) })
}

// stopSignal ends a container by a signal that its pod names.
func stopSignal(t *testing.T, k *kubelet) {
	dir := t.TempDir()
	signal := v1.SIGUSR1
	pod := newPod("signal", shell("main", "trap 'echo USR1 > /host/got; exit 0' USR1; echo up; while :; do sleep 1 & wait $!; done", mounts("host", "/host"),
		func(c *v1.Container) { c.Lifecycle = &v1.Lifecycle{StopSignal: &signal} }))
	grace := int64(60)
	pod.Spec.OS, pod.Spec.TerminationGracePeriodSeconds = &v1.PodOS{Name: v1.Linux}, &grace
	pod.Spec.Volumes = []v1.Volume{hostPath("host", dir)}
	if s := status(t, k.ready(t, pod), "main"); s.StopSignal == nil || *s.StopSignal != signal {
		t.Errorf("stop signal %v", s.StopSignal)
	}
	k.says(t, "signal", "main", "up")
	k.remove(t, "signal")
	reads(t, filepath.Join(dir, "got"), "USR1\n")
}

// exitsByEvent expects the kubelet to restart a container sooner than its next look at all pods would let it: with events
// it looks every five minutes.
func exitsByEvent(t *testing.T, k *kubelet) {
	dir := t.TempDir()
	pod := newPod("event", shell("main", "echo up; until [ -e /host/end ]; do sleep 0.1; done; rm /host/end; exit 4", mounts("host", "/host")))
	pod.Spec.Volumes = []v1.Volume{hostPath("host", dir)}
	k.ready(t, pod)
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k.is(t, "event", "restarted", func(pod *v1.Pod) error {
		if s := pod.Status.ContainerStatuses[0]; s.RestartCount != 1 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 4 {
			return errors.New("not restarted")
		}
		return isReady(pod)
	})
	k.remove(t, "event")
}

// figures runs a pod that has used everything there is to measure, and now rests.
func (k *kubelet) figures(t *testing.T) *v1.Pod {
	t.Helper()
	burn := "t=$(($(date +%s)+12)); while [ $(date +%s) -lt $t ]; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; done"
	pod := newPod("figures",
		shell("main", "dd if=/dev/zero of=/memory/f bs=1M count=48; dd if=/dev/zero of=/written bs=1M count=16; "+burn+"; wget -qO /dev/null http://$IP; "+forever,
			mounts("memory", "/memory"), func(c *v1.Container) {
				c.Env = []v1.EnvVar{{Name: "IP", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}}}}
			}), web("side"))
	pod.Spec.Volumes = []v1.Volume{volume("memory", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}})}
	found := k.ready(t, pod)
	k.fetch(t, "http://"+found.Status.PodIP)
	k.says(t, "figures", "main", "up")
	return found
}

// inCgroup is the cgroup that a container's process is in: the same path in the hierarchies of v1 that matter here.
var inCgroup = regexp.MustCompile(`(?m)^(?:\d+:(?:[^:]*,)?memory(?:,[^:]*)?|0:):(/.+)$`)

func (k *kubelet) cgroup(t *testing.T, pod *v1.Pod, container string) string {
	t.Helper()
	id := strings.TrimPrefix(status(t, pod, container).ContainerID, "crid://")
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", k.ProcessOf(id)))
	if err != nil {
		t.Fatal(err)
	}
	m := inCgroup.FindSubmatch(raw)
	if m == nil {
		t.Fatalf("no cgroup of memory in %s", raw)
	}
	return string(m[1])
}

// kernel is what the kernel says of a container or of its pod.
type kernel struct{ cpuSeconds, workingSet float64 }

// asked reads what the kernel says of the cgroup at path.
func asked(t *testing.T, path string) kernel {
	t.Helper()
	of := func(file, key string) float64 { return float64(harness.Figure(t, harness.GroupOf(path, file), key)) }
	if harness.Unified() {
		return kernel{of("cpu.stat", "usage_usec") / 1e6, of("memory.current", "") - of("memory.stat", "inactive_file")}
	}
	return kernel{of("cpuacct.usage", "") / 1e9, of("memory.usage_in_bytes", "") - of("memory.stat", "total_inactive_file")}
}

// near wants a figure within 5 % of the kernel's, or within slack, whichever is more.
func near(what string, got, want, slack float64) error {
	if math.Abs(got-want) > max(slack, want/20) {
		return fmt.Errorf("%s is %v; the kernel says %v", what, got, want)
	}
	return nil
}

// both are the kernel's figures of the container main and of its pod.
func (k *kubelet) both(t *testing.T, pod *v1.Pod) (container, whole kernel) {
	t.Helper()
	path := k.cgroup(t, pod, "main")
	return asked(t, path), asked(t, filepath.Dir(path))
}

// usage is the part of /stats/summary that pods and containers have in common.
type usage struct {
	Name string
	CPU  struct {
		Time                                 time.Time
		UsageCoreNanoSeconds, UsageNanoCores *float64
	}
	Memory struct {
		Time                                                                               time.Time
		WorkingSetBytes, UsageBytes, RSSBytes, AvailableBytes, PageFaults, MajorPageFaults *float64
	}
	RootFS *struct{ UsedBytes, InodesUsed, CapacityBytes *float64 }
	Logs   *struct{ UsedBytes *float64 }
}

// podUsage is a pod in /stats/summary.
type podUsage struct {
	usage
	PodRef     struct{ Name string }
	Containers []usage
	Network    struct {
		Name             string
		RxBytes, TxBytes *float64
	}
	ProcessStats *struct {
		ProcessCount *float64 `json:"process_count"`
	} `json:"process_stats"`
	EphemeralStorage *struct{ UsedBytes *float64 } `json:"ephemeral-storage"`
}

// summary compares /stats/summary with the kernel.
func (k *kubelet) summary(t *testing.T, pod *v1.Pod) {
	k.wait(t, "a summary that is complete and right", func() error {
		raw, err := k.get(t.Context(), "/stats/summary")
		if err != nil {
			return err
		}
		var all struct{ Pods []podUsage }
		if err := json.Unmarshal(raw, &all); err != nil {
			return err
		}
		for _, p := range all.Pods {
			if p.PodRef.Name == pod.Name {
				if err := k.compare(t, pod, p); err != nil {
					return fmt.Errorf("%w: %s", err, raw)
				}
				return nil
			}
		}
		return fmt.Errorf("no figures of the pod: %s", raw)
	})
}

// compare looks for what is missing or wrong in the figures of a pod.
func (k *kubelet) compare(t *testing.T, pod *v1.Pod, p podUsage) error {
	container, whole := k.both(t, pod)
	if len(p.Containers) != 2 || p.Network.Name != "eth0" || p.Network.RxBytes == nil || *p.Network.RxBytes == 0 || p.Network.TxBytes == nil {
		return errors.New("containers or network are missing")
	}
	if p.ProcessStats == nil || p.ProcessStats.ProcessCount == nil || *p.ProcessStats.ProcessCount < 2 || p.EphemeralStorage == nil {
		return errors.New("processes or storage are missing")
	}
	const written, cpuSlack, memorySlack = 16 << 20, 0.2, 2 << 20
	err := p.usage.near(whole, cpuSlack, memorySlack)
	for _, c := range p.Containers {
		if c.RootFS == nil || c.RootFS.UsedBytes == nil || c.RootFS.InodesUsed == nil || c.Logs == nil || c.Logs.UsedBytes == nil {
			return fmt.Errorf("disk of %s is missing", c.Name)
		}
		if c.Name == "main" {
			err = errors.Join(err, c.near(container, cpuSlack, memorySlack), near("what was written", *c.RootFS.UsedBytes, written, 64<<10))
		}
	}
	return err
}

func (u usage) near(want kernel, cpuSlack, memorySlack float64) error {
	m := u.Memory
	for _, n := range []*float64{u.CPU.UsageCoreNanoSeconds, u.CPU.UsageNanoCores, m.WorkingSetBytes, m.UsageBytes, m.RSSBytes, m.PageFaults, m.MajorPageFaults} {
		if n == nil {
			return fmt.Errorf("figures of %q are missing", u.Name)
		}
	}
	if u.CPU.Time.IsZero() || m.Time.IsZero() {
		return fmt.Errorf("figures of %q bear no time", u.Name)
	}
	return errors.Join(near("cpu", *u.CPU.UsageCoreNanoSeconds/1e9, want.cpuSeconds, cpuSlack), near("memory", *m.WorkingSetBytes, want.workingSet, memorySlack))
}

// metrics compares /metrics/cadvisor with the kernel.
func (k *kubelet) metrics(t *testing.T, pod *v1.Pod) {
	k.wait(t, "metrics that are complete and right", func() error {
		raw, err := k.get(t.Context(), "/metrics/cadvisor")
		if err != nil {
			return err
		}
		container, whole := k.both(t, pod)
		series := ofPod(string(raw), pod.Name)
		for _, name := range everyMetric {
			if len(series[name]) == 0 {
				return fmt.Errorf("nothing of %s: %v", name, series)
			}
		}
		const secondsSlack, memorySlack = 1.5, 2 << 20 // seconds are whole ones
		return errors.Join(
			near("cpu of the container", series["container_cpu_usage_seconds_total"]["main"], container.cpuSeconds, secondsSlack),
			near("cpu of the pod", series["container_cpu_usage_seconds_total"][""], whole.cpuSeconds, secondsSlack),
			near("memory of the container", series["container_memory_working_set_bytes"]["main"], container.workingSet, memorySlack),
			near("memory of the pod", series["container_memory_working_set_bytes"][""], whole.workingSet, memorySlack))
	})
}

// line is a series in Prometheus' text format.
var line = regexp.MustCompile(`^(\w+)\{(.*)\} (\S+)`)

// label is one of its labels.
var label = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

// ofPod are the values of a pod's metrics, by name and container; of several that differ in other labels, the last.
func ofPod(text, pod string) map[string]map[string]float64 {
	found := map[string]map[string]float64{}
	for row := range strings.Lines(text) {
		m := line.FindStringSubmatch(row)
		if m == nil {
			continue
		}
		labels := map[string]string{}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = l[2]
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if labels["pod"] != pod || labels["namespace"] != "default" || err != nil {
			continue
		}
		if found[m[1]] == nil {
			found[m[1]] = map[string]float64{}
		}
		found[m[1]][labels["container"]] = value
	}
	return found
}

// everyMetric are those that a kubelet expects of every runtime, on v1 and v2 alike, without a limit on the pod.
var everyMetric = strings.Fields(`container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
	container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_usage_bytes
	container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total container_memory_mapped_file
	container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes
	container_network_receive_bytes_total container_network_receive_errors_total container_network_receive_packets_dropped_total
	container_network_receive_packets_total container_network_transmit_bytes_total container_network_transmit_errors_total
	container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total container_processes
	container_sockets container_spec_cpu_period container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_swap_limit_bytes
	container_start_time_seconds container_threads container_threads_max`)

// fellBack looks in the kubelet's log for signs that it gave up on what crid offers.
func (k *kubelet) fellBack(t *testing.T) {
	raw, err := os.ReadFile(k.log)
	if err != nil {
		t.Fatal(err)
	}
	for row := range strings.Lines(string(raw)) {
		for _, words := range []string{"Unimplemented", "falling back", "Fallback", "Evented PLEG: Disabling"} {
			if strings.Contains(row, words) {
				t.Errorf("the kubelet says: %s", row)
			}
		}
	}
}
