package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// imageVolume mounts an image as the kubelet does: by id, read-only.
func imageVolume(id, subPath string) *runtime.Mount {
	return &runtime.Mount{ContainerPath: "/vol", Readonly: true, Image: &runtime.ImageSpec{Image: id}, ImageSubPath: subPath}
}

func withMounts(mounts ...*runtime.Mount) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) { cfg.Mounts = mounts }
}

// mountedImages are the images that are mounted on the host.
func mountedImages(t *testing.T, c *harness.Crid) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.RunRoot, "rootfs/.images"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func TestImagesAsVolumes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		files, layers, nothing := c.Pull(images.Files), c.Pull(images.Volume), c.Pull(images.Nothing)
		pod := c.RunPod()
		for _, v := range []struct{ name, id, sub, shell, want string }{
			{"whole", files, "", "cat /vol/dir/sub/file /vol/etc/passwd; ls /vol", "in the image\nof the image\nabsolute\nclimbs\ndangles\ndir\netc\n"},
			{"of several layers", layers, "", "cat /vol/data/seed; test -x /vol/bin/busybox && echo tool", "seed\ntool\n"},
			{"without layers", nothing, "", "ls -A /vol | wc -l", "0\n"},
			{"a directory of it", files, "dir/sub", "cat /vol/file", "in the image\n"},
			{"a file of it", files, "dir/sub/file", "cat /vol", "in the image\n"},
			{"a program of it", files, "", "/vol/dir/run", "ran\n"},
			{"an absolute link in it", files, "absolute", "cat /vol/file", "in the image\n"},
			{"a link that climbs stays in it", files, "climbs/passwd", "cat /vol", "of the image\n"},
			{"never written", files, "dir", "touch /vol/x 2>&1 | grep -o Read-only; mount -o remount,rw /vol 2>/dev/null; touch /vol/x 2>&1 | grep -o Read-only", "Read-only\nRead-only\n"},
		} {
			t.Run(v.name, func(t *testing.T) {
				if got := pod.Output(v.shell, withMounts(imageVolume(v.id, v.sub))); got != v.want {
					t.Errorf("got %q, want %q", got, v.want)
				}
			})
		}
	})
}

// Not even a container that may mount writes to an image that others read.
func TestPrivilegedContainersCannotWriteToImages(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		files, nothing := c.Pull(images.Files), c.Pull(images.Nothing)
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
		for _, id := range []string{files, nothing} {
			got := pod.Output("mount -o remount,bind,rw /vol && touch /vol/x 2>&1 | grep -o Read-only", withMounts(imageVolume(id, "")),
				security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }))
			if got != "Read-only\n" {
				t.Errorf("got %q", got)
			}
		}
	})
}

func TestImageVolumesAreSharedAndCounted(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		id := c.Pull(images.Files)
		pod := c.RunPod()
		all := make([]*harness.Container, 6)
		c.Pull(images.Busybox)
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() { // ends with the creation
				ctr, err := pod.TryCreate(pod.ContainerConfig("sleep 1000", withMounts(imageVolume(id, "dir"))))
				if err != nil {
					t.Error(err)
				}
				all[i] = ctr
			})
		}
		wg.Wait()
		if ids := mountedImages(t, c); len(ids) != 1 || ids[0] != id {
			t.Errorf("mounted images: %v", ids)
		}
		all[0].Start()
		err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: id})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), all[0].ID) {
			t.Errorf("removing an image that is a volume: %v; want FailedPrecondition and the container's id", err)
		}
		m := all[0].Status().Mounts[0]
		if m.Image.Image != id || m.ImageSubPath != "dir" || !m.Readonly || m.HostPath != "" || !strings.Contains(m.Image.ImageRef, "@sha256:") {
			t.Errorf("status says %v", m)
		}
		c.Crash()
		for _, ctr := range all[1:] {
			ctr.Remove()
		}
		if got := all[0].Exec("cat /vol/sub/file"); got != "in the image\n" {
			t.Errorf("after others are gone: %q", got)
		}
		if ids := mountedImages(t, c); len(ids) != 1 {
			t.Errorf("mounted images while one container is left: %v", ids)
		}
		all[0].Remove()
		if ids := mountedImages(t, c); len(ids) != 0 {
			t.Errorf("mounted images without containers: %v", ids)
		}
		if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: id}); err != nil {
			t.Error(err)
		}
	})
}

func TestImageVolumesThatFail(t *testing.T) {
	c := harness.Start(t)
	id := c.Pull(images.Files)
	pod := c.RunPod()
	for name, m := range map[string]*runtime.Mount{
		"image is not here":    imageVolume(strings.Repeat("0", 64), ""),
		"image was not pulled": imageVolume(harness.Ref("crid/nonesuch:1"), ""),
		"path is not in it":    imageVolume(id, "dir/none"),
		"link dangles":         imageVolume(id, "dangles"),
		"path climbs":          imageVolume(id, "../../../etc"),
		"path climbs inside":   imageVolume(id, "dir/../dir"),
		"path is absolute":     imageVolume(id, "/dir"),
		"path is below a file": imageVolume(id, "dir/sub/file/x"),
		"handler is not known": {ContainerPath: "/vol", Image: &runtime.ImageSpec{Image: id, RuntimeHandler: "nonesuch"}},
	} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(m)))
		said := status.Convert(err).Message()
		if status.Code(err) != codes.Unknown || !strings.HasPrefix(said, "ImageVolumeMountFailed: ") || !strings.Contains(said, "mounts[0] (/vol): ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if ids := mountedImages(t, c); len(ids) != 0 {
		t.Errorf("mounted images: %v", ids)
	}
}
