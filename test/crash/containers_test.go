package crash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

var containerScenarios = []scenario{
	{name: "CreateContainer", set: create(func(t *testing.T, c *harness.Crid) (*harness.Pod, *runtime.ContainerConfig) {
		forget(t, c, images.Volume)
		pod := c.RunPod()
		return pod, pod.ContainerConfig("sleep 1000", ofEverything(t, c))
	})},
	{name: "CreateContainer of a user namespace", set: create(func(t *testing.T, c *harness.Crid) (*harness.Pod, *runtime.ContainerConfig) {
		pod := c.RunPod(withUsers)
		return pod, pod.ContainerConfig("sleep 1000", ofUsers(t, c))
	})},
	{name: "CreateContainer of a shared PID namespace", set: create(func(t *testing.T, c *harness.Crid) (*harness.Pod, *runtime.ContainerConfig) {
		pod := c.RunPod(sharedPIDs)
		return pod, pod.ContainerConfig("sleep 1000")
	})},
	{name: "CreateContainer by runc", options: byRunc, cases: of("container/", "monitor/", "oci/", "state/"), set: create(func(_ *testing.T, c *harness.Crid) (*harness.Pod, *runtime.ContainerConfig) {
		pod := c.RunPod()
		return pod, pod.ContainerConfig("sleep 1000")
	})},
	{name: "RemoveContainer", set: removeContainer()},
	{name: "RemoveContainer of namespaces", set: removeContainer(withUsers, sharedPIDs)},
}

// byRunc makes runc the runtime; elsewhere it is crun, where that is installed.
var byRunc = []harness.Option{harness.Runtime("runc")}

func sharedPIDs(cfg *runtime.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
}

// forget removes an image, so that the next container is its first.
func forget(t *testing.T, c *harness.Crid, image string) {
	t.Helper()
	if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(image)}); err != nil {
		t.Fatal(err)
	}
}

// ofEverything lets a container be made in all steps that there are without a user namespace.
func ofEverything(t *testing.T, c *harness.Crid) func(*runtime.ContainerConfig) {
	volume := c.Pull(images.Files)
	absent := filepath.Join(t.TempDir(), "absent")
	if err := os.RemoveAll(absent); err != nil {
		t.Fatal(err)
	}
	return func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image, cfg.Image.UserSpecifiedImage = harness.Ref(images.Volume), harness.Ref(images.Volume)
		cfg.Envs = []*runtime.KeyValue{{Key: "RAW", Value: []byte("\xff")}}
		cfg.Mounts = []*runtime.Mount{
			{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: volume}},
			{ContainerPath: "/host", HostPath: absent},
		}
	}
}

// ofUsers lets a container of a user namespace have what is mounted with mapped ids.
func ofUsers(t *testing.T, c *harness.Crid) func(*runtime.ContainerConfig) {
	volume, dir := c.Pull(images.Files), t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ids := []*runtime.IDMapping{{HostId: 1 << 20, Length: 65536}}
	return func(cfg *runtime.ContainerConfig) {
		cfg.Mounts = []*runtime.Mount{
			{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: volume}},
			{ContainerPath: "/host", HostPath: dir, UidMappings: ids, GidMappings: ids},
			{ContainerPath: "/file", HostPath: file, UidMappings: ids, GidMappings: ids},
		}
	}
}

func create(prepare func(*testing.T, *harness.Crid) (*harness.Pod, *runtime.ContainerConfig)) func(*testing.T, *harness.Crid) act {
	return func(t *testing.T, c *harness.Crid) act {
		pod, cfg := prepare(t, c)
		c.Pull(strings.TrimPrefix(cfg.Image.Image, harness.Ref("")))
		var ctr *harness.Container
		return act{
			call: func() error {
				id, err := c.Runtime.CreateContainer(c.Context(), pod.ID, cfg, pod.Config)
				ctr = pod.Container(id, cfg)
				return err
			},
			between: func() { works(t, pod) },
			after: func() {
				list, err := c.Runtime.ListContainers(c.Context(), nil)
				if err != nil || len(list) != 1 || list[0].Id != ctr.ID {
					t.Errorf("listed: %v, %v; told: %s", list, err, ctr.ID)
				}
				if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_CREATED {
					t.Errorf("the container is %v", s.State)
				}
				ctr.Start()
				ctr.Exec("true")
			},
		}
	}
}

// removeContainer removes a container that runs with an image as a volume.
func removeContainer(edits ...func(*runtime.PodSandboxConfig)) func(*testing.T, *harness.Crid) act {
	return func(t *testing.T, c *harness.Crid) act {
		volume := c.Pull(images.Files)
		pod := c.RunPod(edits...)
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: volume}}}
		})
		return act{
			call: func() error { return c.Runtime.RemoveContainer(c.Context(), ctr.ID) },
			between: func() {
				works(t, pod)
				consistent(t, c, ctr)
			},
			after: func() {
				if _, err := c.Runtime.ContainerStatus(c.Context(), ctr.ID, false); status.Code(err) != codes.NotFound {
					t.Errorf("status of the removed container: %v", err)
				}
				works(t, pod)
			},
		}
	}
}

// consistent looks whether a container is what it is said to be: one that runs can be talked to.
func consistent(t *testing.T, c *harness.Crid, ctr *harness.Container) {
	t.Helper()
	runs := func() bool { // it may be removed at any time
		s, err := c.Runtime.ContainerStatus(c.Context(), ctr.ID, false)
		return err == nil && s.Status.State == runtime.ContainerState_CONTAINER_RUNNING
	}
	// One that is just being ended may be said to run for a moment.
	eventually(t, "a container that is said to run and can be talked to", func() bool { return !runs() || ctr.TryExec("true") == nil })
}
