package stats

import (
	"math"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
)

// metric is one name of the catalogue: the names, labels and meanings that cAdvisor has for them, which the dashboards
// and alerts of clusters ask for.
type metric struct {
	name, help string
	kind       cri.MetricType
	labels     []string // beyond those of every metric
	read       func(*subject) []sample
}

// sample is one value of a metric, with the values of its own labels. The CRI has whole numbers only, of seconds too.
type sample struct {
	value  uint64
	labels []string
	at     int64 // when it was measured, in ns, for what was not measured just now
}

const (
	counter = cri.MetricType_COUNTER
	gauge   = cri.MetricType_GAUGE
)

// commonLabels are the first of every metric: the cgroup's path, the id of the container or pod, and who that is to
// Kubernetes. image and container are empty for a pod.
var commonLabels = []string{"id", "name", "image", "pod", "namespace", "container"}

var catalogue = slices.Concat(lifeMetrics, cpuMetrics, memoryMetrics, diskMetrics, networkMetrics, processMetrics, pressureMetrics)

var lifeMetrics = []metric{
	{"container_last_seen", "Unix time, in seconds, at which the container was last seen.", gauge, nil,
		func(s *subject) []sample { return single(uint64(s.now.Unix())) }},
	{"container_start_time_seconds", "Unix time, in seconds, at which the container was started.", gauge, nil,
		func(s *subject) []sample { return single(uint64(s.started.Unix())) }},
}

var cpuMetrics = []metric{
	{"container_cpu_usage_seconds_total", "CPU time used, in seconds.", counter, []string{"cpu"},
		func(s *subject) []sample { return s.used(cgroup.UserTime, inSeconds(s.usage.CPU.Usage), "total") }},
	{"container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counter, nil, seconds(cgroup.UserTime)},
	{"container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", counter, nil, seconds(cgroup.SystemTime)},
	{"container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.", counter, nil, quota(figure(cgroup.Periods))},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up.", counter, nil, quota(figure(cgroup.ThrottledPeriods))},
	{"container_cpu_cfs_throttled_seconds_total", "Time spent waiting because the CPU quota was used up, in seconds.", counter, nil,
		quota(seconds(cgroup.ThrottledTime))},
	{"container_spec_cpu_period", "Period of the CPU quota, in microseconds.", gauge, nil, figure(cgroup.CPUPeriod)},
	{"container_spec_cpu_quota", "CPU time allowed in each period, in microseconds.", gauge, nil, figure(cgroup.CPUQuota)},
	{"container_spec_cpu_shares", "Share of CPU time where it is scarce.", gauge, nil, figure(cgroup.CPUShares)},
}

var memoryMetrics = []metric{
	{"container_memory_usage_bytes", "Memory in use, in bytes, caches of files included.", gauge, nil,
		func(s *subject) []sample { return s.used(cgroup.Cache, s.usage.Memory.Usage) }},
	{"container_memory_working_set_bytes", "Memory in use, in bytes, but for caches of files that are not in active use.", gauge, nil,
		func(s *subject) []sample { return s.used(cgroup.Cache, s.usage.Memory.WorkingSet()) }},
	{"container_memory_rss", "Memory that no file is behind, in bytes.", gauge, nil,
		func(s *subject) []sample { return s.used(cgroup.Cache, s.usage.Memory.RSS) }},
	{"container_memory_cache", "Memory that caches files, in bytes.", gauge, nil, figure(cgroup.Cache)},
	{"container_memory_mapped_file", "Memory mapped from files, in bytes.", gauge, nil, figure(cgroup.MappedFile)},
	{"container_memory_kernel_usage", "Memory of the kernel, in bytes.", gauge, nil, figure(cgroup.KernelMemory)},
	{"container_memory_swap", "Swap space in use, in bytes.", gauge, nil, figure(cgroup.Swap)},
	{"container_memory_max_usage_bytes", "The most memory that was ever in use, in bytes.", gauge, nil, figure(cgroup.PeakMemory)},
	{"container_memory_failcnt", "How often the memory limit was hit.", counter, nil, figure(cgroup.LimitHits)},
	{"container_memory_failures_total", "Page faults, by kind.", counter, []string{"failure_type", "scope"}, faults},
	{"container_oom_events_total", "Processes that the kernel has killed for want of memory.", counter, nil, figure(cgroup.OOMKills)},
	{"container_spec_memory_limit_bytes", "Memory limit, in bytes; 0 where there is none.", gauge, nil, limit(cgroup.MemoryLimit)},
	{"container_spec_memory_reservation_limit_bytes", "Memory that is left to the container where it is scarce, in bytes; 0 where there is no such promise.", gauge, nil, limit(cgroup.MemoryReservation)},
	{"container_spec_memory_swap_limit_bytes",
		"Limit of swap space, in bytes, with cgroup v1 of memory and swap space together; 0 where there is none.", gauge, nil, limit(cgroup.MemorySwapLimit)},
	{"container_hugetlb_usage_bytes", "Huge pages in use, in bytes.", gauge, []string{"pagesize"},
		hugePages(func(p cgroup.HugePages) *uint64 { return &p.Usage })},
	{"container_hugetlb_max_usage_bytes", "The most huge pages that were ever in use, in bytes.", gauge, []string{"pagesize"},
		hugePages(func(p cgroup.HugePages) *uint64 { return p.Peak })},
}

var diskMetrics = []metric{
	{"container_fs_usage_bytes", "What the container has written to its root filesystem, in bytes.", gauge, []string{"device"}, func(s *subject) []sample {
		if s.layer == nil {
			return nil
		}
		return []sample{{s.layer.GetUsedBytes().GetValue(), []string{s.disk.device}, s.layer.GetTimestamp()}}
	}},
	{"container_fs_limit_bytes", "Size of the filesystem that holds what the container writes, in bytes.", gauge, []string{"device"},
		disk(func(d filesystem) uint64 { return d.bytes })},
	{"container_fs_inodes_total", "Inodes of the filesystem that holds what the container writes.", gauge, []string{"device"},
		disk(func(d filesystem) uint64 { return d.inodes })},
	{"container_fs_inodes_free", "Free inodes of the filesystem that holds what the container writes.", gauge, []string{"device"},
		disk(func(d filesystem) uint64 { return d.free })},
	{"container_fs_reads_total", "Reads of block devices.", counter, []string{"device"}, blocks("Read", times)},
	{"container_fs_reads_bytes_total", "Bytes read from block devices.", counter, []string{"device"}, blocks("Read", volume)},
	{"container_fs_writes_total", "Writes to block devices.", counter, []string{"device"}, blocks("Write", times)},
	{"container_fs_writes_bytes_total", "Bytes written to block devices.", counter, []string{"device"}, blocks("Write", volume)},
	{"container_blkio_device_usage_total", "Bytes moved from and to block devices, by operation.", counter,
		[]string{"device", "major", "minor", "operation"}, allBlocks},
}

var networkMetrics = []metric{
	network("container_network_receive_bytes_total", "Bytes received.", func(i Interface) uint64 { return i.RxBytes }),
	network("container_network_receive_packets_total", "Packets received.", func(i Interface) uint64 { return i.RxPackets }),
	network("container_network_receive_packets_dropped_total", "Packets dropped that had come in.", func(i Interface) uint64 { return i.RxDropped }),
	network("container_network_receive_errors_total", "Errors of receiving.", func(i Interface) uint64 { return i.RxErrors }),
	network("container_network_transmit_bytes_total", "Bytes sent.", func(i Interface) uint64 { return i.TxBytes }),
	network("container_network_transmit_packets_total", "Packets sent.", func(i Interface) uint64 { return i.TxPackets }),
	network("container_network_transmit_packets_dropped_total", "Packets dropped that were to go out.", func(i Interface) uint64 { return i.TxDropped }),
	network("container_network_transmit_errors_total", "Errors of sending.", func(i Interface) uint64 { return i.TxErrors }),
}

var processMetrics = []metric{
	{"container_processes", "Processes.", gauge, nil, func(s *subject) []sample { return single(s.tasks.processes) }},
	{"container_file_descriptors", "Open file descriptors.", gauge, nil, func(s *subject) []sample { return known(s.tasks.descriptors) }},
	{"container_sockets", "Open sockets.", gauge, nil, func(s *subject) []sample { return known(s.tasks.sockets) }},
	{"container_threads", "Threads.", gauge, nil, figure(cgroup.Tasks)},
	{"container_threads_max", "How many threads are allowed; 0 where there is no limit.", gauge, nil, limit(cgroup.TasksLimit)},
	{"container_ulimits_soft", "Soft limits of the container's main process.", gauge, []string{"ulimit"},
		func(s *subject) []sample { return known(s.tasks.openFiles, "max_open_files") }},
}

var pressureMetrics = []metric{
	pressure("container_pressure_cpu_waiting_seconds_total", "Time in which tasks waited for a CPU, in seconds.", ofCPU, some),
	pressure("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU, in seconds.", ofCPU, full),
	pressure("container_pressure_memory_waiting_seconds_total", "Time in which tasks waited for memory, in seconds.", ofMemory, some),
	pressure("container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", ofMemory, full),
	pressure("container_pressure_io_waiting_seconds_total", "Time in which tasks waited for a device, in seconds.", ofIO, some),
	pressure("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for a device, in seconds.", ofIO, full),
}

func single(n uint64, labels ...string) []sample { return []sample{{value: n, labels: labels}} }

// known is one sample, or nothing where n is not known.
func known(n *uint64, labels ...string) []sample {
	if n == nil {
		return nil
	}
	return single(*n, labels...)
}

func inSeconds(ns uint64) uint64 { return ns / uint64(time.Second) }

func figure(f cgroup.Figure) func(*subject) []sample {
	return func(s *subject) []sample {
		n, has := s.details.Figures[f]
		if !has {
			return nil
		}
		return single(n)
	}
}

func seconds(f cgroup.Figure) func(*subject) []sample {
	return func(s *subject) []sample {
		ns, has := s.details.Figures[f]
		if !has {
			return nil
		}
		return single(inSeconds(ns))
	}
}

// quota is what read tells where there is a CPU quota: the kernel counts nothing without.
func quota(read func(*subject) []sample) func(*subject) []sample {
	return func(s *subject) []sample {
		if _, has := s.details.Figures[cgroup.CPUQuota]; !has {
			return nil
		}
		return read(s)
	}
}

// limit is a limit, 0 when it is none.
func limit(f cgroup.Figure) func(*subject) []sample {
	return func(s *subject) []sample {
		n, has := s.details.Figures[f]
		if !has {
			return nil
		}
		if n > math.MaxInt64 {
			n = 0
		}
		return single(n)
	}
}

// faults are those of the cgroup and all below it, and of itself alone: v1 counts those, and a container has nothing
// else below its own.
func faults(s *subject) []sample {
	if _, has := s.details.Figures[cgroup.Cache]; !has {
		return nil
	}
	all := []sample{
		{value: s.usage.Memory.Faults, labels: []string{"pgfault", "hierarchy"}},
		{value: s.usage.Memory.MajorFaults, labels: []string{"pgmajfault", "hierarchy"}},
	}
	own, has := s.details.Figures[cgroup.OwnFaults]
	ownMajor := s.details.Figures[cgroup.OwnMajorFaults]
	if !has && !s.isPod {
		own, ownMajor, has = s.usage.Memory.Faults, s.usage.Memory.MajorFaults, true
	}
	if has {
		all = append(all, sample{value: own, labels: []string{"pgfault", "container"}}, sample{value: ownMajor, labels: []string{"pgmajfault", "container"}})
	}
	return all
}

func hugePages(read func(cgroup.HugePages) *uint64) func(*subject) []sample {
	return func(s *subject) (all []sample) {
		for _, p := range s.details.HugePages {
			all = append(all, known(read(p), p.Size)...)
		}
		return all
	}
}
