package spec

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
)

// MergeResources is what is in force once change was applied to what was in force before. Zero fields of change
// leave things as they are; so does oom_score_adj, which belongs to processes that run already. A container that
// must not swap still must not when its memory limit changes. Invalid when the two do not go together.
func MergeResources(before, change *runtime.LinuxContainerResources) (*runtime.LinuxContainerResources, error) {
	after, ok := proto.Clone(before).(*runtime.LinuxContainerResources)
	if !ok || after == nil {
		after = &runtime.LinuxContainerResources{}
	}
	set(&after.CpuPeriod, change.GetCpuPeriod())
	set(&after.CpuQuota, change.GetCpuQuota())
	set(&after.CpuShares, change.GetCpuShares())
	set(&after.CpusetCpus, change.GetCpusetCpus())
	set(&after.CpusetMems, change.GetCpusetMems())
	if limit := change.GetMemoryLimitInBytes(); limit != 0 {
		if after.MemorySwapLimitInBytes == after.MemoryLimitInBytes {
			after.MemorySwapLimitInBytes = limit
		}
		after.MemoryLimitInBytes = limit
	}
	set(&after.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes())
	for _, h := range change.GetHugepageLimits() {
		after.HugepageLimits = slices.DeleteFunc(after.HugepageLimits, func(old *runtime.HugepageLimit) bool {
			return old.GetPageSize() == h.GetPageSize()
		})
		after.HugepageLimits = append(after.HugepageLimits, h)
	}
	if len(change.GetUnified()) > 0 {
		if after.Unified == nil {
			after.Unified = map[string]string{}
		}
		maps.Copy(after.Unified, change.GetUnified())
	}
	return after, ValidateResources("linux", after)
}

// set takes over what is specified.
func set[T comparable](into *T, value T) {
	var unspecified T
	if value != unspecified {
		*into = value
	}
}

// Update is what the runtime must be told so that change becomes true, where after is MergeResources' answer to it:
// what change speaks of, both of a pair (quota and period, memory and swap) of which it names one, and in any case
// the memory and what unified says. A runtime that remembers what it was told last would go back to that memory, even
// if it has been undone since, and that overwrites files of which unified decides. Invalid for what cannot be done on this host: an update is applied whole or not at all.
func Update(change, after *runtime.LinuxContainerResources, host fact.Host) (*specs.LinuxResources, error) {
	if err := checkHost("linux", change, host); err != nil {
		return nil, err
	}
	full := Resources(after, host)
	return &specs.LinuxResources{
		Memory:         updateMemory(after, full.Memory, host),
		CPU:            updateCPU(change, full.CPU),
		HugepageLimits: Resources(&runtime.LinuxContainerResources{HugepageLimits: change.GetHugepageLimits()}, host).HugepageLimits,
		Unified:        full.Unified,
	}, nil
}

func namesMemory(r *runtime.LinuxContainerResources) bool {
	return r.GetMemoryLimitInBytes() != 0 || r.GetMemorySwapLimitInBytes() != 0
}

func namesTime(r *runtime.LinuxContainerResources) bool {
	return r.GetCpuPeriod() != 0 || r.GetCpuQuota() != 0
}

// updateMemory says that there is no limit where none was asked for.
func updateMemory(after *runtime.LinuxContainerResources, full *specs.LinuxMemory, host fact.Host) *specs.LinuxMemory {
	if full != nil || !host.HasController("memory") {
		return full
	}
	none := int64(-1)
	m := &specs.LinuxMemory{Limit: &none}
	if limitsSwap(after, host) {
		m.Swap = &none
	}
	return m
}

func updateCPU(change *runtime.LinuxContainerResources, full *specs.LinuxCPU) *specs.LinuxCPU {
	out := specs.LinuxCPU{Cpus: change.GetCpusetCpus(), Mems: change.GetCpusetMems()}
	if namesTime(change) {
		out.Quota, out.Period = full.Quota, full.Period
	}
	if change.GetCpuShares() != 0 {
		out.Shares = full.Shares
	}
	if out == (specs.LinuxCPU{}) {
		return nil
	}
	return &out
}

// LimitFiles are the files of a container's cgroup that change decides the content of.
func LimitFiles(change *runtime.LinuxContainerResources, cgroup fact.CgroupMode) []string {
	files := slices.Collect(maps.Keys(change.GetUnified()))
	v2 := cgroup == fact.CgroupV2
	for _, f := range []struct {
		named  bool
		v1, v2 []string
	}{
		{namesMemory(change), []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}, []string{"memory.max", "memory.swap.max"}},
		{namesTime(change), []string{"cpu.cfs_quota_us", "cpu.cfs_period_us"}, []string{"cpu.max"}},
		{change.GetCpuShares() != 0, []string{"cpu.shares"}, []string{"cpu.weight"}},
		{change.GetCpusetCpus() != "", []string{"cpuset.cpus"}, []string{"cpuset.cpus"}},
		{change.GetCpusetMems() != "", []string{"cpuset.mems"}, []string{"cpuset.mems"}},
	} {
		switch {
		case f.named && v2:
			files = append(files, f.v2...)
		case f.named:
			files = append(files, f.v1...)
		}
	}
	for _, h := range change.GetHugepageLimits() {
		used, promised := HugepageFiles(h.GetPageSize(), cgroup)
		files = append(files, used, promised)
	}
	return files
}

// HugepageFiles are the files of a cgroup that limit huge pages of that size: those in use, and since Linux 5.7 those that
// are promised to who has mapped them.
func HugepageFiles(pageSize string, cgroup fact.CgroupMode) (used, promised string) {
	limit := ".limit_in_bytes"
	if cgroup == fact.CgroupV2 {
		limit = ".max"
	}
	return "hugetlb." + pageSize + limit, "hugetlb." + pageSize + ".rsvd" + limit
}
