package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// refused checks that err has the kind and tells the words.
func refused(t *testing.T, err, kind error, words string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want an error of kind %q", err, kind)
	}
	if !strings.Contains(err.Error(), words) {
		t.Errorf("error %q does not tell %q", err, words)
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		kind  error
		words string
		edit  func(*Input)
	}{
		{"no command anywhere", errdef.Invalid, "registry.example/web:1", func(in *Input) { in.Image = imgspec.ImageConfig{} }},
		{"capability that crid lacks", errdef.Invalid, "linux.security_context.capabilities.add_capabilities: crid itself runs without CAP_SYS_TIME", func(in *Input) {
			in.Host.Capabilities &^= 1 << unix.CAP_SYS_TIME
			security(in).Capabilities = &runtime.Capability{AddCapabilities: []string{"ALL", "SYS_TIME"}}
		}},
		{"ambient capability that crid lacks", errdef.Invalid, "add_ambient_capabilities: crid itself runs without CAP_CHOWN", func(in *Input) {
			in.Host.Capabilities &^= 1 << unix.CAP_CHOWN
			security(in).Capabilities = &runtime.Capability{AddAmbientCapabilities: []string{"CHOWN"}}
		}},
		{"huge pages of another machine", errdef.Invalid, `linux.resources.hugepage_limits: this host has no huge pages of size "3MB"`, func(in *Input) {
			in.Config.Linux.Resources = &runtime.LinuxContainerResources{HugepageLimits: pages("2MB", 0, "3MB", 0)}
		}},
		{"unified on v1", errdef.Invalid, `linux.resources.unified: "memory.high" cannot be set on this host: its cgroups are v1`, func(in *Input) {
			in.Host.Cgroup = fact.CgroupV1
			in.Config.Linux.Resources = &resources{Unified: map[string]string{"memory.high": "max"}}
		}},
		{"unified without its controller", errdef.Invalid, `linux.resources.unified: "rdma.max" cannot be set on this host: it has no cgroup controller rdma`, func(in *Input) {
			in.Config.Linux.Resources = &resources{Unified: map[string]string{"cgroup.max.depth": "1", "rdma.max": "x"}}
		}},
		{"unknown capability", errdef.Invalid, `drop_capabilities: unknown capability "FLY"`, func(in *Input) {
			security(in).Capabilities = &runtime.Capability{DropCapabilities: []string{"FLY"}}
		}},
		{"recursive read-only without the feature", errdef.RecursiveReadOnly, "mounts[0] (/x): recursive_read_only", func(in *Input) {
			in.Mounts = []Mount{{Mount: &runtime.Mount{ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true}}}
		}},
		{"a masked path in a shared mount", errdef.Invalid, `path "/proc/kcore" lies in a mount with PROPAGATION_BIDIRECTIONAL`, func(in *Input) {
			security(in).MaskedPaths = []string{"/proc/acpi", "/proc/kcore"}
			in.Mounts = []Mount{{Mount: &runtime.Mount{ContainerPath: "/x", Propagation: 2}, Holds: []string{"/proc/kcore"}}}
		}},
		{"unknown propagation", errdef.Invalid, "mounts[0] (/x): propagation", func(in *Input) {
			in.Mounts = []Mount{{Mount: &runtime.Mount{ContainerPath: "/x", Propagation: 7}}}
		}},
		{"pod without shared PID namespace", errdef.WrongState, "c0ffee", func(in *Input) {
			security(in).NamespaceOptions.Pid = runtime.NamespaceMode_POD
		}},
		{"unknown target", errdef.WrongState, "target", func(in *Input) {
			security(in).NamespaceOptions.Pid = runtime.NamespaceMode_TARGET
		}},
		{"malformed glob", errdef.Invalid, "allowed_annotations", func(in *Input) {
			in.AllowedAnnotations = []string{"[a"}
			in.Config.Annotations = map[string]string{"x": "y"}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := example()
			tc.edit(&in)
			_, err := Build(in)
			refused(t, err, tc.kind, tc.words)
		})
	}
}

// What is not limited must not be told to be.
func TestLimitsWithoutAController(t *testing.T) {
	for field, r := range map[string]*resources{
		"memory_limit_in_bytes: this host has no cgroup controller memory":      {MemoryLimitInBytes: 1},
		"memory_swap_limit_in_bytes: this host has no cgroup controller memory": {MemorySwapLimitInBytes: -1},
		"cpu_shares: this host has no cgroup controller cpu":                    {CpuShares: 2},
		"cpu_quota: this host has no cgroup controller cpu":                     {CpuQuota: -1},
		"cpu_period: this host has no cgroup controller cpu":                    {CpuPeriod: 1000},
		"cpuset_cpus: this host has no cgroup controller cpuset":                {CpusetCpus: "0"},
		"cpuset_mems: this host has no cgroup controller cpuset":                {CpusetMems: "0"},
	} {
		in := example()
		in.Host.Controllers, in.Config.Linux.Resources = []string{"pids"}, r
		_, err := Build(in)
		refused(t, err, errdef.Invalid, "linux.resources."+field)
		_, err = Update(r, r, in.Host)
		refused(t, err, errdef.Invalid, "linux."+field)
	}
	in := example()
	in.Host.Controllers, in.Config.Linux.Resources = []string{"cpu"}, &resources{CpuShares: 2, HugepageLimits: pages("2MB", 0)}
	if s, err := Build(in); err != nil || s.Linux.Resources.HugepageLimits != nil {
		t.Errorf("huge pages that cannot be limited: %v", err)
	}
}

func TestBuildAppliesEditsInOrder(t *testing.T) {
	name := func(s string) Edit {
		return func(c *specs.Spec) error { c.Hostname += s; return nil }
	}
	s, err := Build(example(), name("a"), name("b"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Hostname != "ab" {
		t.Errorf("hostname %q after the edits, want ab", s.Hostname)
	}
	_, err = Build(example(), func(*specs.Spec) error { return errdef.NotFound })
	refused(t, err, errdef.NotFound, "c0ffee")
}

func TestProcessArgs(t *testing.T) {
	image := imgspec.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}
	for _, tc := range []struct {
		command, args []string
		image         imgspec.ImageConfig
		want          string
	}{
		{nil, nil, image, "entry cmd"},
		{nil, []string{"a"}, image, "entry a"},
		{[]string{"c"}, nil, image, "c"},
		{[]string{"c"}, []string{"a"}, image, "c a"},
		{nil, nil, imgspec.ImageConfig{Cmd: []string{"cmd"}}, "cmd"},
		{nil, []string{"a"}, imgspec.ImageConfig{}, "a"},
	} {
		got, err := processArgs(&runtime.ContainerConfig{Command: tc.command, Args: tc.args}, tc.image)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("command %q args %q: got %q, want %q", tc.command, tc.args, got, tc.want)
		}
	}
}

func TestSharedPIDOfAHostPIDPodIsTheHosts(t *testing.T) {
	in := example()
	in.Pod.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_NODE}}}
	security(&in).NamespaceOptions.Pid = runtime.NamespaceMode_POD
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace }) {
		t.Errorf("namespaces %v hold a PID namespace", s.Linux.Namespaces)
	}
}

func TestViaLauncher(t *testing.T) {
	s := &specs.Spec{
		Process: &specs.Process{Args: []string{"sh", "-c", "x"}, Env: []string{"PATH=/a:/b", "A=x\xff=y", "B=\u20ac", "C=\xc3"}},
		Mounts:  []specs.Mount{{Destination: "/.crid"}, {Destination: "/proc"}},
	}
	before := s.Process.Env
	l, err := ViaLauncher(s)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=x\xff=y", "C=\xc3"}; !slices.Equal(l.Env, want) || l.Path != "/a:/b" {
		t.Errorf("the launcher sets %q, PATH %q; want %q", l.Env, l.Path, want)
	}
	if want := []string{"PATH=/a:/b", "A=", "B=\u20ac", "C="}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %q, want %q", s.Process.Env, want)
	}
	if before[1] != "A=x\xff=y" {
		t.Error("a list that others may hold was changed")
	}
	for name, p := range map[string]*specs.Process{"main": s.Process, "exec": ExecProcess(s, []string{"sh", "-c", "x"}, true)} {
		if want := []string{LauncherPath, "sh", "-c", "x"}; !slices.Equal(p.Args, want) {
			t.Errorf("%s: arguments %q, want %q", name, p.Args, want)
		}
	}
}

func TestNoLauncherWhereAllIsUTF8(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{Args: []string{"sh"}, Env: []string{"A=\u20ac"}}, Mounts: []specs.Mount{{Destination: LauncherPath}}}
	l, err := ViaLauncher(s)
	if l != nil || err != nil || !slices.Equal(s.Process.Args, []string{"sh"}) {
		t.Errorf("%v, %v, %q", l, err, s.Process.Args)
	}
	if got := ExecProcess(s, []string{"ls"}, false).Args; !slices.Equal(got, []string{"ls"}) {
		t.Errorf("exec runs %q", got)
	}
}

func TestViaLauncherRefuses(t *testing.T) {
	for want, s := range map[string]*specs.Spec{
		"its name":   {Process: &specs.Process{Args: []string{"sh"}, Env: []string{"A\xff=x"}}},
		`"A\xff"`:    {Process: &specs.Process{Args: []string{"sh"}, Env: []string{"A\xff"}}},
		"command /.": {Process: &specs.Process{Args: []string{LauncherPath}}},
		"mount at /": {Process: &specs.Process{Args: []string{"sh"}, Env: []string{"A=\xff"}}, Mounts: []specs.Mount{{Destination: LauncherPath}}},
	} {
		if _, err := ViaLauncher(s); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestMarshalIsValidUTF8(t *testing.T) {
	b, err := Marshal(&specs.Spec{Process: &specs.Process{Env: []string{"A=x\xffy", "B=\u20ac"}}})
	if err != nil {
		t.Fatal(err)
	}
	var back specs.Spec
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=x\ufffdy", "B=\u20ac"}; !slices.Equal(back.Process.Env, want) {
		t.Errorf("environment %q, want %q", back.Process.Env, want)
	}
}

func TestSpecVersion(t *testing.T) {
	for theirs, want := range map[string]string{
		"": oldestVersion, "unknown": oldestVersion, "1.0": oldestVersion,
		"1.0.0": "1.0.0", "1.0.2-dev": "1.0.2-dev", "1.1.0": "1.1.0", "1.10.0": specs.Version, "9.0.0": specs.Version,
		specs.Version: specs.Version,
	} {
		if got := specVersion(fact.Handler{SpecVersion: theirs}); got != want {
			t.Errorf("for a runtime that accepts %q: %q, want %q", theirs, got, want)
		}
	}
}

func TestResourcesLeaveOutWhatIsNotSpecified(t *testing.T) {
	host := fact.Host{Controllers: []string{"cpu", "cpuset", "memory", "hugetlb"}}
	if r := Resources(nil, host); r.Memory != nil || r.CPU != nil || r.Unified != nil || r.HugepageLimits != nil {
		t.Errorf("resources of nothing: %+v", r)
	}
	r := Resources(&runtime.LinuxContainerResources{CpusetCpus: "1"}, host)
	if r.Memory != nil || r.CPU.Shares != nil || r.CPU.Quota != nil || r.CPU.Cpus != "1" {
		t.Errorf("an update of the cpuset alone: %+v", r.CPU)
	}
	r = Resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, host)
	if *r.Memory.Limit != 10 || *r.Memory.Swap != 30 {
		t.Errorf("memory %d, memory and swap %d, want 10 and 30", *r.Memory.Limit, *r.Memory.Swap)
	}
	host.NoSwapLimit = true
	r = Resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 10}, host)
	if *r.Memory.Limit != 10 || r.Memory.Swap != nil {
		t.Errorf("memory %+v, want a limit of 10 and none of swap, which this host cannot limit", r.Memory)
	}
	if r = Resources(&runtime.LinuxContainerResources{MemorySwapLimitInBytes: 10}, host); r.Memory != nil {
		t.Errorf("memory %+v, want none", r.Memory)
	}
}

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		cri   runtime.Signal
		image string
		want  syscall.Signal
	}{
		{0, "", syscall.SIGTERM},
		{0, "SIGQUIT", syscall.SIGQUIT},
		{0, "quit", syscall.SIGQUIT},
		{0, "3", syscall.SIGQUIT},
		{0, "RTMIN", 34},
		{0, "SIGRTMIN+3", 37},
		{0, "rtmax-1", 63},
		{0, "SIGPOLL", syscall.SIGIO},
		{runtime.Signal_SIGNAL_SIGUSR1, "SIGQUIT", syscall.SIGUSR1},
		{runtime.Signal_SIGNAL_SIGRTMINPLUS15, "", 49},
		{runtime.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50},
		{runtime.Signal_SIGNAL_SIGRTMAX, "nonsense", 64},
	} {
		got, err := StopSignal(&runtime.ContainerConfig{StopSignal: tc.cri}, imgspec.ImageConfig{StopSignal: tc.image})
		if err != nil || got != tc.want {
			t.Errorf("stop_signal %v, image %q: got %d, %v, want %d", tc.cri, tc.image, got, err, tc.want)
		}
	}
	for _, bad := range []string{"0", "65", "-1", "SIG", "RT", "RTMIN-1", "RTMAX+1", "RTMIN3", "RTMIN+31", "TERM ", "SIGSIGTERM"} {
		_, err := StopSignal(&runtime.ContainerConfig{}, imgspec.ImageConfig{StopSignal: bad})
		refused(t, err, errdef.Invalid, bad)
	}
}

func TestEverySignalOfTheCRIIsKnown(t *testing.T) {
	second := map[runtime.Signal]runtime.Signal{
		runtime.Signal_SIGNAL_SIGCLD:  runtime.Signal_SIGNAL_SIGCHLD,
		runtime.Signal_SIGNAL_SIGIOT:  runtime.Signal_SIGNAL_SIGABRT,
		runtime.Signal_SIGNAL_SIGPOLL: runtime.Signal_SIGNAL_SIGIO,
	}
	for n := range runtime.Signal_name {
		s := runtime.Signal(n)
		if s == runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
			continue
		}
		sig, err := parseSignal(criSignalName(s))
		if err != nil {
			t.Errorf("%v: %v", s, err)
			continue
		}
		want := s
		if first, ok := second[s]; ok {
			want = first
		}
		if got := CRISignal(sig); got != want {
			t.Errorf("%v is signal %d, which is reported as %v", s, sig, got)
		}
	}
	if got := CRISignal(33); got != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		t.Errorf("signal 33 is reported as %v", got)
	}
}

func FuzzSignal(f *testing.F) {
	for _, s := range []string{"TERM", "SIGRTMIN+3", "RTMAX-1", "15", "RT", "", "SIG"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sig, err := parseSignal(s)
		switch {
		case err != nil && !errors.Is(err, errdef.Invalid):
			t.Errorf("%q: error %v is not Invalid", s, err)
		case err == nil && (sig < 1 || sig > sigrtmax):
			t.Errorf("%q is signal %d", s, sig)
		}
	})
}

// A crid that was started with fewer capabilities hands on what it has: a runtime that is asked for more fails.
func TestCapabilitiesThatCridLacks(t *testing.T) {
	for name, edit := range map[string]func(*runtime.LinuxContainerSecurityContext){
		"privileged": func(sc *runtime.LinuxContainerSecurityContext) { sc.Privileged = true },
		"all": func(sc *runtime.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtime.Capability{AddCapabilities: []string{"ALL"}}
		},
		"all ambient": func(sc *runtime.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtime.Capability{AddAmbientCapabilities: []string{"ALL"}}
		},
		"defaults": func(*runtime.LinuxContainerSecurityContext) {},
		"dropped": func(sc *runtime.LinuxContainerSecurityContext) {
			sc.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_TIME"}, DropCapabilities: []string{"SYS_TIME"}}
		},
	} {
		in := example()
		in.Host.Capabilities &^= 1<<unix.CAP_SYS_TIME | 1<<unix.CAP_MKNOD
		edit(security(&in))
		s, err := Build(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c := s.Process.Capabilities
		for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
			if slices.Contains(set, "CAP_SYS_TIME") || slices.Contains(set, "CAP_MKNOD") {
				t.Errorf("%s: %q", name, set)
			}
		}
		if !slices.Contains(c.Bounding, "CAP_CHOWN") {
			t.Errorf("%s: %q", name, c.Bounding)
		}
	}
}
