package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

const (
	onNode = runtime.NamespaceMode_NODE
	target = runtime.NamespaceMode_TARGET
	ownPID = runtime.NamespaceMode_CONTAINER
)

// flaw is a change that makes a config invalid, and what the error has to tell.
type flaw[C any] struct {
	words string
	kind  error
	edit  func(C)
}

func checkContainerFlaws(t *testing.T, flaws []flaw[*runtime.ContainerConfig]) {
	t.Helper()
	for _, f := range flaws {
		t.Run(f.words, func(t *testing.T) {
			in := example()
			f.edit(in.Config)
			refused(t, ValidateContainer(in.Config, in.Pod.Config), f.kind, f.words)
		})
	}
}

// device asks for a device of the host.
func device(host, inside string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Devices = []*runtime.Device{{HostPath: host, ContainerPath: inside}}
	}
}

func TestValidateContainerRefuses(t *testing.T) {
	type config = runtime.ContainerConfig
	mount := func(m *runtime.Mount) func(*config) {
		return func(c *config) { c.Mounts = []*runtime.Mount{m} }
	}
	bidirectional := runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	checkContainerFlaws(t, []flaw[*config]{
		{"metadata.name", errdef.Invalid, func(c *config) { c.Metadata = nil }},
		{"image.image", errdef.Invalid, func(c *config) { c.Image = nil }},
		{"log_path", errdef.Invalid, func(c *config) { c.LogPath = "/var/log/x" }},
		{"log_path", errdef.Invalid, func(c *config) { c.LogPath = "a/../../x" }},
		{"log_path", errdef.Invalid, func(c *config) { c.LogPath = "a/" }},
		{"log_path", errdef.Invalid, func(c *config) { c.LogPath = "." }},
		{"log_path has a NUL byte", errdef.Invalid, func(c *config) { c.LogPath = "a\x00.log" }},
		{"metadata.name", errdef.Invalid, func(c *config) { c.Metadata.Name = "../a" }},
		{"metadata.name", errdef.Invalid, func(c *config) { c.Metadata.Name = "a\nb" }},
		{"labels[\"a\"] has a NUL byte", errdef.Invalid, func(c *config) { c.Labels = map[string]string{"a": "b\x00"} }},
		{"labels has a NUL byte", errdef.Invalid, func(c *config) { c.Labels = map[string]string{"a\x00": "b"} }},
		{"linux.security_context.masked_paths[1] has a NUL byte", errdef.Invalid, func(c *config) {
			c.Linux.SecurityContext.MaskedPaths = []string{"/a", "/\x00proc"}
		}},
		{"args[0] has a NUL byte", errdef.Invalid, func(c *config) { c.Args = []string{"a\x00b"} }},
		{"working_dir", errdef.Invalid, func(c *config) { c.WorkingDir = "srv" }},
		{"envs[0].key", errdef.Invalid, func(c *config) { c.Envs = []*runtime.KeyValue{{Key: "A=B"}} }},
		{"envs[0].key", errdef.Invalid, func(c *config) { c.Envs = []*runtime.KeyValue{{}} }},
		{"envs[0] (A)", errdef.Invalid, func(c *config) { c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte{0}}} }},
		{"mounts[0] (data): container_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "data", HostPath: "/x"})},
		{"container_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/./", HostPath: "/x"})},
		{"container_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a/../b", HostPath: "/x"})},
		{"host_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a"})},
		{"host_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x/../etc"})},
		{"mounts[0].container_path has a NUL byte", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a\x00b", HostPath: "/x"})},
		{"image_sub_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", ImageSubPath: "y"})},
		{"host_path and image", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", Image: &runtime.ImageSpec{Image: "i"}})},
		{"recursive_read_only needs readonly", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", RecursiveReadOnly: true})},
		{"image_sub_path", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "a/../.."})},
		{"image_sub_path", errdef.ImageVolume, mount(&runtime.Mount{ContainerPath: "/a", Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "/a"})},
		{"propagation: unknown mode 7", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", Image: &runtime.ImageSpec{Image: "x"}, Propagation: 7})},
		{"recursive_read_only needs propagation", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", RecursiveReadOnly: true, Readonly: true, Propagation: bidirectional})},
		{"uidMappings", errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", UidMappings: []*runtime.IDMapping{{}}})},
		{`mount_options "suid"`, errdef.Invalid, mount(&runtime.Mount{ContainerPath: "/a", HostPath: "/x", MountOptions: []string{"suid"}})},
		{"devices[0]", errdef.Invalid, func(c *config) { c.Devices = []*runtime.Device{{HostPath: "dev/x", ContainerPath: "/dev/x"}} }},
		{"devices[0].host_path \"/dev/../etc/x\"", errdef.Invalid, device("/dev/../etc/x", "/dev/x")},
		{"devices[0].container_path \"/dev/../x\"", errdef.Invalid, device("/dev/x", "/dev/../x")},
		{"devices[0].container_path \"/\"", errdef.Invalid, device("/dev/x", "/")},
		{"devices[0].container_path \"/dev/./ptmx\"", errdef.Invalid, device("/dev/x", "/dev/./ptmx")},
		{"devices[0].container_path \"/dev/pts/0\"", errdef.Invalid, device("/dev/x", "/dev/pts/0")},
		{"devices[0].container_path \"/dev/pts\"", errdef.Invalid, device("/dev/pts", "/dev/pts")},
		{"devices[0].container_path \"/dev/console\"", errdef.Invalid, device("/dev/console", "/dev/console")},
		{"devices[0].permissions", errdef.Invalid, func(c *config) {
			c.Devices = []*runtime.Device{{HostPath: "/dev/x", ContainerPath: "/dev/x", Permissions: "rx"}}
		}},
		{"CDI_devices[1].name", errdef.Invalid, func(c *config) { c.CDIDevices = []*runtime.CDIDevice{{Name: "v/c=d"}, {}} }},
		{"stop_signal", errdef.Invalid, func(c *config) { c.StopSignal = 99 }},
	})
}

func TestValidateContainerRefusesSecurityAndResources(t *testing.T) {
	type config = runtime.ContainerConfig
	context := func(sc *runtime.LinuxContainerSecurityContext) func(*config) {
		return func(c *config) { c.Linux.SecurityContext = sc }
	}
	options := func(o *runtime.NamespaceOption) func(*config) {
		return context(&runtime.LinuxContainerSecurityContext{NamespaceOptions: o})
	}
	resources := func(r *runtime.LinuxContainerResources) func(*config) {
		return func(c *config) { c.Linux.Resources = r }
	}
	checkContainerFlaws(t, []flaw[*config]{
		{"privileged", errdef.Invalid, context(&runtime.LinuxContainerSecurityContext{Privileged: true})},
		{"run_as_group", errdef.Invalid, context(&runtime.LinuxContainerSecurityContext{RunAsGroup: id(1)})},
		{"add_capabilities", errdef.Invalid, context(&runtime.LinuxContainerSecurityContext{Capabilities: &runtime.Capability{AddCapabilities: []string{""}}})},
		{"masked", errdef.Invalid, context(&runtime.LinuxContainerSecurityContext{MaskedPaths: []string{"proc"}})},
		{"namespace_options.network", errdef.Invalid, options(&runtime.NamespaceOption{Network: ownPID})},
		{"namespace_options.ipc", errdef.Invalid, options(&runtime.NamespaceOption{Ipc: target})},
		{"target_id", errdef.Invalid, options(&runtime.NamespaceOption{Pid: target})},
		{"namespace_options.pid", errdef.Invalid, options(&runtime.NamespaceOption{Pid: 9})},
		{"userns_options", errdef.Invalid, options(&runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{}})},
		{"linux.resources.cpu_period", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuPeriod: -1})},
		{"linux.resources.cpu_quota", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuQuota: -2})},
		{"linux.resources.cpu_shares", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuShares: -1})},
		{"linux.resources.memory_limit", errdef.Invalid, resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: -2})},
		{"linux.resources.memory_swap_limit", errdef.Invalid, resources(&runtime.LinuxContainerResources{MemorySwapLimitInBytes: -2})},
		{"linux.resources.cpu_period", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuPeriod: 999})},
		{"linux.resources.cpu_period", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuPeriod: 1_000_001})},
		{"linux.resources.cpu_quota: 999", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuQuota: 999})},
		{"linux.resources.cpu_quota: 17592186044416", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpuQuota: 1 << 44})},
		{"linux.resources.cpuset_cpus \"abc\"", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpusetCpus: "abc"})},
		{"linux.resources.cpuset_cpus \"3-1\"", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpusetCpus: "3-1"})},
		{"linux.resources.cpuset_mems \"0,\"", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpusetMems: "0,"})},
		{"linux.resources.cpuset_mems \"0-99999999999\"", errdef.Invalid, resources(&runtime.LinuxContainerResources{CpusetMems: "0-99999999999"})},
		{"linux.resources.memory_swap_limit_in_bytes: 5 without", errdef.Invalid, resources(&runtime.LinuxContainerResources{MemorySwapLimitInBytes: 5})},
		{"linux.resources.memory_swap_limit_in_bytes: 5 without", errdef.Invalid, resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 5})},
		{"which it includes", errdef.Invalid, resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 2, MemorySwapLimitInBytes: 1})},
		{"oom_score_adj", errdef.Invalid, resources(&runtime.LinuxContainerResources{OomScoreAdj: 1001})},
		{"oom_score_adj", errdef.Invalid, resources(&runtime.LinuxContainerResources{OomScoreAdj: -1001})},
		{"linux.resources.unified", errdef.Invalid, resources(&runtime.LinuxContainerResources{Unified: map[string]string{"../memory.max": "1"}})},
	})
}

func TestValidatePodRefuses(t *testing.T) {
	type config = runtime.PodSandboxConfig
	options := func(o *runtime.NamespaceOption) func(*config) {
		return func(c *config) {
			c.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: o}}
		}
	}
	port := func(p *runtime.PortMapping) func(*config) {
		return func(c *config) { c.PortMappings = []*runtime.PortMapping{p} }
	}
	for _, tc := range []flaw[*config]{
		{"metadata.name is empty", errdef.Invalid, func(c *config) { c.Metadata = nil }},
		{"metadata.uid is empty", errdef.Invalid, func(c *config) { c.Metadata.Uid = "" }},
		{"metadata.namespace is empty", errdef.Invalid, func(c *config) { c.Metadata.Namespace = "" }},
		{"metadata.name", errdef.Invalid, func(c *config) { c.Metadata.Name = "a;IgnoreUnknown=0" }},
		{"metadata.uid", errdef.Invalid, func(c *config) { c.Metadata.Uid = "../x" }},
		{"hostname", errdef.Invalid, func(c *config) { c.Hostname = strings.Repeat("h", 65) }},
		{"hostname", errdef.Invalid, func(c *config) { c.Hostname = "a\nb" }},
		{"log_directory", errdef.Invalid, func(c *config) { c.LogDirectory = "var/log" }},
		{"log_directory", errdef.Invalid, func(c *config) { c.LogDirectory = "/var/log/../lib" }},
		{"labels", errdef.Invalid, func(c *config) { c.Labels = map[string]string{"": "x"} }},
		{"linux.cgroup_parent has a NUL byte", errdef.Invalid, func(c *config) { c.Linux = &runtime.LinuxPodSandboxConfig{CgroupParent: "/a\x00"} }},
		{"dns_config.searches[0]", errdef.Invalid, func(c *config) { c.DnsConfig = &runtime.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}} }},
		{"port_mappings[0]: container_port", errdef.Invalid, port(&runtime.PortMapping{ContainerPort: 65536})},
		{"host_port", errdef.Invalid, port(&runtime.PortMapping{ContainerPort: 1, HostPort: -1})},
		{"container_port is not set", errdef.Invalid, port(&runtime.PortMapping{HostPort: 80})},
		{"protocol", errdef.Invalid, port(&runtime.PortMapping{ContainerPort: 80, Protocol: 3})},
		{"host_ip", errdef.Invalid, port(&runtime.PortMapping{ContainerPort: 80, HostIp: "localhost"})},
		{"namespace_options.network", errdef.Invalid, options(&runtime.NamespaceOption{Network: ownPID})},
		{"namespace_options.ipc", errdef.Invalid, options(&runtime.NamespaceOption{Ipc: target})},
		{"namespace_options.pid", errdef.Invalid, options(&runtime.NamespaceOption{Pid: target})},
		{"userns_options", errdef.Invalid, options(&runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{}})},
		{"userns_options.mode", errdef.Invalid, options(&runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: target}})},
		{"cgroup_parent", errdef.Invalid, func(c *config) { c.Linux = &runtime.LinuxPodSandboxConfig{CgroupParent: "/a/../.."} }},
		{"linux.resources.cpu_shares", errdef.Invalid, func(c *config) {
			c.Linux = &runtime.LinuxPodSandboxConfig{Resources: &runtime.LinuxContainerResources{CpuShares: -1}}
		}},
		{"linux.sysctls", errdef.Invalid, func(c *config) {
			c.Linux = &runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"vm.swappiness": "1"}}
		}},
	} {
		t.Run(tc.words, func(t *testing.T) {
			c := example().Pod.Config
			tc.edit(c)
			refused(t, ValidatePod(c), tc.kind, tc.words)
		})
	}
}

func TestValidateImageRefuses(t *testing.T) {
	many := map[string]struct{}{}
	for i := range maxVolumes + 1 {
		many[fmt.Sprintf("/v/%d", i)] = struct{}{}
	}
	for words, image := range map[string]imgspec.ImageConfig{
		"web:1: Entrypoint": {Entrypoint: []string{"/bin/a\x00"}},
		"Cmd":               {Cmd: []string{"a", "\x00"}},
		"Env":               {Env: []string{"A=\x00"}},
		"WorkingDir":        {WorkingDir: "/\x00"},
		"User":              {User: "0\x00"},
		"Volumes":           {Volumes: map[string]struct{}{"/a\x00": {}}},
		"257 Volumes":       {Volumes: many},
	} {
		refused(t, ValidateImage(example().Config, image), errdef.Invalid, words)
	}
}

// What an image calls a variable and is none would make some runtimes fail and others not.
func TestVariablesOfAnImageWithoutAName(t *testing.T) {
	in := example()
	in.Image.Env = []string{"", "=", "=x", "novalue", "A=", "B=c=d"}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=" + defaultPath, "HOSTNAME=web-0", "A=", "B=c=d", "HOME=/root"}
	if !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %q, want %q", s.Process.Env, want)
	}
}

func TestValidatePodAccepts(t *testing.T) {
	c := example().Pod.Config
	c.Hostname, c.LogDirectory = "web-0", "/var/log/pods/x"
	c.DnsConfig = &runtime.DNSConfig{Servers: []string{"10.10.10.10"}, Searches: []string{"google.com"}, Options: []string{"ndots:8"}}
	c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80}, {ContainerPort: 53, HostPort: 53, Protocol: runtime.Protocol_UDP, HostIp: "::1"}}
	c.Linux = &runtime.LinuxPodSandboxConfig{
		CgroupParent: "/test.slice",
		Sysctls:      map[string]string{"kernel.shm_rmid_forced": "1"},
		SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
			Pid: ownPID, Network: onNode, UsernsOptions: &runtime.UserNamespace{Mode: onNode}}},
	}
	if err := ValidatePod(c); err != nil {
		t.Error(err)
	}
}

func TestCheckSysctls(t *testing.T) {
	host := &runtime.NamespaceOption{Network: onNode, Ipc: onNode}
	for _, tc := range []struct {
		name, value string
		options     *runtime.NamespaceOption
		ok          bool
	}{
		{"net.ipv4.ip_unprivileged_port_start", "0", nil, true},
		{"net.ipv4.ip_unprivileged_port_start", "0", host, false},
		{"net/ipv4/conf/eth0.1/forwarding", "1", nil, true},
		{"net.ipv4.ping_group_range", "0\t2147483647", nil, true},
		{"kernel.shm_rmid_forced", "1", nil, true},
		{"kernel.shmmax", "1", host, false},
		{"kernel.msgmax", "1", nil, true},
		{"kernel.sem", "1 2 3 4", nil, true},
		{"fs.mqueue.msg_max", "100", nil, true},
		{"fs.mqueue.msg_max", "100", host, false},
		{"fs.file-max", "1", nil, false},
		{"net.ipv4.ip_forward", "", nil, false},
		{"net.ipv4.ip_forward", " \t", nil, false},
		{"kernel.domainname", "x", nil, false},
		{"kernel.sem_next_id", "1", nil, false},
		{"kernel.hostname", "x", nil, false},
		{"kernel.core_pattern", "|/bin/sh", nil, false},
		{"vm.max_map_count", "1", nil, false},
		{"net", "1", nil, false},
		{"network.x", "1", nil, false},
		{"net..ipv4", "1", nil, false},
		{"net/../kernel/core_pattern", "x", nil, false},
		{"net.ipv4.x\n", "1", nil, false},
		{"", "1", nil, false},
		{"net.ipv4.tcp_syncookies", "1\n2", nil, false},
		{"net.ipv4.tcp_syncookies", "1\x00", nil, false},
		{"net.ipv4.conf.eth0/1.forwarding", "1", nil, true},
		{"net.ipv4.//.core_pattern", "1", nil, false},
		{"net.ipv4./.forwarding", "1", nil, false},
		{"net/ipv4/./forwarding", "1", nil, false},
		{"net/ipv4//forwarding", "1", nil, false},
		{"/net/ipv4/ip_forward", "1", nil, false},
		{"kernel/shmmax", "1", host, false},
		{"kernel/core_pattern", "x", nil, false},
		// CVE-2022-0811: a value that is taken for a second setting.
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/var/lib/x", nil, false},
		{"net.ipv4.ip_forward", "1+1", nil, false},
		{"net.ipv4.ip_forward=1+kernel.core_pattern", "x", nil, false},
		{"net.ipv4.ip_forward", "kernel.core_pattern=x", nil, false},
	} {
		err := CheckSysctls(map[string]string{tc.name: tc.value}, tc.options)
		if tc.ok && err != nil {
			t.Errorf("%q: %v", tc.name, err)
		}
		if !tc.ok {
			refused(t, err, errdef.Invalid, strconv.Quote(tc.name))
		}
	}
}

func TestASysctlIsNotSetTwice(t *testing.T) {
	err := CheckSysctls(map[string]string{"net.ipv4.ip_forward": "0", "net/ipv4/ip_forward": "1"}, nil)
	refused(t, err, errdef.Invalid, "are one setting")
}
