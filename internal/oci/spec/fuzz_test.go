package spec

import (
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// FuzzBuild goes the whole way from what a client sends and what an image says to a configuration: of a pod and a
// container that pass validation, nothing in it is what a runtime could take for something else.
func FuzzBuild(f *testing.F) {
	for _, v := range variants() {
		in := example()
		v.edit(&in)
		for _, m := range in.Mounts {
			in.Config.Mounts = append(in.Config.Mounts, m.Mount)
		}
		f.Add(encoded(f, in.Pod.Config), encoded(f, in.Config), []byte(`{"config":{"Env":["A=b"],"Cmd":["x"],"Volumes":{"/v":{}}}}`))
	}
	for _, image := range []string{
		`{"config":{"User":"0:0","WorkingDir":"../../etc","Env":["","=","x","A=\u0000"],"Entrypoint":["a\u0000b"]}}`,
		`{"config":{"Volumes":{"/../../etc":{},"":{},"/proc":{},"relative":{}},"StopSignal":"SIGRTMIN+3","Cmd":["c"]}}`,
	} {
		in := example()
		f.Add(encoded(f, in.Pod.Config), encoded(f, in.Config), []byte(image))
	}
	f.Fuzz(func(t *testing.T, pod, config, image []byte) {
		in := example()
		in.Config, in.Pod.Config = &runtime.ContainerConfig{}, &runtime.PodSandboxConfig{}
		var file imgspec.Image
		if proto.Unmarshal(pod, in.Pod.Config) != nil || proto.Unmarshal(config, in.Config) != nil || json.Unmarshal(image, &file) != nil {
			return
		}
		in.Image = file.Config
		if err := ValidatePod(in.Pod.Config); err != nil {
			hasKind(t, err)
			return
		}
		if err := ValidateContainer(in.Config, in.Pod.Config); err != nil {
			hasKind(t, err)
			return
		}
		if err := ValidateImage(in.Config, in.Image); err != nil {
			hasKind(t, err)
			return
		}
		_, err := StopSignal(in.Config, in.Image)
		hasKind(t, err)
		s, err := Build(resolved(in))
		if err != nil {
			hasKind(t, err)
			return
		}
		checkSpec(t, s)
	})
}

func encoded(f *testing.F, m proto.Message) []byte {
	f.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return raw
}

// resolved is in with its mounts, volumes and user looked up on a host that has everything.
func resolved(in Input) Input {
	for _, m := range in.Config.GetMounts() {
		in.Mounts = append(in.Mounts, Mount{Mount: m, Source: path.Join("/", m.GetHostPath())})
	}
	for dest := range in.Image.Volumes {
		in.Volumes = append(in.Volumes, Volume{Source: "/volumes/1", Destination: dest})
	}
	in.Handler.RecursiveReadOnly, in.Handler.UserNamespaces = true, true
	in.AllowedAnnotations = []string{"*"}
	return in
}

func hasKind(t *testing.T, err error) {
	t.Helper()
	kinds := []error{nil, errdef.Invalid, errdef.Unsupported, errdef.WrongState, errdef.RecursiveReadOnly}
	if !slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) }) {
		t.Errorf("error %v has no kind", err)
	}
}

// checkSpec looks for what would end a C string early, leave the root filesystem, or be no configuration at all.
func checkSpec(t *testing.T, s *specs.Spec) {
	t.Helper()
	if _, err := Marshal(s); err != nil {
		t.Errorf("cannot be written: %v", err)
	}
	for _, text := range slices.Concat(s.Process.Args, s.Process.Env, []string{s.Process.Cwd, s.Hostname, s.Linux.CgroupsPath},
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths) {
		if strings.ContainsRune(text, 0) {
			t.Errorf("NUL byte in %q", text)
		}
	}
	for _, v := range s.Process.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			t.Errorf("variable %q", v)
		}
	}
	if !path.IsAbs(s.Process.Cwd) || climbs(s.Process.Cwd) {
		t.Errorf("working directory %q", s.Process.Cwd)
	}
	for _, m := range s.Mounts {
		if m.Destination != path.Clean("/"+m.Destination) || m.Destination == "/" || strings.ContainsRune(m.Destination+m.Source, 0) {
			t.Errorf("mount %+v", m)
		}
		for _, option := range m.Options {
			if strings.ContainsAny(option, ",\x00") {
				t.Errorf("mount %s has option %q", m.Destination, option)
			}
		}
	}
	for _, d := range s.Linux.Devices {
		if !path.IsAbs(d.Path) {
			t.Errorf("device %q", d.Path)
		}
	}
}

// FuzzCheckSysctls sends names and values of sysctls: what passes is a setting of a namespace of the pod's own, whichever
// way it is written.
func FuzzCheckSysctls(f *testing.F) {
	for _, s := range [][2]string{
		{"net.ipv4.ip_forward", "1"}, {"net/ipv4/conf/eth0.1/forwarding", "0"}, {"kernel.shmmax", "+1=2"}, {"net..x", ""},
		{"net/../../x", "1"}, {"kernel.sem", "1\n2"}, {"fs.mqueue.msg_max", "\x00"}, {"net./.x", "1"},
	} {
		f.Add(s[0], s[1], false, false)
	}
	f.Fuzz(func(t *testing.T, name, value string, hostNet, hostIPC bool) {
		o := &runtime.NamespaceOption{}
		if hostNet {
			o.Network = runtime.NamespaceMode_NODE
		}
		if hostIPC {
			o.Ipc = runtime.NamespaceMode_NODE
		}
		if err := CheckSysctls(map[string]string{name: value}, o); err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		file := "/" + strings.NewReplacer(".", "/", "/", ".").Replace(SysctlName(name))
		switch {
		case file != path.Clean(file):
			t.Errorf("%q is the file %q", name, file)
		case strings.HasPrefix(file, "/net/") && !hostNet:
		case (strings.HasPrefix(file, "/kernel/") || strings.HasPrefix(file, "/fs/mqueue/")) && !hostIPC:
		default:
			t.Errorf("%q, the file %q, is not the pod's own", name, file)
		}
		if strings.ContainsAny(value, "\n\x00") {
			t.Errorf("%q has the value %q", name, value)
		}
	})
}

// FuzzUserMap sends lines of a map of ids: what passes is a map that the kernel takes.
func FuzzUserMap(f *testing.F) {
	f.Add(uint32(0), uint32(100000), uint32(65536), uint32(65536), uint32(0), uint32(1), false)
	f.Add(uint32(0), uint32(1), uint32(4294967295), uint32(5), uint32(1), uint32(4294967295), true)
	f.Fuzz(func(t *testing.T, c1, h1, n1, c2, h2, n2 uint32, two bool) {
		lines := []*runtime.IDMapping{{ContainerId: c1, HostId: h1, Length: n1}}
		if two {
			lines = append(lines, &runtime.IDMapping{ContainerId: c2, HostId: h2, Length: n2})
		}
		o := &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: lines, Gids: lines}}
		if err := validateUserns(o); err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		m := UserMap(&runtime.PodSandboxConfig{Linux: &runtime.LinuxPodSandboxConfig{
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: o}}})
		checkRanges(t, m.UIDs)
		if uid, _ := m.Root(); uid < 0 {
			t.Errorf("root is %d in %+v", uid, m)
		}
	})
}

// checkRanges wants ranges that are not empty, end within 32 bits and do not overlap on either side.
func checkRanges(t *testing.T, ranges []fact.IDRange) {
	t.Helper()
	overlap := func(a, b, na, nb uint32) bool {
		return uint64(a) < uint64(b)+uint64(nb) && uint64(b) < uint64(a)+uint64(na)
	}
	for i, r := range ranges {
		if r.Length == 0 || uint64(r.Container)+uint64(r.Length) > 1<<32 || uint64(r.Host)+uint64(r.Length) > 1<<32 {
			t.Errorf("range %+v", r)
		}
		for _, other := range ranges[:i] {
			if overlap(r.Container, other.Container, r.Length, other.Length) || overlap(r.Host, other.Host, r.Length, other.Length) {
				t.Errorf("ranges %+v and %+v overlap", r, other)
			}
		}
	}
}
