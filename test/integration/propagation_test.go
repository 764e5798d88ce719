package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// privilegedPod is a pod whose containers may share mounts with the host.
func privilegedPod(c *harness.Crid) *harness.Pod {
	return c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
}

var privileged = security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true })

func bidirectional(host, inside string) *runtime.Mount {
	return &runtime.Mount{HostPath: host, ContainerPath: inside, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}
}

// A container that shares a directory with the host finds the host's files there, and the host keeps them.
func TestSharedMountsKeepWhatIsTheHosts(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		for _, name := range []string{"hosts", "hostname", "resolv.conf", "data/file"} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("the host's\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		pod := privilegedPod(c)
		ctr := pod.Run("sleep 1000", privileged, withMounts(bidirectional(dir, "/etc"), bidirectional(dir+"/data", "/data")),
			func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.Volume) })
		if got := ctr.Exec("cat /etc/hosts /etc/hostname /etc/resolv.conf /data/file"); got != strings.Repeat("the host's\n", 4) {
			t.Errorf("in the container: %q", got)
		}
		ctr.Remove()
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				t.Errorf("mounted on the host: %s", line)
			}
		}
	})
}

// A container that shares with the host what crid's own mounts lie in, too, does so to the full, and neither its mounts
// nor its end harm crid's: not even when it unmounts all that it sees.
func TestSharedMountsWithCridInThem(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		other := c.RunPod().Run("sleep 1000")
		dir := t.TempDir()
		ctr := privilegedPod(c).Run("sleep 1000", privileged, withMounts(bidirectional(filepath.Dir(c.RunRoot), "/above"), bidirectional(dir, "/vol")))
		name := filepath.Base(c.RunRoot)
		ctr.Exec("mkdir -p /above/" + name + "-driver && mount -t tmpfs tmpfs /above/" + name + "-driver && echo x > /above/" + name + "-driver/file")
		driver := c.RunRoot + "-driver"
		if got, err := os.ReadFile(filepath.Join(driver, "file")); err != nil || string(got) != "x\n" {
			t.Errorf("a mount beside crid's does not reach the host: %q, %v", got, err)
		}
		if got := ctr.Status().Mounts[0].Propagation; got != runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			t.Errorf("status says %v", got)
		}
		ctr.Exec("umount /above/" + name + "-driver; for m in $(cut -d' ' -f2 /proc/self/mounts | grep '^/above/" + name + "/' | sort -r); do umount $m; done; true")
		if err := os.Remove(driver); err != nil {
			t.Error(err)
		}
		if got := other.Exec("echo alive; cat /etc/hostname"); !strings.HasPrefix(got, "alive\npodhost") {
			t.Errorf("another container: %q", got)
		}
		if got := c.RunPod().Output("echo new"); got != "new\n" {
			t.Errorf("a new pod: %q", got)
		}
		c.Restart()
		if got := other.Exec("echo alive"); got != "alive\n" {
			t.Errorf("another container after a restart: %q", got)
		}
		ctr.Remove()
		other.Remove()
	})
}
