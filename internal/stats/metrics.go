package stats

import (
	"context"
	"slices"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
)

// Descriptors describes every metric that Metrics may tell. It is always the same.
func Descriptors() []*cri.MetricDescriptor {
	all := make([]*cri.MetricDescriptor, 0, len(catalogue))
	for _, m := range catalogue {
		all = append(all, &cri.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(commonLabels, m.labels)})
	}
	return all
}

// subject is a container or a pod as it was measured for metrics. What it lacks is not told.
type subject struct {
	isPod        bool
	now, started time.Time
	usage        cgroup.Usage
	details      cgroup.Details
	layer        *cri.FilesystemUsage
	disk         *filesystem // of the layer; nil when there is no layer
	interfaces   []Interface
	tasks        tasks
}

// used is a figure of the usage, where the host has the controller that tells beside.
func (s *subject) used(beside cgroup.Figure, n uint64, labels ...string) []sample {
	if _, has := s.details.Figures[beside]; !has {
		return nil
	}
	return single(n, labels...)
}

// series are all values of the subject, in the order of the catalogue.
func (s *subject) series(labels []string) []*cri.Metric {
	all := make([]*cri.Metric, 0, len(catalogue)+8)
	for _, m := range catalogue {
		for _, v := range m.read(s) {
			values := labels
			if len(v.labels) > 0 {
				values = slices.Concat(labels, v.labels)
			}
			all = append(all, &cri.Metric{Name: m.name, MetricType: m.kind, LabelValues: values, Value: value(v.value), Timestamp: v.at})
		}
	}
	return all
}

// Metrics measures many pods with their containers at once, and leaves out what is gone meanwhile or cannot be read.
func (r *Reader) Metrics(ctx context.Context, all []Pod) []*cri.PodSandboxMetrics {
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	return each(all, func(p Pod) *cri.PodSandboxMetrics { return r.metrics(ctx, p) })
}

func (r *Reader) metrics(ctx context.Context, p Pod) *cri.PodSandboxMetrics {
	id, meta := p.Attributes.GetId(), p.Attributes.GetMetadata()
	out := &cri.PodSandboxMetrics{PodSandboxId: id}
	pod := &subject{isPod: true, now: time.Now(), started: p.Since, tasks: none()}
	for _, c := range p.Containers {
		measured, err := r.containerSubject(ctx, c)
		if err != nil {
			r.tell("container", c.Attributes.GetId(), err)
			continue
		}
		pod.tasks = pod.tasks.and(measured.tasks)
		if c.Hidden {
			continue
		}
		labels := []string{c.Cgroup, c.Attributes.GetId(), c.Image, meta.GetName(), meta.GetNamespace(), c.Attributes.GetMetadata().GetName()}
		out.ContainerMetrics = append(out.ContainerMetrics, &cri.ContainerMetrics{ContainerId: c.Attributes.GetId(), Metrics: measured.series(labels)})
	}
	r.tell("pod", id, r.connect(p, pod))
	if p.Cgroup != "" {
		r.tell("pod", id, r.count(p.Cgroup, pod))
	}
	if kills, has := pod.details.Figures[cgroup.OOMKills]; has {
		pod.details.Figures[cgroup.OOMKills] = r.kills.get(id, func() *growing { return &growing{} }).total(kills)
	}
	out.Metrics = pod.series([]string{p.Cgroup, id, "", meta.GetName(), meta.GetNamespace(), ""})
	return out
}

// containerSubject measures a container for metrics.
func (r *Reader) containerSubject(ctx context.Context, c Container) (*subject, error) {
	s := &subject{now: time.Now(), started: c.Started}
	if err := r.count(c.Cgroup, s); err != nil {
		return nil, err
	}
	pids, err := r.deps.Cgroups.Members(c.Cgroup)
	if err != nil {
		return nil, err
	}
	if s.tasks, err = lookAt(procDir, pids, c.PID); err != nil {
		return nil, err
	}
	if c.Hidden {
		return s, nil
	}
	if s.layer = r.layers.get(ctx, c.Attributes.GetId()); s.layer != nil {
		s.disk, err = filesystemOf(s.layer.GetFsId().GetMountpoint())
	}
	return s, err
}

// connect reads what has gone through a pod's network.
func (r *Reader) connect(p Pod, s *subject) error {
	if p.NetNS == "" {
		return nil
	}
	all, err := r.deps.Interfaces(p.NetNS)
	seen := map[string]bool{} // a series must not be told twice
	for _, i := range all {
		if !seen[i.Name] {
			s.interfaces = append(s.interfaces, i)
		}
		seen[i.Name] = true
	}
	return err
}

// count reads a cgroup.
func (r *Reader) count(path string, s *subject) error {
	var err error
	if s.usage, err = r.deps.Cgroups.Usage(path); err != nil {
		return err
	}
	s.details, err = r.deps.Cgroups.Details(path)
	return err
}

// network is a metric of each interface of a pod.
func network(name, help string, read func(Interface) uint64) metric {
	return metric{name, help, counter, []string{"interface"}, func(s *subject) (all []sample) {
		for _, i := range s.interfaces {
			all = append(all, sample{value: read(i), labels: []string{i.Name}})
		}
		return all
	}}
}

func ofCPU(u cgroup.Usage) *cgroup.Pressure    { return u.CPU.Pressure }
func ofMemory(u cgroup.Usage) *cgroup.Pressure { return u.Memory.Pressure }
func ofIO(u cgroup.Usage) *cgroup.Pressure     { return u.IO }

func some(p *cgroup.Pressure) uint64 { return p.Some.Total }
func full(p *cgroup.Pressure) uint64 { return p.Full.Total }

// pressure is a metric of waiting, where the kernel tells of it.
func pressure(name, help string, of func(cgroup.Usage) *cgroup.Pressure, part func(*cgroup.Pressure) uint64) metric {
	return metric{name, help, counter, nil, func(s *subject) []sample {
		p := of(s.usage)
		if p == nil {
			return nil
		}
		return single(inSeconds(part(p)))
	}}
}
