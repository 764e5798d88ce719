// Package stats turns what control groups, network namespaces and disks tell into the CRI's figures. It does not
// know the lives of pods and containers, nor who asks; it reads when it is asked and does nothing in between.
package stats

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
)

// Deps is what figures are made of. All of it is needed.
type Deps struct {
	Cgroups    Cgroups
	Layer      func(ctx context.Context, id string) (Layer, error) // measures; reads every directory
	Interfaces func(netns string) ([]Interface, error)             // of the network namespace at a path; NotFound when that is gone
	Log        *slog.Logger
}

// Cgroups reads cgroups; *cgroup.Tree does.
type Cgroups interface {
	Usage(path string) (cgroup.Usage, error)
	Details(path string) (cgroup.Details, error)
	Members(path string) ([]int, error)
}

// Layer is what a container has written.
type Layer struct {
	Mountpoint    string // a directory on the filesystem
	Bytes, Inodes uint64
}

// Interface is what has gone through a network interface. The numbers only grow.
type Interface struct {
	Name                                    string
	RxBytes, RxErrors, RxPackets, RxDropped uint64
	TxBytes, TxErrors, TxPackets, TxDropped uint64
}

// Container is a container to be measured.
type Container struct {
	Attributes *cri.ContainerAttributes // with the id
	Cgroup     string                   // empty once it has ended: what it has written is all that is left to measure
	Since      time.Time                // when it was created
	Hidden     bool                     // counted in its pod, not listed: crid's own

	Image   string    // for metrics: as the user names it
	Started time.Time // for metrics
	PID     int       // for metrics: of the main process
}

// Pod is a pod to be measured.
type Pod struct {
	Attributes *cri.PodSandboxAttributes // with the id
	Cgroup     string                    // its own; empty when it shares one with others: its containers are summed then
	NetNS      string                    // empty when the network is the host's
	Since      time.Time
	Containers []Container
}

// Reader measures. It remembers a little of what it read before, for as long as somebody goes on asking.
type Reader struct {
	deps    Deps
	layers  *layers
	rates   memory[rate]
	tallies memory[*tally]
	kills   memory[*growing] // by the kernel, in pods
}

// New makes a Reader that has not measured anything yet.
func New(deps Deps) *Reader {
	return &Reader{deps: deps, layers: newLayers(deps)}
}

// Close ends measurements that are under way.
func (r *Reader) Close() { r.layers.close() }

// Container measures one container: NotFound when its cgroup is gone.
func (r *Reader) Container(ctx context.Context, c Container) (*cri.ContainerStats, error) {
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	return r.container(ctx, c)
}

// container measures one container, and waits for nothing beyond ctx.
func (r *Reader) container(ctx context.Context, c Container) (*cri.ContainerStats, error) {
	out := &cri.ContainerStats{Attributes: c.Attributes, WritableLayer: r.layers.get(ctx, c.Attributes.GetId())}
	if c.Cgroup == "" {
		return out, nil
	}
	u, err := r.deps.Cgroups.Usage(c.Cgroup)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	out.Cpu = r.toCPU(c.Cgroup, now, c.Since, u.CPU)
	out.Memory = toMemory(now, u.Memory)
	out.Swap = toSwap(now, u.Memory)
	out.Io = toIO(now, u.IO)
	return out, nil
}

// Containers measures many at once, and leaves out those that are gone meanwhile or cannot be read.
func (r *Reader) Containers(ctx context.Context, all []Container) []*cri.ContainerStats {
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	return each(all, func(c Container) *cri.ContainerStats {
		s, err := r.container(ctx, c)
		r.tell("container", c.Attributes.GetId(), err)
		return s
	})
}

// Pods measures many at once, as Containers does.
func (r *Reader) Pods(ctx context.Context, all []Pod) []*cri.PodSandboxStats {
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	return each(all, func(p Pod) *cri.PodSandboxStats {
		s, err := r.pod(ctx, p)
		r.tell("pod", p.Attributes.GetId(), err)
		return s
	})
}

// tell logs what a list has to leave out. That something ended while it was measured is no news.
func (r *Reader) tell(kind, id string, err error) {
	if err != nil && !errors.Is(err, errdef.NotFound) {
		r.deps.Log.Warn("no figures", kind, id, "err", err)
	}
}

// each measures all, on every CPU, and returns what is not nil.
func each[In, Out any](all []In, measure func(In) *Out) []*Out {
	out := make([]*Out, len(all))
	workers := min(runtime.GOMAXPROCS(0), len(all))
	var wg sync.WaitGroup
	for first := range workers {
		wg.Go(func() { // ends with its share
			for i := first; i < len(all); i += workers {
				out[i] = measure(all[i])
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(out, func(o *Out) bool { return o == nil })
}
