package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
	"github.com/crid/crid/test/stuck"
)

// suffixes are of the names of endpoints without trouble and with it.
var suffixes = [...]string{"", "-troubled"}

// troubled is an endpoint with a container whose runtime hangs at start, a pod whose network sleeps and a container whose
// volume hangs.
type troubled struct {
	*endpoint
	runtime stuck.Runtime
	volume  *stuck.Volume
}

// besides measures crid and its peer and, in turn with them, another crid and peer that have trouble.
func (f flags) besides(ctx context.Context, registry string) error {
	var quiet, amidTrouble []*endpoint
	var rt stuck.Runtime
	for i := range suffixes {
		n, some, err := f.hangable(ctx, i, registry, &rt)
		if err != nil {
			return err
		}
		defer n.Kill() // with it goes what hangs
		quiet, amidTrouble = amidTrouble, some
	}
	var all []*endpoint
	for i, e := range quiet {
		all = append(all, e, amidTrouble[i])
	}
	if err := f.pull(ctx, all); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, e := range amidTrouble {
		if err := begin(ctx, e, rt, f.image); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	err := f.askAmid(ctx, all)
	cancel()
	return errors.Join(err, report(all), stuck.End())
}

// hangable starts a crid, and its peer, that know a runtime and a plugin that can hang.
func (f flags) hangable(ctx context.Context, i int, registry string, rt *stuck.Runtime) (*node.Node, []*endpoint, error) {
	name, subnet := fmt.Sprintf("bench%d", i), fmt.Sprintf("10.%d.0.0/16", 86+i)
	root, _ := node.Places(name)
	dir := filepath.Dir(root)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		*rt, err = stuck.NewRuntime(dir, f.runtime)
	}
	if err = errors.Join(err, stuck.NewPlugin(dir)); err != nil {
		return nil, nil, err
	}
	n, err := f.start(ctx, node.Options{
		Name: name, Registry: registry, Conflist: conflist(name, subnet, fmt.Sprintf(`{"type": %q}`, stuck.PluginName)),
		Config: fmt.Sprintf("[runtimes.hanging]\npath = %q\n[network]\nbin_dirs = [%s]", rt.Path, plugins(dir)),
	})
	if err != nil {
		return nil, nil, err
	}
	all, err := f.dialBoth(ctx, suffixes[i], n, registry, fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.hanging]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.hanging.options]
  BinaryName = %q
`, rt.Path))
	if err != nil {
		return nil, nil, errors.Join(err, n.Kill())
	}
	return n, all, nil
}

// begin makes trouble for an endpoint.
func begin(ctx context.Context, e *endpoint, rt stuck.Runtime, image string) error {
	dir := filepath.Join(isolate.Scratch(), "volume-"+e.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	volume, err := stuck.MountVolume(dir)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, volume.Abort)
	return troubled{e, rt, volume}.begin(ctx, image)
}

// begin makes the trouble and returns once all of it hangs, until ctx ends.
func (d troubled) begin(ctx context.Context, image string) error {
	pod, cfg := d.configs(image)
	run, err := d.endpoint.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: pod, RuntimeHandler: "hanging"})
	if err != nil {
		return err
	}
	made, err := d.endpoint.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: cfg, SandboxConfig: pod})
	if err != nil {
		return err
	}
	neighbor, err := d.up(ctx, image)
	if err != nil {
		return err
	}
	if err := errors.Join(d.runtime.Heal(), d.runtime.Hang("start", made.ContainerId)); err != nil {
		return err
	}
	sleeping, err := stuck.Playing(stuck.PluginName)
	if err != nil {
		return err
	}
	d.volume.Stick()
	sleepy, _ := d.configs(image)
	sleepy.Metadata.Name = stuck.SleepyPod(sleepy.Metadata.Name)
	_, blocked := d.configs(image)
	blocked.Metadata.Name = "blocked"
	blocked.Mounts = []*runtime.Mount{{HostPath: filepath.Join(d.volume.Dir, "sub"), ContainerPath: "/v"}}
	ended := make(chan error, 3)
	for _, call := range []func() error{
		func() error {
			_, err := d.endpoint.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: made.ContainerId})
			return err
		},
		func() error {
			_, err := d.endpoint.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sleepy})
			return err
		},
		func() error {
			_, err := d.endpoint.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: neighbor.id, Config: blocked, SandboxConfig: neighbor.cfg})
			return err
		},
	} {
		go func() { ended <- call() }() // ends with ctx
	}
	return d.hangs(ended, len(sleeping))
}

// hangs waits until all the trouble is there, beside so many plugins that sleep for others.
func (d troubled) hangs(ended <-chan error, others int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	stuckVolume := false
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("what should hang has ended: %w", err)
		case <-d.volume.Asked:
			stuckVolume = true
		case <-limit:
			return errors.New("not all hangs within 30 seconds")
		case <-tick.C:
		}
		now, err := stuck.Playing(stuck.PluginName)
		if err != nil || stuckVolume && d.runtime.Hangs("start") && len(now) > others {
			return err
		}
	}
}

// askAmid runs a pod and asks everything, round after round, each endpoint first in turn.
func (f flags) askAmid(ctx context.Context, all []*endpoint) error {
	for round := range f.rounds {
		for i := range all {
			e := all[(i+round)%len(all)]
			p, err := e.up(ctx, f.image)
			for range 10 {
				err = errors.Join(err, e.question(ctx, p))
			}
			if err := errors.Join(err, e.down(ctx, p)); err != nil {
				return err
			}
		}
	}
	return nil
}

// question asks everything once that the kubelet asks all the time.
func (e *endpoint) question(ctx context.Context, p *pod) error {
	rt, im := e.runtime, e.images
	return errors.Join(
		ask(ctx, e, "ListPodSandbox", rt.ListPodSandbox, &runtime.ListPodSandboxRequest{}),
		ask(ctx, e, "ListContainers", rt.ListContainers, &runtime.ListContainersRequest{}),
		ask(ctx, e, "PodSandboxStatus", rt.PodSandboxStatus, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id}),
		ask(ctx, e, "ContainerStatus", rt.ContainerStatus, &runtime.ContainerStatusRequest{ContainerId: p.container}),
		ask(ctx, e, "ContainerStats", rt.ContainerStats, &runtime.ContainerStatsRequest{ContainerId: p.container}),
		ask(ctx, e, "ListContainerStats", rt.ListContainerStats, &runtime.ListContainerStatsRequest{}),
		ask(ctx, e, "ListPodSandboxStats", rt.ListPodSandboxStats, &runtime.ListPodSandboxStatsRequest{}),
		ask(ctx, e, "Status", rt.Status, &runtime.StatusRequest{}),
		ask(ctx, e, "ListImages", im.ListImages, &runtime.ListImagesRequest{}),
		ask(ctx, e, "ImageFsInfo", im.ImageFsInfo, &runtime.ImageFsInfoRequest{}),
	)
}

func ask[Req, Resp any](ctx context.Context, e *endpoint, what string, call func(context.Context, Req, ...grpc.CallOption) (Resp, error), r Req) error {
	return e.timed(what, func() error {
		_, err := call(ctx, r)
		return err
	})
}
