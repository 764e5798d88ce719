package harness

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
)

// Pod is one pod of a test, with the configuration that it was made from.
type Pod struct {
	ID     string
	Config *runtime.PodSandboxConfig
	c      *Crid
}

// Container is one container of a test's pod.
type Container struct {
	ID     string
	Config *runtime.ContainerConfig
	c      *Crid
}

// PodConfig is a configuration as the kubelet sends it for a plain pod: PID mode CONTAINER, its own network.
func (c *Crid) PodConfig(edits ...func(*runtime.PodSandboxConfig)) *runtime.PodSandboxConfig {
	cfg := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: "pod-" + rand.Text()[:8], Namespace: "default", Uid: rand.Text()},
		Hostname:     "podhost",
		LogDirectory: filepath.Join(c.Dir, "logs", rand.Text()),
		Labels:       map[string]string{"app": "test"},
		Annotations:  map[string]string{"note": "kept"},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    c.Cgroup,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}},
		},
	}
	for _, edit := range edits {
		edit(cfg)
	}
	return cfg
}

// RunPod runs a pod by the default handler.
func (c *Crid) RunPod(edits ...func(*runtime.PodSandboxConfig)) *Pod {
	c.t.Helper()
	cfg := c.PodConfig(edits...)
	id, err := c.Node.Runtime.RunPodSandbox(c.Context(), cfg, "")
	if err != nil {
		c.t.Fatal("run pod:", err)
	}
	return &Pod{ID: id, Config: cfg, c: c}
}

// Pod is the pod of an id that a test has got by itself.
func (c *Crid) Pod(id string, cfg *runtime.PodSandboxConfig) *Pod {
	return &Pod{ID: id, Config: cfg, c: c}
}

// Pull pulls one of the images of package images and returns its id.
func (c *Crid) Pull(image string) string {
	c.t.Helper()
	return c.PullRef(Ref(image))
}

// PullRef pulls an image by its reference and returns its id.
func (c *Crid) PullRef(ref string) string {
	c.t.Helper()
	id, err := c.Node.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: ref}, nil, nil)
	if err != nil {
		c.t.Fatal("pull image:", err)
	}
	return id
}

// Image makes an image of t's own, a layer of files on the busybox image with a changed configuration, and returns its
// reference.
func (c *Crid) Image(edit func(*v1.Config), files ...images.File) string {
	c.t.Helper()
	ref := Ref("test/" + strings.ToLower(rand.Text()[:12]) + ":1")
	if edit == nil {
		edit = func(*v1.Config) {}
	}
	if err := images.Make(c.Context(), ref, Ref(images.Busybox), edit, files...); err != nil {
		c.t.Fatal("make image:", err)
	}
	return ref
}

// Status is the pod's, without verbose information.
func (p *Pod) Status() *runtime.PodSandboxStatus {
	p.c.t.Helper()
	resp, err := p.c.Node.Runtime.PodSandboxStatus(p.c.Context(), p.ID, false)
	if err != nil {
		p.c.t.Fatal("status of pod:", err)
	}
	return resp.Status
}

// Stop stops the pod.
func (p *Pod) Stop() {
	p.c.t.Helper()
	if err := p.c.Node.Runtime.StopPodSandbox(p.c.Context(), p.ID); err != nil {
		p.c.t.Fatal("stop pod:", err)
	}
}

// Remove removes the pod, stopping it first where need be.
func (p *Pod) Remove() {
	p.c.t.Helper()
	if err := p.c.Node.Runtime.RemovePodSandbox(p.c.Context(), p.ID); err != nil {
		p.c.t.Fatal("remove pod:", err)
	}
}

// Config is a container of the busybox image that runs a shell command and inherits the pod's PID mode.
func (p *Pod) ContainerConfig(shell string, edits ...func(*runtime.ContainerConfig)) *runtime.ContainerConfig {
	name := "c-" + strings.ToLower(rand.Text()[:8])
	cfg := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: Ref(images.Busybox), UserSpecifiedImage: Ref(images.Busybox)},
		Command:  []string{"sh", "-c", shell},
		LogPath:  name + ".log",
		Labels:   map[string]string{"container": name},
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	for _, edit := range edits {
		edit(cfg)
	}
	return cfg
}

// TryCreate creates a container and returns crid's error instead of failing the test. The busybox image is
// pulled when the configuration names it.
func (p *Pod) TryCreate(cfg *runtime.ContainerConfig) (*Container, error) {
	p.c.t.Helper()
	if image, ok := strings.CutPrefix(cfg.Image.GetImage(), registry+"/"); ok {
		p.c.Pull(image)
	}
	id, err := p.c.Node.Runtime.CreateContainer(p.c.Context(), p.ID, cfg, p.Config)
	return p.Container(id, cfg), err
}

// Container is the container of an id that a test has got by itself.
func (p *Pod) Container(id string, cfg *runtime.ContainerConfig) *Container {
	return &Container{ID: id, Config: cfg, c: p.c}
}

// Create creates a container that runs a shell command.
func (p *Pod) Create(shell string, edits ...func(*runtime.ContainerConfig)) *Container {
	p.c.t.Helper()
	ctr, err := p.TryCreate(p.ContainerConfig(shell, edits...))
	if err != nil {
		p.c.t.Fatal("create container:", err)
	}
	return ctr
}

// Run creates and starts a container.
func (p *Pod) Run(shell string, edits ...func(*runtime.ContainerConfig)) *Container {
	p.c.t.Helper()
	ctr := p.Create(shell, edits...)
	ctr.Start()
	return ctr
}

// Output runs a container to its end and returns what it wrote to stdout and stderr, as its log has it.
func (p *Pod) Output(shell string, edits ...func(*runtime.ContainerConfig)) string {
	p.c.t.Helper()
	ctr := p.Run(shell, edits...)
	ctr.Wait()
	return ctr.Text()
}

// Start starts the container.
func (ctr *Container) Start() {
	ctr.c.t.Helper()
	if err := ctr.c.Node.Runtime.StartContainer(ctr.c.Context(), ctr.ID); err != nil {
		ctr.c.t.Fatal("start container:", err)
	}
}

// Stop stops the container with a grace in seconds.
func (ctr *Container) Stop(grace int64) {
	ctr.c.t.Helper()
	if err := ctr.c.Node.Runtime.StopContainer(ctr.c.Context(), ctr.ID, grace); err != nil {
		ctr.c.t.Fatal("stop container:", err)
	}
}

// Remove removes the container.
func (ctr *Container) Remove() {
	ctr.c.t.Helper()
	if err := ctr.c.Node.Runtime.RemoveContainer(ctr.c.Context(), ctr.ID); err != nil {
		ctr.c.t.Fatal("remove container:", err)
	}
}

// Status is the container's, without verbose information.
func (ctr *Container) Status() *runtime.ContainerStatus {
	ctr.c.t.Helper()
	resp, err := ctr.c.Node.Runtime.ContainerStatus(ctr.c.Context(), ctr.ID, false)
	if err != nil {
		ctr.c.t.Fatal("status of container:", err)
	}
	return resp.Status
}

// Wait waits until the container is EXITED and returns its status then.
func (ctr *Container) Wait() *runtime.ContainerStatus {
	ctr.c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(isolate.Patient(callLimit))
	for {
		if s := ctr.Status(); s.State == runtime.ContainerState_CONTAINER_EXITED {
			return s
		}
		select {
		case <-tick.C:
		case <-limit:
			ctr.c.t.Fatalf("container %s is %v after %v", ctr.ID, ctr.Status().State, isolate.Patient(callLimit))
		}
	}
}

// TryExec runs a shell command in the container, for a few seconds at most.
func (ctr *Container) TryExec(shell string) error {
	ctr.c.t.Helper()
	_, _, err := ctr.c.Node.Runtime.ExecSync(ctr.c.Context(), ctr.ID, []string{"sh", "-c", shell}, execLimit)
	return err
}

// execLimit bounds a command that should be done at once.
const execLimit = 5 * time.Second

// Exec runs a shell command in the container and fails the test unless it exits with 0.
func (ctr *Container) Exec(shell string) string {
	ctr.c.t.Helper()
	stdout, stderr, err := ctr.c.Node.Runtime.ExecSync(ctr.c.Context(), ctr.ID, []string{"sh", "-c", shell}, isolate.Patient(callLimit))
	if err != nil {
		ctr.c.t.Fatalf("exec %q: %v\nstdout: %s\nstderr: %s", shell, err, stdout, stderr)
	}
	return string(stdout)
}

// Log is the container's log file as it is.
func (ctr *Container) Log() string {
	ctr.c.t.Helper()
	raw, err := os.ReadFile(ctr.Status().LogPath)
	if err != nil {
		ctr.c.t.Fatal("read log:", err)
	}
	return string(raw)
}

// Text is the log without the stamps of its lines.
func (ctr *Container) Text() string {
	ctr.c.t.Helper()
	var text strings.Builder
	for line := range strings.Lines(ctr.Log()) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			ctr.c.t.Fatalf("log line %q has not four fields", line)
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		text.WriteString(fields[3])
	}
	return text.String()
}
