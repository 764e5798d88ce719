package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// idMap is what the kubelet sends of a pod that does not share the host's users: one line of 65536 ids.
func idMap(host uint32) []*runtime.IDMapping {
	return []*runtime.IDMapping{{HostId: host, Length: 65536}}
}

// usersOf gives a pod a user namespace.
func usersOf(uids, gids []*runtime.IDMapping) func(*runtime.PodSandboxConfig) {
	return func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Uids: uids, Gids: gids}
	}
}

const (
	hostUID = 1 << 20
	hostGID = 1 << 21
)

func owner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// usersVolume is a directory with a file of root and one of user 1000.
func usersVolume(t *testing.T) string {
	t.Helper()
	vol := t.TempDir()
	if err := os.Chmod(vol, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]int{"root": 0, "user": 1000} {
		path := filepath.Join(vol, name)
		if err := os.WriteFile(path, []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, id, id); err != nil {
			t.Fatal(err)
		}
	}
	return vol
}

// mapped mounts vol in several ways, as the kubelet asks for it and once without a mapping.
func mapped(vol string, cfg *runtime.ContainerConfig) {
	uids, gids := idMap(hostUID), idMap(hostGID)
	cfg.Mounts = []*runtime.Mount{
		{HostPath: vol, ContainerPath: "/vol", UidMappings: uids, GidMappings: gids},
		{HostPath: vol, ContainerPath: "/ro", UidMappings: uids, GidMappings: gids, Readonly: true},
		{HostPath: filepath.Join(vol, "root"), ContainerPath: "/file", UidMappings: uids, GidMappings: gids},
		{HostPath: vol, ContainerPath: "/plain"},
		{HostPath: filepath.Join(vol, "made"), ContainerPath: "/made", UidMappings: uids, GidMappings: gids},
	}
}

// Files have one owner inside and on the disk, whatever their processes are on the host.
func TestUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)), func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.Sysctls = map[string]string{"net.ipv4.ping_group_range": "0 2147483647", "kernel.shm_rmid_forced": "1"}
		})
		vol := usersVolume(t)
		mounts := func(cfg *runtime.ContainerConfig) { mapped(vol, cfg) }
		ctr := pod.Run("sleep 1000", mounts)
		for _, want := range [][2]string{
			{"cat /proc/self/uid_map", "         0    1048576      65536\n"},
			{"cat /proc/self/gid_map", "         0    2097152      65536\n"},
			{"stat -c %u:%g / /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /proc/1 /made", strings.Repeat("0:0\n", 8)},
			{"stat -c %u:%g /vol /vol/root /vol/user /file", "0:0\n0:0\n1000:1000\n0:0\n"},
			{"stat -c %u:%g /plain /plain/user", "65534:65534\n65534:65534\n"},
			{"cat /vol/root /vol/user /file", "root\nuser\nroot\n"},
			{"touch /ro/x 2>&1 || echo x >> /etc/hosts && echo written", "touch: /ro/x: Read-only file system\nwritten\n"},
			{"cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced; hostname", "0\t65535\n1\npodhost\n"},
			{"hostname changed; hostname", "podhost\n"}, // no CAP_SYS_ADMIN
			{"touch /vol/new /dev/shm/new /new; chown 1000:1000 /vol/new /new; stat -c %u:%g /vol/new /new", "1000:1000\n1000:1000\n"},
			{"echo x > /dev/null; head -c 3 /dev/zero | wc -c; test -c /dev/tty && ls /sys/class > /dev/null && echo devices", "3\ndevices\n"},
		} {
			if got := ctr.Exec(want[0] + " || true"); got != want[1] {
				t.Errorf("%s: got %q, want %q", want[0], got, want[1])
			}
		}
		for path, want := range map[string]string{
			filepath.Join(vol, "new"):          "1000:1000",
			ctr.Status().LogPath:               "0:0",
			fmt.Sprintf("/proc/%d", ctr.PID()): fmt.Sprintf("%d:%d", hostUID, hostGID),
		} {
			if got := owner(t, path); got != want {
				t.Errorf("%s on the host: %s, want %s", path, got, want)
			}
		}
		c.Restart()
		if got := ctr.Exec("cat /vol/user; id -u"); got != "user\n0\n" {
			t.Errorf("after a restart of crid: %q", got)
		}
		if got := pod.Output("cat /proc/self/uid_map /vol/root", mounts); !strings.HasSuffix(got, "65536\nroot\n") {
			t.Errorf("a container after a restart of crid: %q", got)
		}
		pod.Remove()
	})
}

func TestImagesAndUsersInAUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)))
		vol := usersVolume(t)
		user := pod.Output("id -u; id -g; touch /vol/mine 2>&1; cat /vol/user", func(cfg *runtime.ContainerConfig) { mapped(vol, cfg) },
			security(func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 1000}
			}))
		if user != "1000\n1000\ntouch: /vol/mine: Permission denied\nuser\n" {
			t.Errorf("as user 1000: %q", user)
		}
		bytes := pod.Output("echo -n $A | wc -c; stat -c %u:%g /.crid-launch", func(cfg *runtime.ContainerConfig) {
			cfg.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte{0xff, 0xfe, 'x'}}}
			cfg.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1000}
		})
		if bytes != "3\n1000:1000\n" {
			t.Errorf("with a launcher: %q", bytes)
		}
		volume := pod.Output("stat -c %u:%g /data /data/seed /fresh; touch /data/x /fresh/x && cat /data/seed", func(cfg *runtime.ContainerConfig) {
			cfg.Image.Image = harness.Ref(images.Volume)
		})
		if volume != "1001:1001\n1001:1001\n0:0\nseed\n" {
			t.Errorf("volumes of the image: %q", volume)
		}
		id := c.Pull(images.Volume)
		for _, sub := range []string{"", "data"} {
			image := pod.Output("stat -c %u:%g $(find /image -name seed); cat $(find /image -name seed); touch /image/x 2>&1; true", func(cfg *runtime.ContainerConfig) {
				cfg.Mounts = []*runtime.Mount{{Image: &runtime.ImageSpec{Image: id}, ImageSubPath: sub, ContainerPath: "/image",
					UidMappings: idMap(hostUID), GidMappings: idMap(hostGID)}}
			})
			if image != "1001:1001\nseed\ntouch: /image/x: Read-only file system\n" {
				t.Errorf("an image as a volume, %q of it: %q", sub, image)
			}
		}
	})
}

func TestTwoMapLines(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		lines := []*runtime.IDMapping{{ContainerId: 0, HostId: 1 << 20, Length: 1000}, {ContainerId: 1000, HostId: 1 << 21, Length: 1000}}
		pod := c.RunPod(usersOf(lines, lines))
		vol := t.TempDir()
		if err := os.Chmod(vol, 0o777); err != nil {
			t.Fatal(err)
		}
		got := pod.Output("cat /proc/self/uid_map; touch /vol/x; stat -c %u:%g /vol/x /", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 1500}
			cfg.Linux.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1500}
			cfg.Mounts = []*runtime.Mount{{HostPath: vol, ContainerPath: "/vol", UidMappings: lines, GidMappings: lines}}
		})
		if got != "         0    1048576       1000\n      1000    2097152       1000\n1500:1500\n0:0\n" {
			t.Errorf("got %q", got)
		}
		if got := owner(t, filepath.Join(vol, "x")); got != "1500:1500" {
			t.Errorf("on the disk: %s", got)
		}
	})
}

// Containers that share the pod's PID namespace, or another's, live in a pause of the same user namespace.
func TestSharedPIDsInAUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(usersOf(idMap(hostUID), idMap(hostGID)), func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		})
		pid := func(mode runtime.NamespaceMode, target string) func(*runtime.ContainerConfig) {
			return security(func(s *runtime.LinuxContainerSecurityContext) {
				s.NamespaceOptions = &runtime.NamespaceOption{Pid: mode, TargetId: target, UsernsOptions: s.NamespaceOptions.UsernsOptions}
			})
		}
		shared := pod.Run("exec sleep 4321", pid(runtime.NamespaceMode_POD, ""))
		if got := shared.Exec("grep -a -c pause /proc/1/cmdline; grep Uid /proc/1/status"); got != "1\nUid:\t65535\t65535\t65535\t65535\n" {
			t.Errorf("the pause: %q", got)
		}
		own := pod.Run("exec sleep 4322", pid(runtime.NamespaceMode_CONTAINER, ""))
		target := pod.Run("exec sleep 4323", pid(runtime.NamespaceMode_TARGET, own.ID))
		if got := target.Exec("ps | grep -c '[s]leep 4322'"); got != "1\n" {
			t.Errorf("the target: %q", got)
		}
	})
}

func TestBadUserNamespacesLeaveNothing(t *testing.T) {
	c := harness.Start(t)
	one := idMap(hostUID)
	for field, edit := range map[string]func(*runtime.NamespaceOption){
		"userns_options.uids: no mapping of container id 0": func(o *runtime.NamespaceOption) {
			o.UsernsOptions = &runtime.UserNamespace{Uids: []*runtime.IDMapping{{ContainerId: 1, HostId: 5, Length: 5}}, Gids: one}
		},
		"userns_options.gids: mappings 0 and 1 overlap": func(o *runtime.NamespaceOption) {
			o.UsernsOptions = &runtime.UserNamespace{Uids: one, Gids: append(idMap(7), idMap(1<<25)...)}
		},
		"userns_options.mode": func(o *runtime.NamespaceOption) {
			o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_TARGET}
		},
		"host's network namespace": func(o *runtime.NamespaceOption) {
			o.UsernsOptions, o.Network = &runtime.UserNamespace{Uids: one, Gids: one}, runtime.NamespaceMode_NODE
		},
	} {
		_, err := c.Runtime.RunPodSandbox(c.Context(), c.PodConfig(func(cfg *runtime.PodSandboxConfig) { edit(cfg.Linux.SecurityContext.NamespaceOptions) }), "")
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("want InvalidArgument that names %s, got %v", field, err)
		}
	}
	if pods, err := c.Runtime.ListPodSandbox(c.Context(), nil); err != nil || len(pods) != 0 {
		t.Errorf("%d pods, %v", len(pods), err)
	}
	pod := c.RunPod(usersOf(one, one))
	for _, tc := range []struct {
		words string
		code  codes.Code
		edit  func(*runtime.ContainerConfig)
	}{
		{"uidMappings", codes.InvalidArgument, func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: "/tmp", ContainerPath: "/t", UidMappings: idMap(1), GidMappings: one}}
		}},
		{"userns_options: the container's user 70000", codes.InvalidArgument,
			security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = &runtime.Int64Value{Value: 70000} })},
		{"userns_options.mode", codes.InvalidArgument, security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER, UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}}
		})},
		{"namespace_options.pid", codes.InvalidArgument, security(func(s *runtime.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_NODE}
		})},
		{"cannot map ids", codes.Unimplemented, func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: "/proc/sys", ContainerPath: "/t", UidMappings: one, GidMappings: one}}
		}},
	} {
		if _, err := pod.TryCreate(pod.ContainerConfig("true", tc.edit)); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("want %v that names %s, got %v", tc.code, tc.words, err)
		}
	}
	if list, err := c.Runtime.ListContainers(c.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
	left, err := filepath.Glob(filepath.Join(c.RunRoot, "rootfs", ".mapped-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestHandlersTellOfUserNamespaces(t *testing.T) {
	c := harness.Start(t)
	resp, err := c.Runtime.Status(c.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range resp.RuntimeHandlers {
		if !h.Features.UserNamespaces {
			t.Errorf("handler %q has none", h.Name)
		}
	}
	if resp.Features.UserNamespacesHostNetwork {
		t.Error("crid says that pods on the host's network can have user namespaces")
	}
}

// Whatever crid was doing for a pod when it was killed, the next one finds it: nothing stays mounted or pinned.
func TestACrashAmidAUserNamespace(t *testing.T) {
	c := harness.Start(t)
	c.Pull(images.Busybox)
	vol := usersVolume(t)
	for i := range 8 {
		cfg := c.PodConfig(usersOf(idMap(hostUID), idMap(hostGID)))
		gone, client, ctx := make(chan struct{}), c.Runtime, c.Context()
		go func() { // ends with the daemon, or before
			defer close(gone)
			id, err := client.RunPodSandbox(ctx, cfg, "")
			if err != nil {
				return
			}
			pod := &harness.Pod{Config: cfg}
			_, _ = client.CreateContainer(ctx, id, pod.ContainerConfig("true", func(ctr *runtime.ContainerConfig) { mapped(vol, ctr) }), cfg)
		}()
		select {
		case <-gone:
		case <-time.After(time.Duration(i) * 20 * time.Millisecond): // another step each time
		}
		c.Crash()
		<-gone
	}
	pods, err := c.Runtime.ListPodSandbox(c.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		if err := c.Runtime.RemovePodSandbox(c.Context(), pod.Id); err != nil {
			t.Error(err)
		}
	}
}
