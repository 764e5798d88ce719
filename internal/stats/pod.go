package stats

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
)

// mainInterface is the one that Kubernetes takes for a pod's own, as the CNI plugins are told to name it.
const mainInterface = "eth0"

// Pod measures a pod with its containers. What is gone already, its network or cgroup after it was stopped, is
// left out.
func (r *Reader) Pod(ctx context.Context, p Pod) (*cri.PodSandboxStats, error) {
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	return r.pod(ctx, p)
}

// pod measures one pod, and waits for nothing beyond ctx.
func (r *Reader) pod(ctx context.Context, p Pod) (*cri.PodSandboxStats, error) {
	out := &cri.LinuxPodSandboxStats{Containers: []*cri.ContainerStats{}}
	var sum *tally
	if p.Cgroup == "" {
		sum = r.tallies.get(p.Attributes.GetId(), func() *tally { return &tally{seen: map[string]counters{}} })
	}
	var count uint64
	for _, c := range p.Containers {
		if c.Cgroup == "" {
			continue
		}
		stats, err := r.container(ctx, c)
		if errors.Is(err, errdef.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pids, err := r.deps.Cgroups.Members(c.Cgroup)
		if err != nil {
			return nil, err
		}
		count += uint64(len(pids))
		if !c.Hidden {
			out.Containers = append(out.Containers, stats)
		}
		if sum != nil {
			sum.add(c.Attributes.GetId(), stats)
		}
	}
	out.Process = &cri.ProcessUsage{Timestamp: time.Now().UnixNano(), ProcessCount: value(count)}
	if err := r.whole(p, sum, out); err != nil {
		return nil, err
	}
	var err error
	if out.Network, err = r.network(p.NetNS); err != nil {
		return nil, err
	}
	return &cri.PodSandboxStats{Attributes: p.Attributes, Linux: out}, nil
}

// whole fills in what the pod uses as a whole.
func (r *Reader) whole(p Pod, sum *tally, out *cri.LinuxPodSandboxStats) error {
	now := time.Now()
	if sum != nil {
		total := sum.total(out.Containers)
		out.Cpu = r.toCPU("pod "+p.Attributes.GetId(), now, p.Since, total.CPU)
		out.Memory = toMemory(now, total.Memory)
		return nil
	}
	u, err := r.deps.Cgroups.Usage(p.Cgroup)
	if errors.Is(err, errdef.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	out.Cpu = r.toCPU(p.Cgroup, now, p.Since, u.CPU)
	out.Memory = toMemory(now, u.Memory)
	out.Io = toIO(now, u.IO)
	return nil
}

func (r *Reader) network(netns string) (*cri.NetworkUsage, error) {
	if netns == "" {
		return nil, nil
	}
	all, err := r.deps.Interfaces(netns)
	if errors.Is(err, errdef.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	out := &cri.NetworkUsage{Timestamp: now, Interfaces: []*cri.NetworkInterfaceUsage{}}
	main := slices.IndexFunc(all, func(i Interface) bool { return i.Name == mainInterface })
	for i, n := range all {
		usage := &cri.NetworkInterfaceUsage{Name: n.Name,
			RxBytes: value(n.RxBytes), RxErrors: value(n.RxErrors), TxBytes: value(n.TxBytes), TxErrors: value(n.TxErrors)}
		if i == max(main, 0) {
			out.DefaultInterface = usage
			continue
		}
		out.Interfaces = append(out.Interfaces, usage)
	}
	return out, nil
}

// counters are those of a container's figures that only grow.
type counters struct{ cpu, faults, majorFaults uint64 }

// tally sums the containers of a pod that has no cgroup of its own. What its removed containers have used stays
// in it: a sum must not fall.
type tally struct {
	mu   sync.Mutex // guards seen; held for access only
	seen map[string]counters
}

func (t *tally) add(id string, s *cri.ContainerStats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[id] = counters{s.Cpu.UsageCoreNanoSeconds.Value, s.Memory.PageFaults.Value, s.Memory.MajorPageFaults.Value}
}

// total is what the pod uses. Its containers share no limit, so it is told of none.
func (t *tally) total(living []*cri.ContainerStats) cgroup.Usage {
	u := cgroup.Usage{Memory: cgroup.Memory{Limit: cgroup.NoLimit, SwapLimit: cgroup.NoLimit}}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.seen {
		u.CPU.Usage += c.cpu
		u.Memory.Faults += c.faults
		u.Memory.MajorFaults += c.majorFaults
	}
	for _, s := range living {
		u.Memory.Usage += s.Memory.UsageBytes.Value
		u.Memory.RSS += s.Memory.RssBytes.Value
		u.Memory.InactiveFile += s.Memory.UsageBytes.Value - s.Memory.WorkingSetBytes.Value
	}
	return u
}
