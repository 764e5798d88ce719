package crash

import (
	"os"
	"path/filepath"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

var imageScenarios = []scenario{
	{name: "PullImage", set: pull},
	{name: "PullImage/artifact", set: pullArtifact},
	{name: "RemoveImage", set: removeImage},
}

func pull(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox) // what it is built on is there in each case, as the one before may have left it
	forget(t, c, images.Volume)
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)}, nil, nil)
			return err
		},
		after: func() {
			if got := c.RunPod(onHost).Output("cat /data/seed", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.Volume) }); got != "seed\n" {
				t.Errorf("a container of the pulled image said %q", got)
			}
		},
	}
}

func pullArtifact(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox)
	forget(t, c, images.Artifact)
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Artifact)}, nil, nil)
			return err
		},
		after: func() {
			volume := &runtime.Mount{ContainerPath: "/vol", Readonly: true, Image: &runtime.ImageSpec{Image: harness.Ref(images.Artifact)}}
			pod := c.RunPod(onHost)
			if got := pod.Output("cat /vol/model/weights", func(cfg *runtime.ContainerConfig) { cfg.Mounts = []*runtime.Mount{volume} }); got != "heavy\n" {
				t.Errorf("a container of the pulled artifact said %q", got)
			}
		},
	}
}

// removeImage removes an image that a container had.
func removeImage(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Volume)
	pod := c.RunPod(onHost)
	pod.Run("true", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.Volume) }).Wait()
	pod.Remove()
	eventually(t, "an empty trash", func() bool {
		left, err := os.ReadDir(filepath.Join(c.Root(), "rootfs/.trash"))
		return err == nil && len(left) == 0
	})
	return act{
		call: func() error {
			return c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)})
		},
		after: func() {
			s, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)}, false)
			if err != nil || s.Image != nil {
				t.Errorf("status of the removed image: %v, %v", s, err)
			}
		},
	}
}
