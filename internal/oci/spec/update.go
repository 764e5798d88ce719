package spec

import (
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
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

// Update is what the runtime must be told so that change becomes true, where after is MergeResources' answer to
// it: nothing that change does not speak of, but both of a pair (quota and period, memory and swap) of which it
// names one. Invalid for what cannot be done on this host: an update is applied whole or not at all.
func Update(change, after *runtime.LinuxContainerResources, host fact.Host) (*specs.LinuxResources, error) {
	full := Resources(after, host)
	out := &specs.LinuxResources{Unified: unified(change, host)}
	if host.Cgroup != fact.CgroupV2 {
		out.Unified = nil
	}
	for _, key := range slices.Sorted(maps.Keys(change.GetUnified())) {
		if _, ok := out.Unified[key]; !ok {
			return nil, fmt.Errorf("linux.unified: %q cannot be set on this host: cgroups are %s: %w", key, host.Cgroup, errdef.Invalid)
		}
	}
	if change.GetMemoryLimitInBytes() != 0 || change.GetMemorySwapLimitInBytes() != 0 {
		if out.Memory = full.Memory; out.Memory == nil {
			return nil, fmt.Errorf("linux.memory_limit_in_bytes: this host has no memory controller: %w", errdef.Invalid)
		}
		check := true // runtimes that know it refuse a limit that would kill
		out.Memory.CheckBeforeUpdate = &check
	}
	var err error
	if out.CPU, err = updateCPU(change, full.CPU, host); err != nil {
		return nil, err
	}
	if host.HasController("hugetlb") {
		out.HugepageLimits = Resources(&runtime.LinuxContainerResources{HugepageLimits: change.GetHugepageLimits()}, host).HugepageLimits
	}
	return out, nil
}

func updateCPU(change *runtime.LinuxContainerResources, full *specs.LinuxCPU, host fact.Host) (*specs.LinuxCPU, error) {
	time := change.GetCpuPeriod() != 0 || change.GetCpuQuota() != 0
	places := change.GetCpusetCpus() != "" || change.GetCpusetMems() != ""
	switch {
	case !time && !places && change.GetCpuShares() == 0:
		return nil, nil
	case places && !host.HasController("cpuset"):
		return nil, fmt.Errorf("linux.cpuset_cpus: this host has no cpuset controller: %w", errdef.Invalid)
	case (time || change.GetCpuShares() != 0) && !host.HasController("cpu"):
		return nil, fmt.Errorf("linux.cpu_shares: this host has no cpu controller: %w", errdef.Invalid)
	}
	out := &specs.LinuxCPU{Cpus: change.GetCpusetCpus(), Mems: change.GetCpusetMems()}
	if time {
		out.Quota, out.Period = full.Quota, full.Period
	}
	if change.GetCpuShares() != 0 {
		out.Shares = full.Shares
	}
	return out, nil
}
