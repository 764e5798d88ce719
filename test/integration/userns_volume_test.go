package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// mountTmpfs mounts a filesystem with a file on dir, which it makes with another such file, until t ends.
func mountTmpfs(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file, []byte("below\n"), 0o644),
		unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0777"), os.WriteFile(file, []byte("mounted\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// volumeKinds are the ways in which the volumes of a pod with a user namespace are mounted.
var volumeKinds = map[string]func(m *runtime.Mount) *runtime.Mount{
	"mapped": func(m *runtime.Mount) *runtime.Mount {
		m.UidMappings, m.GidMappings = idMap(hostUID), idMap(hostGID)
		return m
	},
	"plain": func(m *runtime.Mount) *runtime.Mount { return m },
}

func eachVolumeKind(t *testing.T, test func(t *testing.T, pod *harness.Pod, kind func(*runtime.Mount) *runtime.Mount)) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)))
		for name, kind := range volumeKinds {
			t.Run(name, func(t *testing.T) { test(t, pod, kind) })
		}
	})
}

// What is mounted below a volume is part of it, whatever the runtime.
func TestMountsBelowVolumesInAUserNamespace(t *testing.T) {
	eachVolumeKind(t, func(t *testing.T, pod *harness.Pod, kind func(*runtime.Mount) *runtime.Mount) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		for _, sub := range []string{"sub", "sub/deeper", "other", "sub one"} {
			mountTmpfs(t, filepath.Join(dir, sub), 0)
		}
		mountTmpfs(t, filepath.Join(dir, "other"), 0) // hides the one below
		mine := t.TempDir()
		const show = "cat /vol/sub/file /vol/sub/deeper/file /vol/other/file '/vol/sub one/file'"
		const write = "; for d in /vol /vol/sub /vol/sub/deeper; do (touch $d/x) 2>/dev/null && echo writable || echo read-only; done"
		all := strings.Repeat("mounted\n", 4)
		for _, tc := range []struct {
			name  string
			mount *runtime.Mount
			want  string
		}{
			{"writable", &runtime.Mount{}, all + "writable\nwritable\nwritable\n"},
			{"read-only", &runtime.Mount{Readonly: true}, all + "read-only\nwritable\nwritable\n"},
			{"recursively", &runtime.Mount{Readonly: true, RecursiveReadOnly: true}, all + "read-only\nread-only\nread-only\n"},
			{"slave", &runtime.Mount{Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, all + "writable\nwritable\nwritable\n"},
		} {
			tc.mount.HostPath, tc.mount.ContainerPath = dir, "/vol"
			if got := pod.Output(show+write, withMounts(kind(tc.mount))); got != tc.want {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			}
		}
		over := pod.Output("ls -A /vol/sub; cat /vol/other/file", withMounts(kind(&runtime.Mount{HostPath: dir, ContainerPath: "/vol"}),
			kind(&runtime.Mount{HostPath: mine, ContainerPath: "/vol/sub"})))
		if over != "mounted\n" {
			t.Errorf("with a mount of the request over one of the host: %q", over)
		}
	})
}

func TestMountsReachAUserNamespace(t *testing.T) {
	eachVolumeKind(t, func(t *testing.T, pod *harness.Pod, kind func(*runtime.Mount) *runtime.Mount) {
		dir := t.TempDir()
		mountTmpfs(t, filepath.Join(dir, "sub"), 0)
		ctr := pod.Run("sleep 1000", withMounts(kind(&runtime.Mount{HostPath: dir, ContainerPath: "/vol",
			Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})))
		mountTmpfs(t, filepath.Join(dir, "late"), 0)
		mountTmpfs(t, filepath.Join(dir, "sub", "late"), 0)
		if got := ctr.Exec("cat /vol/late/file /vol/sub/late/file"); got != "mounted\nmounted\n" {
			t.Errorf("mounts of the host do not reach the container: %q", got)
		}
	})
}

// A user namespace may not take away what the host's mount forbids, so that a runtime must not try.
func TestFlagsOfVolumesInAUserNamespace(t *testing.T) {
	eachVolumeKind(t, func(t *testing.T, pod *harness.Pod, kind func(*runtime.Mount) *runtime.Mount) {
		open, closed, readonly := filepath.Join(t.TempDir(), "open"), filepath.Join(t.TempDir(), "closed"), filepath.Join(t.TempDir(), "readonly")
		mountTmpfs(t, open, 0)
		mountTmpfs(t, closed, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME)
		mountTmpfs(t, readonly, 0)
		if err := unix.Mount("", readonly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		flags := []string{"nosuid", "nodev", "noexec"}
		for _, tc := range []struct {
			name  string
			mount *runtime.Mount
			want  []string
		}{
			{"asked for", &runtime.Mount{HostPath: open, MountOptions: flags}, append(flags, "rw")},
			{"asked for read-only", &runtime.Mount{HostPath: open, MountOptions: flags, Readonly: true}, append(flags, "ro")},
			{"of the host", &runtime.Mount{HostPath: closed}, append(flags, "noatime", "rw")},
			{"of the host, read-only", &runtime.Mount{HostPath: closed, Readonly: true}, append(flags, "noatime", "ro")},
			{"of the host, one asked for", &runtime.Mount{HostPath: closed, Readonly: true, MountOptions: flags[:1]}, append(flags, "ro")},
			{"of the host, recursively", &runtime.Mount{HostPath: closed, Readonly: true, RecursiveReadOnly: true}, append(flags, "noatime", "ro")},
			{"read-only host", &runtime.Mount{HostPath: readonly}, []string{"ro"}},
			{"read-only host, more asked for", &runtime.Mount{HostPath: readonly, MountOptions: flags}, append(flags, "ro")},
		} {
			tc.mount.ContainerPath = "/vol"
			if got := pod.Output(mountLine+"|tail -1; cat /vol/file", withMounts(kind(tc.mount))); !hasOptions(strings.TrimSuffix(got, "\nmounted\n"), tc.want...) {
				t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
			}
		}
	})
}

// What the runtime makes for the container in its image belongs to the container, and what is unmasked harms nobody.
func TestWhatRuntimesMakeInAUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)))
		mount := volumeKinds["mapped"](&runtime.Mount{HostPath: usersVolume(t), ContainerPath: "/not/there"})
		got := pod.Output("pwd; stat -c %u:%g . /made /not /not/there /not/there/root; touch x && echo writable", withMounts(mount),
			func(cfg *runtime.ContainerConfig) { cfg.WorkingDir = "/made/cwd" })
		if want := "/made/cwd\n" + strings.Repeat("0:0\n", 5) + "writable\n"; got != want {
			t.Errorf("made: %q, want %q", got, want)
		}
		got = pod.Output("touch /x 2>/dev/null || echo read-only; touch /vol/x && echo writable",
			withMounts(volumeKinds["mapped"](&runtime.Mount{HostPath: usersVolume(t), ContainerPath: "/vol"})),
			security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
		if got != "read-only\nwritable\n" {
			t.Errorf("a read-only root filesystem: %q", got)
		}
		got = pod.Output("grep -c ' /proc/' /proc/self/mounts; echo 1 2>/dev/null > /proc/sys/vm/swappiness || echo not the host\\'s",
			security(func(s *runtime.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
			}))
		if got != "0\nnot the host's\n" {
			t.Errorf("with an unmasked /proc: %q", got)
		}
	})
}
