package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/node"
)

// TestImagesOnADiskOfTheirOwn: layers lie there, what containers write at crid's root. A crid that finds the disk not
// mounted does not start.
func TestImagesOnADiskOfTheirOwn(t *testing.T) {
	disk := harness.NewSmallDisk(t, harness.Ext4, filepath.Join(t.TempDir(), "disk"), 64)
	store := filepath.Join(disk.Path, "images")
	c := harness.Start(t, func(o *node.Options) { o.Config = "[images]\nstorage = \"" + store + "\"\n" })
	volume := c.Pull(images.Files)
	pod := c.RunPod()
	if got := pod.Output("cat /vol/dir/sub/file; dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; ls /big", withMounts(imageVolume(volume, ""))); got != "in the image\n/big\n" {
		t.Errorf("a container of another disk's image said %q", got)
	}
	mapped := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)))
	if got := mapped.Output("cat /vol/dir/sub/file; stat -c %u /bin/busybox", withMounts(imageVolume(volume, ""))); got != "in the image\n0\n" {
		t.Errorf("a container in a user namespace said %q", got)
	}
	info, err := c.Images.ImageFsInfo(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	image, container := info.GetImageFilesystems()[0], info.GetContainerFilesystems()[0]
	if image.GetFsId().GetMountpoint() != store || image.GetUsedBytes().GetValue() < 100<<10 {
		t.Errorf("images: %v", image)
	}
	if container.GetFsId().GetMountpoint() != filepath.Join(c.Root(), "rootfs") {
		t.Errorf("containers: %v", container)
	}
	eventually(t, "what containers wrote is counted at crid's root", func() bool {
		info, err := c.Images.ImageFsInfo(c.Context())
		return err == nil && info.GetContainerFilesystems()[0].GetUsedBytes().GetValue() > 3<<20
	})
	pod.Remove()
	mapped.Remove()
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	moveMount(t, disk.Path, elsewhere)
	if err := c.Node.Again(c.Context()); err == nil {
		t.Fatal("crid started without its image store")
	}
	if log := c.Log(); !strings.Contains(log, "the image store is not in "+store+" any more: mount the disk") {
		t.Errorf("crid did not say why it does not start:\n%s", log)
	}
	moveMount(t, elsewhere, disk.Path)
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: volume}, false); err != nil || s.GetImage() == nil {
		t.Errorf("after the disk came back: %v, %v", s, err)
	}
}

// moveMount works below shared mounts, too.
func moveMount(t *testing.T, from, to string) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal("bind mount:", err)
	}
	if err := unix.Unmount(from, 0); err != nil {
		t.Fatal("unmount:", err)
	}
}
