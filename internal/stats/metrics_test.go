package stats

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
)

// contract are the names that the kubelet 1.37 has in /metrics/cadvisor.
const contract = `container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total
container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes container_hugetlb_usage_bytes
container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss
container_memory_swap container_memory_usage_bytes container_memory_working_set_bytes
container_network_receive_bytes_total container_network_receive_errors_total container_network_receive_packets_dropped_total
container_network_receive_packets_total container_network_transmit_bytes_total container_network_transmit_errors_total
container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total
container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total container_processes
container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares
container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
container_start_time_seconds container_threads container_threads_max container_ulimits_soft`

func TestDescriptorsAreTheContracts(t *testing.T) {
	var names []string
	for _, d := range Descriptors() {
		names = append(names, d.Name)
		if d.Help == "" || !slices.Equal(d.LabelKeys[:len(commonLabels)], commonLabels) {
			t.Errorf("%v", d)
		}
	}
	want := strings.Fields(contract)
	if slices.Sort(names); !slices.Equal(names, want) || len(want) != 56 {
		t.Errorf("described\n%q\nwant %d\n%q", names, len(want), want)
	}
}

// everything is a cgroup of which all is told, with figures that differ.
func everything() (cgroup.Usage, cgroup.Details) {
	pressure := func(n uint64) *cgroup.Pressure {
		return &cgroup.Pressure{Some: cgroup.Stall{Total: n * 1e9}, Full: cgroup.Stall{Total: (n + 1) * 1e9}}
	}
	u := used(1)
	u.CPU = cgroup.CPU{Usage: 61e9, Pressure: pressure(62)}
	u.Memory.Pressure, u.IO = pressure(64), pressure(66)
	d := cgroup.Details{Figures: map[cgroup.Figure]uint64{}, HugePages: []cgroup.HugePages{{Size: "2MB", Usage: 70, Peak: new(uint64)}, {Size: "1GB", Usage: 71}}}
	for f := cgroup.UserTime; f <= cgroup.TasksLimit; f++ {
		d.Figures[f] = 10 + uint64(f)
	}
	for _, f := range []cgroup.Figure{cgroup.UserTime, cgroup.SystemTime, cgroup.ThrottledTime} {
		d.Figures[f] *= 1e9
	}
	d.Blocks = []cgroup.Block{
		{Major: 9999, Minor: 1, Operation: "Read", Bytes: 80, Times: 81}, {Major: 9999, Minor: 1, Operation: "Write", Bytes: 82, Times: 83},
		{Major: 9999, Minor: 2, Operation: "Read", Bytes: 84, Times: 85},
	}
	return u, d
}

// told are the series of a list of metrics, as "name value,of,labels" beyond those that all have.
func told(t *testing.T, all []*cri.Metric, common ...string) map[string]uint64 {
	t.Helper()
	keys := map[string][]string{}
	for _, d := range Descriptors() {
		keys[d.Name] = d.LabelKeys
	}
	found := map[string]uint64{}
	for _, m := range all {
		if len(m.LabelValues) != len(keys[m.Name]) || m.Value == nil || !slices.Equal(m.LabelValues[:len(commonLabels)], common) {
			t.Errorf("%v: the labels are %q", m, keys[m.Name])
			continue
		}
		series := strings.TrimSpace(m.Name + " " + strings.Join(m.LabelValues[len(commonLabels):], ","))
		if _, twice := found[series]; twice {
			t.Errorf("%s is told twice", series)
		}
		found[strings.TrimPrefix(series, "container_")] = m.Value.Value
	}
	return found
}

func measured(t *testing.T, n *node, p Pod) *cri.PodSandboxMetrics {
	t.Helper()
	all := n.reader(t).Metrics(t.Context(), []Pod{p})
	if len(all) != 1 || all[0].PodSandboxId != p.Attributes.Id {
		t.Fatalf("got %v", all)
	}
	return all[0]
}

func fullPod() (*node, Pod) {
	n := newNode()
	u, d := everything()
	n.usage["/p/crid-a"], n.details = u, map[string]cgroup.Details{"/p/crid-a": d, "/p": d}
	n.layer.Mountpoint = "/proc"
	n.interfaces = []Interface{{"eth0", 1, 2, 3, 4, 5, 6, 7, 8}, {"net1", 11, 12, 13, 14, 15, 16, 17, 18}}
	c := one("a")
	c.Image, c.Started, c.PID, c.Attributes.Metadata = "busybox:1", time.Unix(777, 0), os.Getpid(), &cri.ContainerMetadata{Name: "main"}
	p := pod("/p", c)
	p.Attributes.Metadata = &cri.PodSandboxMetadata{Name: "web", Namespace: "ns"}
	p.Since = time.Unix(555, 0)
	return n, p
}

func TestMetricsOfAContainer(t *testing.T) {
	n, p := fullPod()
	m := measured(t, n, p)
	if len(m.ContainerMetrics) != 1 || m.ContainerMetrics[0].ContainerId != "a" {
		t.Fatalf("containers %v", m.ContainerMetrics)
	}
	got := told(t, m.ContainerMetrics[0].Metrics, "/p/crid-a", "a", "busybox:1", "web", "ns", "main")
	for _, live := range []string{"last_seen", "file_descriptors", "sockets", "ulimits_soft max_open_files"} {
		if _, there := got[live]; !there {
			t.Errorf("%s is not told", live)
		}
		delete(got, live)
	}
	disk := ""
	for series := range got {
		if d, found := strings.CutPrefix(series, "fs_usage_bytes "); found {
			disk = d
		}
	}
	f := func(f cgroup.Figure) uint64 { return 10 + uint64(f) }
	want := map[string]uint64{
		"start_time_seconds": 777, "cpu_usage_seconds_total total": 61,
		"cpu_user_seconds_total": f(cgroup.UserTime), "cpu_system_seconds_total": f(cgroup.SystemTime),
		"cpu_cfs_periods_total": f(cgroup.Periods), "cpu_cfs_throttled_periods_total": f(cgroup.ThrottledPeriods),
		"cpu_cfs_throttled_seconds_total": f(cgroup.ThrottledTime),
		"spec_cpu_period":                 f(cgroup.CPUPeriod), "spec_cpu_quota": f(cgroup.CPUQuota), "spec_cpu_shares": f(cgroup.CPUShares),
		"memory_usage_bytes": 1000, "memory_working_set_bytes": 900, "memory_rss": 10, "memory_cache": f(cgroup.Cache),
		"memory_mapped_file": f(cgroup.MappedFile), "memory_kernel_usage": f(cgroup.KernelMemory), "memory_swap": f(cgroup.Swap),
		"memory_max_usage_bytes": f(cgroup.PeakMemory), "memory_failcnt": f(cgroup.LimitHits),
		"memory_failures_total pgfault,hierarchy": 3, "memory_failures_total pgmajfault,hierarchy": 2,
		"memory_failures_total pgfault,container": f(cgroup.OwnFaults), "memory_failures_total pgmajfault,container": f(cgroup.OwnMajorFaults),
		"oom_events_total": f(cgroup.OOMKills), "spec_memory_limit_bytes": f(cgroup.MemoryLimit),
		"spec_memory_reservation_limit_bytes": f(cgroup.MemoryReservation), "spec_memory_swap_limit_bytes": f(cgroup.MemorySwapLimit),
		"hugetlb_usage_bytes 2MB": 70, "hugetlb_usage_bytes 1GB": 71, "hugetlb_max_usage_bytes 2MB": 0,
		"fs_usage_bytes " + disk: 4096, "fs_limit_bytes " + disk: 0, "fs_inodes_total " + disk: 0, "fs_inodes_free " + disk: 0,
		"fs_reads_total 9999:1": 81, "fs_reads_total 9999:2": 85, "fs_reads_bytes_total 9999:1": 80, "fs_reads_bytes_total 9999:2": 84,
		"fs_writes_total 9999:1": 83, "fs_writes_bytes_total 9999:1": 82,
		"blkio_device_usage_total 9999:1,9999,1,Read": 80, "blkio_device_usage_total 9999:1,9999,1,Write": 82,
		"blkio_device_usage_total 9999:2,9999,2,Read": 84,
		"processes": 2, "threads": f(cgroup.Tasks), "threads_max": f(cgroup.TasksLimit),
		"pressure_cpu_waiting_seconds_total": 62, "pressure_cpu_stalled_seconds_total": 63, "pressure_memory_waiting_seconds_total": 64,
		"pressure_memory_stalled_seconds_total": 65, "pressure_io_waiting_seconds_total": 66, "pressure_io_stalled_seconds_total": 67,
	}
	differ(t, got, want)
}

func differ(t *testing.T, got, want map[string]uint64) {
	t.Helper()
	for _, series := range slices.Sorted(maps.Keys(want)) {
		if n, there := got[series]; n != want[series] || !there {
			t.Errorf("%s: %d, %v; want %d", series, n, there, want[series])
		}
	}
	for series := range got {
		if _, wanted := want[series]; !wanted {
			t.Errorf("%s: not wanted", series)
		}
	}
}

func TestMetricsOfAPod(t *testing.T) {
	n, p := fullPod()
	got := told(t, measured(t, n, p).Metrics, "/p", "p", "", "web", "ns", "")
	for series, want := range map[string]uint64{
		"network_receive_bytes_total eth0": 1, "network_receive_errors_total eth0": 2, "network_receive_packets_total eth0": 3,
		"network_receive_packets_dropped_total eth0": 4, "network_transmit_bytes_total eth0": 5, "network_transmit_errors_total eth0": 6,
		"network_transmit_packets_total eth0": 7, "network_transmit_packets_dropped_total eth0": 8, "network_transmit_bytes_total net1": 15,
		"start_time_seconds": 555, "cpu_usage_seconds_total total": 100, "processes": 2, "memory_failures_total pgfault,hierarchy": 300,
	} {
		if n, there := got[series]; n != want || !there {
			t.Errorf("%s: %d, %v; want %d", series, n, there, want)
		}
	}
	for series := range got {
		if strings.HasPrefix(series, "fs_usage") || strings.HasPrefix(series, "ulimits") {
			t.Errorf("%s of a pod", series)
		}
	}
}

// What is not there is not told as nothing: a graph of zeros says that all is well.
func TestWhatAHostDoesNotHaveIsLeftOut(t *testing.T) {
	n, p := fullPod()
	n.usage["/p/crid-a"] = used(1)
	n.details = map[string]cgroup.Details{"/p/crid-a": {Figures: map[cgroup.Figure]uint64{cgroup.MemoryLimit: cgroup.NoLimit, cgroup.Periods: 0}}}
	n.layerErr = os.ErrDeadlineExceeded
	p.Cgroup, p.Containers[0].PID = "", 1<<30
	m := measured(t, n, p)
	got := told(t, m.ContainerMetrics[0].Metrics, "/p/crid-a", "a", "busybox:1", "web", "ns", "main")
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, strings.Fields("file_descriptors last_seen processes sockets spec_memory_limit_bytes start_time_seconds")) || got["spec_memory_limit_bytes"] != 0 {
		t.Errorf("told %v", got)
	}
	for series := range told(t, m.Metrics, "", "p", "", "web", "ns", "") {
		if strings.HasPrefix(series, "cpu_") || strings.HasPrefix(series, "memory_") {
			t.Errorf("%s of a pod that has no cgroup", series)
		}
	}
}

func TestMetricsOfWhatIsGone(t *testing.T) {
	n, p := fullPod()
	p.Containers = append(p.Containers, one("x"))
	p.Cgroup = "/gone"
	if m := measured(t, n, p); len(m.ContainerMetrics) != 1 || len(m.Metrics) == 0 || n.log.Len() > 0 {
		t.Errorf("%d containers, %d series of the pod; logged %s", len(m.ContainerMetrics), len(m.Metrics), n.log.String())
	}
}

// Interfaces are named by whoever may administer the pod's network.
func TestNoSeriesTwice(t *testing.T) {
	n, p := fullPod()
	n.interfaces = []Interface{{Name: "a"}, {Name: "a"}}
	told(t, measured(t, n, p).Metrics, "/p", "p", "", "web", "ns", "")
}

func TestKillsOfAPodDoNotFall(t *testing.T) {
	n, p := fullPod()
	r := n.reader(t)
	for _, step := range []struct{ counted, want uint64 }{{3, 3}, {4, 4}, {1, 4}, {2, 5}, {0, 5}, {0, 5}} {
		n.details["/p"].Figures[cgroup.OOMKills] = step.counted
		m := r.Metrics(t.Context(), []Pod{p})[0]
		if got := told(t, m.Metrics, "/p", "p", "", "web", "ns", "")["oom_events_total"]; got != step.want {
			t.Errorf("counted %d: told %d, want %d", step.counted, got, step.want)
		}
	}
}

func TestProcessesAreLookedAt(t *testing.T) {
	me := []int{os.Getpid(), 1 << 30}
	before, err := lookAt(procDir, me, me[0])
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	after, err := lookAt(procDir, me, me[0])
	if err != nil || *after.descriptors < *before.descriptors+4 || *after.sockets < *before.sockets+3 || *after.sockets >= *after.descriptors {
		t.Errorf("%d descriptors and %d sockets, before %d and %d, %v", *after.descriptors, *after.sockets, *before.descriptors, *before.sockets, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || *after.openFiles != limit.Cur {
		t.Errorf("%d files may be open, want %d, %v", *after.openFiles, limit.Cur, err)
	}
	if not, err := lookAt(procDir, me, 1<<30); err != nil || not.openFiles != nil {
		t.Errorf("limits of a process that has ended: %v, %v", not.openFiles, err)
	}
}

// A container that has more open than anybody should must not hold up the figures of all others.
func TestWhatProcessesHaveOpenIsLookedAtWithinBounds(t *testing.T) {
	proc := t.TempDir()
	dir := filepath.Join(proc, "7", "fd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if err := os.Symlink("socket:[1]", filepath.Join(dir, strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	if open, sockets, err := descriptorsOf(dir, 1<<20); open != 30 || sockets != 30 || err != nil {
		t.Errorf("%d descriptors, %d sockets, %v", open, sockets, err)
	}
	if open, sockets, err := descriptorsOf(dir, 10); open < 30 || sockets != 0 || err != nil {
		t.Errorf("%d descriptors, %d sockets, %v beyond the bound", open, sockets, err)
	}
	many := make([]int, maxProcesses+1)
	if got, err := lookAt(proc, many, 0); err != nil || got.processes != maxProcesses+1 || got.descriptors != nil || got.sockets != nil {
		t.Errorf("%+v, %v of too many processes", got, err)
	}
}

func TestLimitsOfOpenFiles(t *testing.T) {
	for content, want := range map[string]string{
		"Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 524288               files\n": "1024",
		"Max open files            unlimited            unlimited            files\n":                                                                            "none",
		"Max processes             5                    5                    processes\n":                                                                        "none",
		"Max open files            x                    5                    files\n":                                                                            "error",
	} {
		file := filepath.Join(t.TempDir(), "limits")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := openFiles(file)
		got := "none"
		if err != nil {
			got = "error"
		} else if n != nil {
			got = strconv.FormatUint(*n, 10)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", content, got, want)
		}
	}
}

func TestDevicesAreNamed(t *testing.T) {
	if got := device(1, 1); got != "1:1" { // of memory, no block device
		t.Errorf("1:1 is %s", got)
	}
	links, err := filepath.Glob("/sys/dev/block/*")
	if err != nil || len(links) == 0 {
		t.Skip("no block devices here")
	}
	var major, minor uint32
	words := strings.Split(filepath.Base(links[0]), ":")
	for i, into := range []*uint32{&major, &minor} {
		n, err := strconv.ParseUint(words[i], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		*into = uint32(n)
	}
	if got := device(major, minor); !strings.HasPrefix(got, "/dev/") || strings.Contains(got, ":") {
		t.Errorf("%s is %s", links[0], got)
	}
	if _, err := filesystemOf("/nonesuch"); err == nil {
		t.Error("a filesystem that is not there")
	}
}
