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
