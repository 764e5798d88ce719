package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// labelOf is the SELinux label of a process.
func labelOf(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(raw), "\x00\n")
}

// fileLabel is the SELinux label of a file.
func fileLabel(t *testing.T, path string) string {
	t.Helper()
	raw := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", raw)
	if err != nil {
		t.Fatal(path, err)
	}
	return strings.TrimRight(string(raw[:n]), "\x00")
}

// level is the last part of a label.
func level(l string) string {
	return strings.SplitN(l, ":", 4)[3]
}

// Containers and their files have the labels that the policy has for containers, each pod with a pair of categories of its
// own, also after a restart; options say otherwise.
func TestSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		t.Skip("this host has no SELinux")
	}
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		one, other := privilegedPod(c), c.RunPod()
		volume := filepath.Join(t.TempDir(), "volume")
		put(t, filepath.Join(volume, "file"), "", 0o644)
		a, b := one.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true}}
		}), other.Run("sleep 1000")
		label, foreign := labelOf(t, a.PID()), labelOf(t, b.PID())
		if !strings.HasPrefix(label, "system_u:system_r:container_t:s0:c") || level(label) == level(foreign) {
			t.Errorf("a container is %s, one of another pod %s", label, foreign)
		}
		if sibling := one.Run("sleep 1000"); labelOf(t, sibling.PID()) != label {
			t.Errorf("containers of a pod are %s and %s", label, labelOf(t, sibling.PID()))
		}
		const command = "cat /proc/self/attr/current | tr -d '\\000'"
		if got := strings.TrimSpace(a.Exec(command)); got != label {
			t.Errorf("a command is %s, the container %s", got, label)
		}
		want := "system_u:object_r:container_file_t:" + level(label)
		root := fmt.Sprintf("/proc/%d/root", a.PID())
		for _, file := range []string{"/bin/sh", "/etc/hosts", "/dev/shm", "/volume", "/volume/file"} {
			if got := fileLabel(t, root+file); got != want {
				t.Errorf("%s is %s, want %s", file, got, want)
			}
		}
		with := func(o *runtime.SELinuxOption) func(*runtime.ContainerConfig) {
			return security(func(s *runtime.LinuxContainerSecurityContext) { s.SelinuxOptions = o })
		}
		if got := labelOf(t, one.Run("sleep 1000", with(&runtime.SELinuxOption{Type: "spc_t", Level: "s0:c1,c2"})).PID()); got != "system_u:system_r:spc_t:s0:c1,c2" {
			t.Errorf("with a type and a level it is %s", got)
		}
		if got := labelOf(t, one.Run("sleep 1000", privileged).PID()); !strings.Contains(got, ":spc_t:") {
			t.Errorf("a privileged container is %s", got)
		}
		_, err := one.TryCreate(one.ContainerConfig("true", with(&runtime.SELinuxOption{Type: "nonesuch_t"})))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "nonesuch_t") {
			t.Errorf("a type that the policy does not know: %v", err)
		}
		c.Crash()
		if got := labelOf(t, one.Run("sleep 1000").PID()); got != label {
			t.Errorf("after a restart a container is %s, before it was %s", got, label)
		}
		if got := strings.TrimSpace(a.Exec(command)); got != label {
			t.Errorf("after a restart a command is %s", got)
		}
	})
}
