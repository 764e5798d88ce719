package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

// endpoint is one CRI server, one persistent connection to it, and what was measured.
type endpoint struct {
	name    string
	words   []string // its processes hold one of them in their command line
	runtime runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
	cgroup  string

	mu    sync.Mutex // guards the fields below
	took  map[string][]time.Duration
	count int
}

func dial(name, socket string, words []string) (*endpoint, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return &endpoint{
		name: name, words: words, took: map[string][]time.Duration{},
		runtime: runtime.NewRuntimeServiceClient(conn), images: runtime.NewImageServiceClient(conn),
		cgroup: isolate.CgroupParent(),
	}, nil
}

// timed notes how long call took under what.
func (e *endpoint) timed(what string, call func() error) error {
	began := time.Now()
	err := call()
	e.note(what, time.Since(began))
	if err != nil {
		return fmt.Errorf("%s: %s: %w", e.name, what, err)
	}
	return nil
}

func (e *endpoint) note(what string, took time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.took[what] = append(e.took[what], took)
}

// pod is one running pod with one container.
type pod struct {
	cfg           *runtime.PodSandboxConfig
	id, container string
}

// configs are those of a pod and its one container as the kubelet sends them: PID mode CONTAINER, seccomp RuntimeDefault.
func (e *endpoint) configs(image string) (*runtime.PodSandboxConfig, *runtime.ContainerConfig) {
	e.mu.Lock()
	e.count++
	name := e.name + "-" + strconv.Itoa(e.count)
	e.mu.Unlock()
	options := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	seccomp := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	pod := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     "bench",
		LogDirectory: filepath.Join(cmp.Or(isolate.Scratch(), os.TempDir()), "crid-bench-logs", name),
		Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: filepath.Join(e.cgroup, name), // one for each pod, as the kubelet does
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: options, Seccomp: seccomp}},
	}
	return pod, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "c"},
		Image:    &runtime.ImageSpec{Image: image},
		Command:  []string{"sleep", "3600"},
		LogPath:  "c.log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 256 << 20},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: options, Seccomp: seccomp},
		},
	}
}

// up runs a pod with one container.
func (e *endpoint) up(ctx context.Context, image string) (*pod, error) {
	p := &pod{}
	var cfg *runtime.ContainerConfig
	p.cfg, cfg = e.configs(image)
	began := time.Now()
	for _, step := range []struct {
		what string
		call func() error
	}{
		{"RunPodSandbox", func() error {
			r, err := e.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.cfg})
			p.id = r.GetPodSandboxId()
			return err
		}},
		{"CreateContainer", func() error {
			r, err := e.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.cfg})
			p.container = r.GetContainerId()
			return err
		}},
		{"StartContainer", func() error {
			_, err := e.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.container})
			return err
		}},
	} {
		if err := e.timed(step.what, step.call); err != nil {
			return p, err
		}
	}
	e.note("= pod up", time.Since(began))
	return p, nil
}

// ask makes the calls that only read, and one exec.
func (e *endpoint) ask(ctx context.Context, p *pod) error {
	return errors.Join(
		e.timed("PodSandboxStatus", func() error {
			_, err := e.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
			return err
		}),
		e.timed("ContainerStatus", func() error {
			_, err := e.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.container})
			return err
		}),
		e.timed("ExecSync true", func() error {
			_, err := e.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 30})
			return err
		}),
	)
}

// down takes a pod away as the kubelet does: the container, then the pod, then both records.
func (e *endpoint) down(ctx context.Context, p *pod) error {
	began := time.Now()
	err := errors.Join(
		e.timed("StopContainer", func() error {
			_, err := e.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container})
			return err
		}),
		e.timed("StopPodSandbox", func() error {
			_, err := e.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
			return err
		}),
		e.timed("RemoveContainer", func() error {
			_, err := e.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: p.container})
			return err
		}),
		e.timed("RemovePodSandbox", func() error {
			_, err := e.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
			return err
		}),
	)
	e.note("= teardown", time.Since(began))
	return err
}

// memory is the proportional set size of the endpoint's processes, in bytes.
func (e *endpoint) memory() (uint64, error) {
	var total uint64
	err := e.processes(func(dir string) {
		rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			return // gone meanwhile
		}
		for line := range strings.Lines(string(rollup)) {
			var kib uint64
			if n, err := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 && err == nil {
				total += kib << 10
			}
		}
	})
	return total, err
}

// processes calls look with the directory of each of the endpoint's processes.
func (e *endpoint) processes(look func(dir string)) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && e.mine(string(cmdline)) {
			look(dir)
		}
	}
	return err
}

func (e *endpoint) mine(cmdline string) bool {
	for _, word := range e.words {
		if strings.Contains(cmdline, word) {
			return true
		}
	}
	return false
}

// startContainerd starts a containerd beside n, with n's network and runc, and more of a configuration.
func startContainerd(ctx context.Context, binary string, n *node.Node, registry, more string) (*endpoint, error) {
	dir := filepath.Join(n.Dir, "containerd")
	socket := filepath.Join(n.RunRoot, "containerd.sock")
	if err := os.MkdirAll(filepath.Join(dir, "certs.d", registry), 0o755); err != nil {
		return nil, err
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n", registry)
	config := fmt.Sprintf(containerdConfig, dir, n.RunRoot, socket, n.CNIDir(), registry, plugins(n.Dir)) + more
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "certs.d", registry, "hosts.toml"), []byte(hosts), 0o600),
		os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600),
	); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, "--config", filepath.Join(dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"))
	if err := cmd.Start(); err != nil { // ends with the isolation
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	e, err := dial("containerd", socket, []string{filepath.Base(binary) + "\x00", "containerd-shim", "/pause"})
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := e.runtime.Version(ctx, &runtime.VersionRequest{})
		if err == nil {
			return e, nil
		}
		select {
		case <-tick.C:
		case <-time.After(30 * time.Second):
		case <-ctx.Done():
			text, readErr := os.ReadFile(log.Name())
			return nil, errors.Join(err, readErr, errors.New(string(bytes.TrimSpace(text))))
		}
	}
}

// plugins are where CNI plugins are, as TOML has a list: first in a node's own directory.
func plugins(dir string) string {
	return fmt.Sprintf(`%q, "/usr/lib/cni", "/opt/cni/bin"`, dir)
}

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[2]s/containerd"
[grpc]
  address = "%[3]s"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "%[1]s/certs.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "%[5]s/crid/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [%[6]s]
  conf_dir = "%[4]s"
`
