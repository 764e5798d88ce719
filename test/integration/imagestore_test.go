package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// TestImagesOfAnAdditionalStore are run, mapped and mounted as they lie there, and pulled from nowhere.
func TestImagesOfAnAdditionalStore(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	c := harness.Start(t, func(o *node.Options) { o.Config = "[images]\nadditional_image_stores = [\"" + store + "\"]\n" })
	busybox, files := c.Pull(images.Busybox), c.Pull(images.Files)
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(c.Root(), "storage"), store); err != nil {
		t.Fatal(err)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Images.ListImages(c.Context(), nil); err != nil || len(list) != 2 || !list[0].GetPinned() {
		t.Fatalf("listed: %v, %v", list, err)
	}
	of := func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image = busybox
		cfg.Mounts = []*runtime.Mount{imageVolume(files, "")}
	}
	for name, pod := range map[string]*harness.Pod{"plain": c.RunPod(), "mapped": c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)))} {
		if got := pod.Output("cat /vol/dir/sub/file; stat -c %u /bin/busybox", of); got != "in the image\n0\n" {
			t.Errorf("a %s pod's container said %q", name, got)
		}
	}
	err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: busybox})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), store) {
		t.Errorf("removal: %v", err)
	}
}
