package spec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// setResources leaves out "no limit", which is how a new cgroup starts: crun 1.8 writes a quota of -1 in a way
// that cgroup v1 refuses.
func setResources(s *specs.Spec, in Input) error {
	if err := checkHost("linux.resources", in.Config.GetLinux().GetResources(), in.Host); err != nil {
		return err
	}
	r := Resources(in.Config.GetLinux().GetResources(), in.Host)
	r.Devices = s.Linux.Resources.Devices
	if r.CPU != nil && r.CPU.Quota != nil && *r.CPU.Quota < 0 {
		r.CPU.Quota = nil
	}
	s.Linux.Resources = r
	return nil
}

// Resources are the limits that the CRI asks for, without huge pages that this host cannot limit. A zero field of the
// CRI means "not specified" and is left out, so that the result serves updates too. Values must have passed
// ValidateResources and checkHost. The answer is never nil and holds no device rules.
func Resources(r *runtime.LinuxContainerResources, host fact.Host) *specs.LinuxResources {
	out := &specs.LinuxResources{Memory: memory(r, host), CPU: cpu(r), Unified: r.GetUnified()}
	if host.HasController("hugetlb") {
		for _, h := range r.GetHugepageLimits() {
			out.HugepageLimits = append(out.HugepageLimits,
				specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	return out
}

// InForce is r without limits of huge pages where this host cannot limit them: nobody is told of a limit that there is
// not. r stays as it is.
func InForce(r *runtime.LinuxContainerResources, host fact.Host) *runtime.LinuxContainerResources {
	if len(r.GetHugepageLimits()) == 0 || host.HasController("hugetlb") {
		return r
	}
	r = proto.CloneOf(r)
	r.HugepageLimits = nil
	return r
}

// memory knows that swap is the sum of memory and swap space, in the CRI as in the OCI, and that a container
// whose swap limit is not specified must not swap, unless unified says how much it may: so does the kubelet on v2.
func memory(r *runtime.LinuxContainerResources, host fact.Host) *specs.LinuxMemory {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if swap == 0 {
		swap = limit
	}
	m := &specs.LinuxMemory{}
	if limit != 0 {
		m.Limit = &limit
	}
	if swap != 0 && limitsSwap(r, host) {
		m.Swap = &swap
	}
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

// limitsSwap tells whether the CRI's fields decide how much swap space there is.
func limitsSwap(r *runtime.LinuxContainerResources, host fact.Host) bool {
	_, own := r.GetUnified()["memory.swap.max"]
	return !own && !host.NoSwapLimit
}

func cpu(r *runtime.LinuxContainerResources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if v := uint64(r.GetCpuShares()); v != 0 {
		c.Shares = &v
	}
	if v := uint64(r.GetCpuPeriod()); v != 0 {
		c.Period = &v
	}
	if v := r.GetCpuQuota(); v != 0 {
		c.Quota = &v
	}
	if *c == (specs.LinuxCPU{}) {
		return nil
	}
	return c
}

// checkHost refuses what this host cannot limit: what is told to be in force is in force. Huge pages alone are left
// out where it cannot limit them at all, for the kubelet limits every size of page of every container.
func checkHost(field string, r *runtime.LinuxContainerResources, host fact.Host) error {
	for _, limit := range []struct {
		name, controller string
		asked            bool
	}{
		{"memory_limit_in_bytes", "memory", r.GetMemoryLimitInBytes() != 0},
		{"memory_swap_limit_in_bytes", "memory", r.GetMemorySwapLimitInBytes() != 0},
		{"cpu_shares", "cpu", r.GetCpuShares() != 0},
		{"cpu_quota", "cpu", r.GetCpuQuota() != 0},
		{"cpu_period", "cpu", r.GetCpuPeriod() != 0},
		{"cpuset_cpus", "cpuset", r.GetCpusetCpus() != ""},
		{"cpuset_mems", "cpuset", r.GetCpusetMems() != ""},
	} {
		if limit.asked && !host.HasController(limit.controller) {
			return fmt.Errorf("%s.%s: this host has no cgroup controller %s: %w", field, limit.name, limit.controller, errdef.Invalid)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		controller, _, _ := strings.Cut(key, ".")
		if host.Cgroup != fact.CgroupV2 {
			return fmt.Errorf("%s.unified: %q cannot be set on this host: its cgroups are %s: %w", field, key, host.Cgroup, errdef.Invalid)
		}
		if controller != "cgroup" && !host.HasController(controller) {
			return fmt.Errorf("%s.unified: %q cannot be set on this host: it has no cgroup controller %s: %w", field, key, controller, errdef.Invalid)
		}
	}
	for _, h := range r.GetHugepageLimits() {
		if host.HasController("hugetlb") && !slices.Contains(host.PageSizes, h.GetPageSize()) {
			return fmt.Errorf("%s.hugepage_limits: this host has no huge pages of size %q, it has %q: %w",
				field, h.GetPageSize(), host.PageSizes, errdef.Invalid)
		}
	}
	return nil
}

// The kernel's bounds of CPU bandwidth, in microseconds.
const (
	minBandwidth = 1000
	maxPeriod    = 1_000_000
	maxQuota     = 1<<44 - 1 // since Linux 5.8; older ones take more
)

// ValidateResources refuses limits that no kernel takes, or that do not go together. field is where r stands in the
// CRI's message, for the error; -1 means "no limit" for the quota and the two memory limits.
func ValidateResources(field string, r *runtime.LinuxContainerResources) error {
	if err := ValidateChange(field, r); err != nil {
		return err
	}
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case swap > 0 && limit <= 0:
		return fmt.Errorf("%s.memory_swap_limit_in_bytes: %d without memory_limit_in_bytes, which it includes: %w", field, swap, errdef.Invalid)
	case swap > 0 && swap < limit:
		return fmt.Errorf("%s.memory_swap_limit_in_bytes: %d is below the memory limit %d, which it includes: %w",
			field, swap, limit, errdef.Invalid)
	}
	return nil
}

// ValidateChange is ValidateResources for what an update changes, which need not be complete.
func ValidateChange(field string, r *runtime.LinuxContainerResources) error {
	for _, v := range []struct {
		name            string
		value, min, max int64
	}{
		{"cpu_period", r.GetCpuPeriod(), minBandwidth, maxPeriod},
		{"cpu_quota", r.GetCpuQuota(), -1, maxQuota},
		{"cpu_shares", r.GetCpuShares(), 0, math.MaxInt64},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), -1, math.MaxInt64},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1, math.MaxInt64},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000},
	} {
		if v.value != 0 && (v.value < v.min || v.value > v.max) {
			return fmt.Errorf("%s.%s: %d is not within %d and %d: %w", field, v.name, v.value, v.min, v.max, errdef.Invalid)
		}
	}
	if quota := r.GetCpuQuota(); quota > 0 && quota < minBandwidth {
		return fmt.Errorf("%s.cpu_quota: %d is below %d: %w", field, quota, minBandwidth, errdef.Invalid)
	}
	for _, places := range []struct{ name, list string }{{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()}} {
		if _, err := parsePlaces(places.list); err != nil {
			return fmt.Errorf("%s.%s %q: %w", field, places.name, places.list, err)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		if !strings.Contains(key, ".") || strings.ContainsAny(key, "/\x00") {
			return fmt.Errorf("%s.unified: %q is no file of a cgroup: %w", field, key, errdef.Invalid)
		}
	}
	return nil
}
