package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// How much a worker has at most.
const (
	maxPods       = 3
	maxContainers = 3 // in a pod
)

// worker is a client with pods of its own: it alone changes them, so it knows what must be true of them.
type worker struct {
	*soak
	rand *rand.Rand
	pods []*pod
}

// pod is a pod as its worker knows it.
type pod struct {
	*harness.Pod
	stopped    bool
	containers []*container
}

// container is a container as its worker knows it.
type container struct {
	id       string
	config   *runtime.ContainerConfig
	kind     kind
	started  bool
	ended    bool // stopped, or its pod was
	rotated  int
	limit    int64 // of memory, bytes
	exitCode int32
}

// kind is what a container does once it is started.
type kind int

const (
	loud     kind = iota // counts in its log until it is killed
	short                // ends by itself soon
	stubborn             // does not heed its stop signal
	brood                // has children
	kinds
)

// script is what a container of the kind runs.
func (k kind) script(code int32) string {
	switch k {
	case loud:
		return "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"
	case short:
		return fmt.Sprintf("sleep 0.%d; exit %d", code%10, code)
	case stubborn:
		return "trap '' TERM; while :; do sleep 1; done"
	default:
		return "sleep 1000 & sleep 1000 & (setsid sleep 1000 &) ; wait"
	}
}

// live does one thing after another until ctx ends.
func (w *worker) live(ctx context.Context) {
	for ctx.Err() == nil && !w.t.Failed() {
		w.step()
	}
}

func (w *worker) step() {
	if len(w.pods) == 0 {
		w.runPod()
		return
	}
	p := w.pods[w.rand.IntN(len(w.pods))]
	switch n := w.rand.IntN(100); {
	case n < 8 && len(w.pods) < maxPods:
		w.runPod()
	case n < 9:
		w.stopPod(p)
	case n < 12:
		w.removePod(p)
	case n < 30 && len(p.containers) < maxContainers && !p.stopped:
		w.create(p)
	case n < 33:
		w.checkPod(p)
	case len(p.containers) > 0:
		w.touch(p, p.containers[w.rand.IntN(len(p.containers))])
	}
}

// touch does something to a container that its state allows.
func (w *worker) touch(p *pod, c *container) {
	n := w.rand.IntN(100)
	running := c.started && !c.ended && c.kind != short
	switch {
	case !c.started && !c.ended && n < 70:
		w.start(c)
	case n < 5:
		w.remove(p, c)
	case n < 10:
		w.stop(c)
	case n < 50 && running:
		w.exec(c)
	case n < 60 && running:
		w.update(c)
	case n < 70 && running && c.kind == loud:
		w.rotate(c)
	default:
		w.check(c)
	}
}

func (w *worker) runPod() {
	cfg := w.c.PodConfig(func(cfg *runtime.PodSandboxConfig) {
		switch w.rand.IntN(4) {
		case 0:
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		case 1:
			ids := []*runtime.IDMapping{{HostId: uint32(100000 + 65536*w.rand.IntN(100)), Length: 65536}}
			cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
		}
	})
	w.call("RunPodSandbox", func(ctx context.Context) error {
		got, err := w.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: cfg})
		if err == nil {
			w.pods = append(w.pods, &pod{Pod: w.c.Pod(got.PodSandboxId, cfg)})
		}
		return err
	})
}

func (w *worker) stopPod(p *pod) {
	if !w.call("StopPodSandbox", func(ctx context.Context) error {
		_, err := w.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
		return err
	}) {
		return
	}
	p.stopped = true
	for _, c := range p.containers {
		c.ended = true
	}
	w.checkPod(p)
}

func (w *worker) removePod(p *pod) {
	for _, c := range p.containers {
		w.checkLog(c)
	}
	w.call("RemovePodSandbox", func(ctx context.Context) error {
		_, err := w.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID})
		return err
	})
	w.pods = without(w.pods, p)
}

func (w *worker) create(p *pod) {
	c := &container{kind: kind(w.rand.IntN(int(kinds))), exitCode: int32(w.rand.IntN(3)), limit: 64 << 20}
	c.config = p.ContainerConfig(c.kind.script(c.exitCode), func(cfg *runtime.ContainerConfig) {
		cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: c.limit}
	})
	if w.call("CreateContainer", func(ctx context.Context) error {
		got, err := w.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.ID, Config: c.config, SandboxConfig: p.Config})
		c.id = got.GetContainerId()
		return err
	}) {
		p.containers = append(p.containers, c)
	}
}

// start takes a start that an earlier attempt has made, unheard, for done.
func (w *worker) start(c *container) {
	c.started = w.call("StartContainer", func(ctx context.Context) error {
		_, err := w.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.id})
		return err
	}, codes.FailedPrecondition)
}

func (w *worker) stop(c *container) {
	c.ended = w.call("StopContainer", func(ctx context.Context) error {
		_, err := w.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.id, Timeout: int64(w.rand.IntN(2))})
		return err
	})
	w.check(c)
}

func (w *worker) remove(p *pod, c *container) {
	w.checkLog(c)
	w.call("RemoveContainer", func(ctx context.Context) error {
		_, err := w.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.id})
		return err
	})
	p.containers = without(p.containers, c)
}

func (w *worker) exec(c *container) {
	word := strconv.FormatUint(w.rand.Uint64(), 36)
	w.call("ExecSync", func(ctx context.Context) error {
		got, err := w.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "echo " + word + "; exit 3"}, Timeout: 60})
		if err == nil && (string(got.Stdout) != word+"\n" || got.ExitCode != 3) {
			return fmt.Errorf("exec in container %s answered %q and code %d, stderr %q", c.id, got.Stdout, got.ExitCode, got.Stderr)
		}
		return err
	})
}

func (w *worker) update(c *container) {
	limit := int64(64+w.rand.IntN(64)) << 20
	if w.call("UpdateContainerResources", func(ctx context.Context) error {
		_, err := w.runtime.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: limit},
		})
		return err
	}) {
		c.limit = limit
	}
	w.check(c)
}

// rotate does what the kubelet does to a log that has grown.
func (w *worker) rotate(c *container) {
	path := w.logPath(c)
	if err := os.Rename(path, rotatedPath(path, c.rotated)); err != nil {
		w.t.Error("rotate log:", err)
		return
	}
	c.rotated++
	w.call("ReopenContainerLog", func(ctx context.Context) error {
		_, err := w.runtime.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: c.id})
		return err
	})
}

func rotatedPath(path string, n int) string { return fmt.Sprintf("%s.%d", path, n) }

func (w *worker) logPath(c *container) string {
	for _, p := range w.pods {
		for _, other := range p.containers {
			if other == c {
				return filepath.Join(p.Config.LogDirectory, c.config.LogPath)
			}
		}
	}
	return ""
}

// checkPod compares what crid says of a pod with what it must be.
func (w *worker) checkPod(p *pod) {
	w.call("PodSandboxStatus", func(ctx context.Context) error {
		got, err := w.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
		if err != nil {
			return err
		}
		want := runtime.PodSandboxState_SANDBOX_READY
		if p.stopped {
			want = runtime.PodSandboxState_SANDBOX_NOTREADY
		}
		if got.Status.State != want {
			return fmt.Errorf("pod %s is %s; want %s", p.ID, got.Status.State, want)
		}
		return nil
	})
}

// check compares what crid says of a container with what it must be.
func (w *worker) check(c *container) {
	w.call("ContainerStatus", func(ctx context.Context) error {
		got, err := w.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.id})
		if err != nil {
			return err
		}
		return c.differs(got.Status)
	})
}

// differs says what is wrong with a status.
func (c *container) differs(s *runtime.ContainerStatus) error {
	exited := s.State == runtime.ContainerState_CONTAINER_EXITED
	switch {
	case c.ended && !exited, !c.started && !c.ended && s.State != runtime.ContainerState_CONTAINER_CREATED:
		return fmt.Errorf("container %s is %s; started %t, ended %t", c.id, s.State, c.started, c.ended)
	case c.started && !c.ended && c.kind != short && s.State != runtime.ContainerState_CONTAINER_RUNNING:
		return fmt.Errorf("container %s is %s with code %d, %s %q; want it to run", c.id, s.State, s.ExitCode, s.Reason, s.Message)
	case exited && c.started && !c.ended && s.ExitCode != c.exitCode:
		return fmt.Errorf("container %s ended with code %d, %s %q; want %d", c.id, s.ExitCode, s.Reason, s.Message, c.exitCode)
	case s.Resources.GetLinux().GetMemoryLimitInBytes() != c.limit:
		return fmt.Errorf("container %s has a memory limit of %d; want %d", c.id, s.Resources.GetLinux().GetMemoryLimitInBytes(), c.limit)
	case exited && s.FinishedAt < s.CreatedAt:
		return fmt.Errorf("container %s ended at %v, before it was made", c.id, time.Unix(0, s.FinishedAt))
	}
	return nil
}

// checkLog reads a counting container's log through all its rotations: no number may be missing.
func (w *worker) checkLog(c *container) {
	if c.kind != loud || !c.started {
		return
	}
	path := w.logPath(c)
	var paths []string
	for n := range c.rotated {
		paths = append(paths, rotatedPath(path, n))
	}
	next := 1
	for _, path := range append(paths, path) {
		raw, err := os.ReadFile(path)
		if err != nil {
			w.t.Error("read log:", err)
			return
		}
		for line := range strings.Lines(string(raw)) {
			if !strings.HasSuffix(line, "\n") {
				break // being written
			}
			fields := strings.Fields(line)
			if len(fields) != 4 || fields[3] != strconv.Itoa(next) {
				w.t.Errorf("log %s of container %s: line %q; want the number %d", path, c.id, line, next)
				return
			}
			next++
		}
	}
	w.count(func() { w.done["log read"]++ })
}

// checkAll looks at everything that the worker has once more.
func (w *worker) checkAll() {
	for _, p := range w.pods {
		w.checkPod(p)
		for _, c := range p.containers {
			w.check(c)
			w.checkLog(c)
		}
	}
}

func without[T comparable](list []T, gone T) []T {
	var kept []T
	for _, x := range list {
		if x != gone {
			kept = append(kept, x)
		}
	}
	return kept
}
