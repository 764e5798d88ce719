package stats

import (
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
)

func value(n uint64) *cri.UInt64Value { return &cri.UInt64Value{Value: n} }

// toCPU shapes CPU time; key is what its rate is remembered by.
func (r *Reader) toCPU(key string, now, since time.Time, u cgroup.CPU) *cri.CpuUsage {
	return &cri.CpuUsage{
		Timestamp:            now.UnixNano(),
		UsageCoreNanoSeconds: value(u.Usage),
		UsageNanoCores:       value(r.nanoCores(key, now, since, u.Usage)),
		Psi:                  toPSI(u.Pressure),
	}
}

func toMemory(now time.Time, m cgroup.Memory) *cri.MemoryUsage {
	working := m.WorkingSet()
	return &cri.MemoryUsage{
		Timestamp:       now.UnixNano(),
		WorkingSetBytes: value(working),
		AvailableBytes:  value(left(m.Limit, ram, working)),
		UsageBytes:      value(m.Usage),
		RssBytes:        value(m.RSS),
		PageFaults:      value(m.Faults),
		MajorPageFaults: value(m.MajorFaults),
		Psi:             toPSI(m.Pressure),
	}
}

func toSwap(now time.Time, m cgroup.Memory) *cri.SwapUsage {
	return &cri.SwapUsage{
		Timestamp:          now.UnixNano(),
		SwapAvailableBytes: value(left(m.SwapLimit, swap, m.Swap)),
		SwapUsageBytes:     value(m.Swap),
	}
}

// left is what may still be used of a limit; where there is none, of what the host has.
func left(limit uint64, has func(unix.Sysinfo_t) uint64, used uint64) uint64 {
	if limit == cgroup.NoLimit {
		var host unix.Sysinfo_t
		if unix.Sysinfo(&host) != nil {
			return 0
		}
		limit = has(host) * uint64(host.Unit)
	}
	return limit - min(limit, used)
}

func ram(s unix.Sysinfo_t) uint64  { return uint64(s.Totalram) }
func swap(s unix.Sysinfo_t) uint64 { return uint64(s.Totalswap) }

// toIO is nil where there is nothing to tell: the CRI knows of nothing but pressure.
func toIO(now time.Time, p *cgroup.Pressure) *cri.IoUsage {
	if p == nil {
		return nil
	}
	return &cri.IoUsage{Timestamp: now.UnixNano(), Psi: toPSI(p)}
}

func toPSI(p *cgroup.Pressure) *cri.PsiStats {
	if p == nil {
		return nil
	}
	return &cri.PsiStats{Full: toPSIData(p.Full), Some: toPSIData(p.Some)}
}

func toPSIData(s cgroup.Stall) *cri.PsiData {
	return &cri.PsiData{Total: s.Total, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
}
