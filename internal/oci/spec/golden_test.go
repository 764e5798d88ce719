package spec

import (
	"os"
	"slices"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/golden"
)

// example is a container as the kubelet asks for it, in an ordinary pod on a host with cgroup v2.
func example() Input {
	return Input{
		ID: "c0ffee",
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "web"},
			Image:    &runtime.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "registry.example/web:1"},
			Linux: &runtime.LinuxContainerConfig{
				Resources: &runtime.LinuxContainerResources{},
				SecurityContext: &runtime.LinuxContainerSecurityContext{
					NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
					MaskedPaths:      []string{"/proc/kcore"},
					ReadonlyPaths:    []string{"/proc/sys"},
				},
			},
		},
		Image: imgspec.ImageConfig{Entrypoint: []string{"/bin/web"}, Cmd: []string{"--serve"}},
		Pod: PodEnv{
			ID: "b0d",
			Config: &runtime.PodSandboxConfig{
				Metadata: &runtime.PodSandboxMetadata{Name: "web-0", Uid: "u-1", Namespace: "default"},
			},
			Handler:      "crun",
			NetNS:        "/run/netns/crid-b0d",
			IPCNS:        "/run/crid/ns/ipc/b0d",
			UTSNS:        "/run/crid/ns/uts/b0d",
			Hostname:     "web-0",
			HostnameFile: "/run/crid/pods/b0d/hostname",
			ResolvConf:   "/run/crid/pods/b0d/resolv.conf",
			Hosts:        "/run/crid/pods/b0d/hosts",
			Shm:          "/run/crid/pods/b0d/shm",
		},
		Host: fact.Host{
			Cgroup:      fact.CgroupV2,
			Controllers: []string{"cpu", "cpuset", "memory", "pids", "hugetlb", "io"},
			PageSizes:   []string{"2MB", "1GB"},
			RaiseLimits: true, Capabilities: everyCapability,
		},
		Handler: fact.Handler{Name: "crun", SpecVersion: "1.0.2"},
		Rootfs:  "/run/crid/rootfs/c0ffee",
		User:    User{Additional: []uint32{0}, Home: "/root"},
		Cgroup:  "/kubepods/pod-u-1/crid-c0ffee",
	}
}

// security is the security context of an example, to be edited.
func security(in *Input) *runtime.LinuxContainerSecurityContext {
	return in.Config.Linux.SecurityContext
}

func TestGenerateNew(t *testing.T) {
	g, err := generate.New("linux")
	if err != nil {
		t.Fatal(err)
	}
	g.Config.Linux.Seccomp = nil // differs between machines, and is never used
	golden.Compare(t, "generate-new", g.Config)
}

// variant is an example with something changed; its golden file has the same name.
type variant struct {
	name string
	edit func(*Input)
}

func variants() []variant {
	return []variant{
		{"plain", func(*Input) {}},
		{"no-linux", func(in *Input) { in.Config.Linux, in.Pod.PIDNS = nil, "/proc/7/ns/pid" }},
		{"process", editProcess},
		{"mounts", editMounts},
		{"mounts-over-standard", editMountsOverStandard},
		{"mounts-of-images", func(in *Input) {
			in.Mounts = []Mount{
				{Mount: &runtime.Mount{ContainerPath: "/model", Image: &runtime.ImageSpec{Image: "da7a"},
					MountOptions: []string{"noexec", "nodev"}, Readonly: true}, Source: "/run/crid/rootfs/.images/da7a"},
				{Mount: &runtime.Mount{ContainerPath: "/part", Image: &runtime.ImageSpec{Image: "da7a"}, ImageSubPath: "sub",
					Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}, Source: "/run/crid/rootfs/.images/da7a/sub"},
			}
		}},
		{"mounts-shared", func(in *Input) {
			m := &runtime.Mount{ContainerPath: "/etc", HostPath: "/etc", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}
			in.Mounts = []Mount{{Mount: m, Source: "/etc", Holds: []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}}}
		}},
		{"readonly-root", func(in *Input) { security(in).ReadonlyRootfs = true }},
		{"privileged", editPrivileged},
		{"unmasked", func(in *Input) { security(in).MaskedPaths, security(in).ReadonlyPaths = nil, nil }},
		{"devices", func(in *Input) {
			in.Devices = []Device{fuse("rw"), {LinuxDevice: specs.LinuxDevice{Path: "/dev/sdx", Type: "b", Major: 8}}}
		}},
	}
}

func securityVariants() []variant {
	return []variant{
		{"capabilities", func(in *Input) {
			security(in).Capabilities = &runtime.Capability{
				AddCapabilities:        []string{"NET_ADMIN", "cap_sys_time", "KILL"},
				DropCapabilities:       []string{"NET_RAW", "CAP_MKNOD"},
				AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
			}
		}},
		{"capabilities-drop-all", func(in *Input) {
			security(in).Capabilities = &runtime.Capability{
				AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"all"}}
		}},
		{"capabilities-add-all", func(in *Input) {
			in.Host.Capabilities &^= 1 << unix.CAP_SYS_RESOURCE
			security(in).Capabilities = &runtime.Capability{
				AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"SYS_ADMIN"}}
		}},
		{"resources-v2", editResources},
		{"resources-v1", func(in *Input) {
			editResources(in)
			in.Config.Linux.Resources.Unified = nil
			in.Host.Cgroup, in.Host.Controllers = fact.CgroupV1, []string{"cpu", "cpuset", "memory"}
		}},
		{"resources-limited-swap", func(in *Input) {
			editResources(in)
			in.Config.Linux.Resources.Unified = map[string]string{"memory.swap.max": "16777216", "pids.max": "100"}
		}},
		{"host-namespaces", func(in *Input) {
			in.Pod.NetNS, in.Pod.IPCNS, in.Pod.UTSNS, in.Pod.Shm = "", "", "", ""
			security(in).NamespaceOptions.Pid = runtime.NamespaceMode_NODE
		}},
		{"shared-pid", func(in *Input) {
			in.Pod.PIDNS = "/proc/7/ns/pid"
			security(in).NamespaceOptions.Pid = runtime.NamespaceMode_POD
		}},
		{"target-pid", func(in *Input) {
			in.Target = "/proc/9/ns/pid"
			security(in).NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: "other"}
		}},
		{"seccomp", func(in *Input) {
			in.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
			security(in).NoNewPrivs = true
		}},
		{"security-modules", confine},
		{"annotations", func(in *Input) {
			in.AllowedAnnotations = []string{"io.katacontainers.*", "example.com/*", "io.kubernetes.cri.*"}
			in.Pod.Config.Annotations = map[string]string{
				"io.katacontainers.config": "pod", "run.oci.hooks.stdout": "no", AnnotationSandboxID: "forged"}
			in.Config.Annotations = map[string]string{"io.katacontainers.config": "container", "example.com/x": "y"}
		}},
	}
}

func TestBuild(t *testing.T) {
	for _, v := range slices.Concat(variants(), securityVariants()) {
		t.Run(v.name, func(t *testing.T) {
			in := example()
			v.edit(&in)
			if err := ValidateContainer(in.Config, in.Pod.Config); err != nil {
				t.Fatal(err)
			}
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, v.name, s)
		})
	}
}

func TestBuildPause(t *testing.T) {
	for _, v := range []variant{
		{"pause", func(*Input) {}},
		{"pause-confined", func(in *Input) {
			confine(in)
			in.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			in := example()
			v.edit(&in)
			s, err := BuildPause(in)
			if err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, v.name, s)
		})
	}
}

func TestExecProcess(t *testing.T) {
	s, err := Build(example())
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "exec", ExecProcess(s, []string{"sh", "-c", "id"}, true))
	if s.Process.Terminal || s.Process.Args[0] != "/bin/web" || s.Process.Env[len(s.Process.Env)-1] == "TERM=xterm" {
		t.Errorf("the container's own process was edited: %+v", s.Process)
	}
}

// confine has the host's security modules hold the container.
func confine(in *Input) {
	in.AppArmor = "crid-default"
	in.SELinux = fact.Labels{Process: "system_u:system_r:container_t:s0:c1,c2", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
}

func editProcess(in *Input) {
	c := in.Config
	c.Command, c.Args, c.WorkingDir, c.Tty = []string{"/bin/sh"}, []string{"-c", "true"}, "/srv/./data", true
	c.Envs = []*runtime.KeyValue{
		{Key: "MODE", Value: []byte("fast")},
		{Key: "RAW", Value: []byte("a\xff\xfez")},
		{Key: "MODE", Value: []byte("a=b <&>")},
		{Key: "EMPTY"},
	}
	in.Image.Env = []string{"PATH=/opt/bin:/bin", "MODE=slow", "LANG=C"}
	in.User = User{UID: 1000, GID: 1001, Additional: []uint32{1001, 2000}, Home: "/home/web"}
	c.Linux.Resources.OomScoreAdj = -997
	in.Host.RaiseLimits, in.Host.OOMScoreAdj = false, -500
}

func editMounts(in *Input) {
	add := func(container string, edit func(*runtime.Mount)) {
		m := &runtime.Mount{ContainerPath: container, HostPath: "/host" + container}
		if edit != nil {
			edit(m)
		}
		in.Config.Mounts = append(in.Config.Mounts, m)
		in.Mounts = append(in.Mounts, Mount{Mount: m, Source: "/resolved" + container})
	}
	in.Handler.RecursiveReadOnly = true
	add("/data/deep/down/", nil)
	add("/data", func(m *runtime.Mount) { m.Readonly = true })
	add("/slave", func(m *runtime.Mount) { m.Propagation = runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER })
	add("/shared", func(m *runtime.Mount) { m.Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL })
	add("/rro", func(m *runtime.Mount) { m.Readonly, m.RecursiveReadOnly = true, true })
	add("/opts", func(m *runtime.Mount) { m.MountOptions = []string{"noexec", "nosuid", "nodev"} })
	add("/etc/hosts", nil)
	add("/dev/termination-log", nil)
	in.Volumes = []Volume{
		{Source: "/volumes/a", Destination: "/data/"},         // covered by a mount
		{Source: "/volumes/b", Destination: "/cache"},         // stays
		{Source: "/volumes/c", Destination: "/sys/fs/cgroup"}, // never
	}
	security(in).ReadonlyRootfs = true
}

func editMountsOverStandard(in *Input) {
	for _, p := range []string{"/dev", "/sys/fs/cgroup", "/proc"} {
		m := &runtime.Mount{ContainerPath: p, HostPath: p}
		in.Config.Mounts = append(in.Config.Mounts, m)
		in.Mounts = append(in.Mounts, Mount{Mount: m, Source: p})
	}
}

func editPrivileged(in *Input) {
	security(in).Privileged = true
	in.Pod.Config.Linux = &runtime.LinuxPodSandboxConfig{
		SecurityContext: &runtime.LinuxSandboxSecurityContext{Privileged: true},
	}
	in.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	in.Devices = []Device{fuse(""), {LinuxDevice: specs.LinuxDevice{Path: "/dev/console", Type: "c", Major: 5, Minor: 1}}}
}

func editResources(in *Input) {
	in.Config.Linux.Resources = &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512, CpusetCpus: "0-1", CpusetMems: "0",
		MemoryLimitInBytes: 64 << 20, OomScoreAdj: 900,
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
		Unified:        map[string]string{"memory.high": "max", "cgroup.max.depth": "3", "pids.max": "100"},
	}
}

func fuse(access string) Device {
	mode, id := os.FileMode(0o666), uint32(0)
	return Device{Access: access, LinuxDevice: specs.LinuxDevice{
		Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &id, GID: &id}}
}
