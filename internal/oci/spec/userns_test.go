package spec

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/golden"
)

// line is one line of a mapping.
func line(container, host, length uint32) *runtime.IDMapping {
	return &runtime.IDMapping{ContainerId: container, HostId: host, Length: length}
}

type lines = []*runtime.IDMapping

// inUserns puts the example's pod into a user namespace of two lines.
func inUserns(in *Input) {
	in.Pod.UserNS = "/run/crid/ns/user/b0d"
	in.Handler.UserNamespaces = true
	in.Pod.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{
			Uids: lines{line(0, 100000, 65535), line(65535, 300000, 1)},
			Gids: lines{line(0, 200000, 65535), line(65535, 400000, 1)},
		}}}}
}

// longLines are a mapping of 15 bytes as text and n of 19.
func longLines(n int) lines {
	all := lines{line(0, 1000000000, 1)}
	for i := range uint32(n) {
		all = append(all, line(10000+i, 1000010000+i, 1))
	}
	return all
}

func TestValidatePodUserns(t *testing.T) {
	one := lines{line(0, 1000, 100)}
	for _, tc := range []struct {
		words      string // of the error; empty = accepted
		uids, gids lines
	}{
		{"", one, one},
		{"", lines{line(0, 1000, 100), line(100, 5000, 100)}, one},
		{"", lines{line(5, 1000, 100), line(0, 5000, 5)}, lines{line(0, 0, 1<<32-1)}},
		{"userns_options.uids: no mapping of container id 0", nil, one},
		{"userns_options.gids: no mapping of container id 0", one, nil},
		{"uids: no mapping of container id 0", lines{line(1, 1000, 100)}, one},
		{"gids: mappings 0 and 1 overlap", one, lines{line(0, 1000, 100), line(0, 2000, 100)}},
		{"uids: mappings 0 and 1 overlap", lines{line(0, 1000, 100), line(100, 1099, 100)}, one},
		{"uids: mapping 0 has length 0", lines{line(0, 1000, 0)}, one},
		{"uids: mapping 0 goes beyond", lines{line(0, 1<<31, 1<<31)}, one},
		{"uids: 341 mappings", make(lines, 341), one},
		{"", longLines(214), one},
		{"gids: the 216 mappings take 4100 bytes as text", one, longLines(215)},
	} {
		c := example().Pod.Config
		c.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: tc.uids, Gids: tc.gids}}}}
		err := ValidatePod(c)
		if tc.words == "" && err != nil {
			t.Error(err)
		}
		if tc.words != "" {
			refused(t, err, errdef.Invalid, tc.words)
		}
	}
	for field, edit := range map[string]func(*runtime.NamespaceOption){
		"host's network namespace": func(o *runtime.NamespaceOption) { o.Network = onNode },
		"host's pid namespace":     func(o *runtime.NamespaceOption) { o.Pid = onNode },
		"host's ipc namespace":     func(o *runtime.NamespaceOption) { o.Ipc = onNode },
		"mode NODE":                func(o *runtime.NamespaceOption) { o.UsernsOptions.Mode = onNode },
		"mode CONTAINER":           func(o *runtime.NamespaceOption) { o.UsernsOptions.Mode = ownPID },
		"mode TARGET":              func(o *runtime.NamespaceOption) { o.UsernsOptions.Mode = target },
	} {
		in := example()
		inUserns(&in)
		edit(podOptions(in.Pod.Config))
		refused(t, ValidatePod(in.Pod.Config), errdef.Invalid, field)
	}
}

func TestValidateContainerUserns(t *testing.T) {
	pod := example()
	inUserns(&pod)
	mine := podOptions(pod.Pod.Config).GetUsernsOptions()
	plain := example().Pod.Config
	for _, tc := range []struct {
		words string
		pod   *runtime.PodSandboxConfig
		user  *runtime.UserNamespace
		mount *runtime.Mount
	}{
		{"", pod.Pod.Config, nil, nil},
		{"", pod.Pod.Config, mine, &runtime.Mount{UidMappings: mine.Uids, GidMappings: mine.Gids}},
		{"", plain, &runtime.UserNamespace{Mode: onNode}, nil},
		{"userns_options.mode", pod.Pod.Config, &runtime.UserNamespace{Mode: onNode}, nil},
		{"userns_options.mode", plain, mine, nil},
		{"userns_options.mode", pod.Pod.Config, &runtime.UserNamespace{Mode: target}, nil},
		{"mappings are not the pod's", pod.Pod.Config, &runtime.UserNamespace{Uids: mine.Uids, Gids: mine.Uids}, nil},
		{"propagation", pod.Pod.Config, mine, &runtime.Mount{Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}},
		{"uidMappings", pod.Pod.Config, mine, &runtime.Mount{UidMappings: mine.Uids}},
		{"uidMappings", plain, nil, &runtime.Mount{UidMappings: mine.Uids, GidMappings: mine.Gids}},
	} {
		c := example().Config
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = tc.user
		if tc.mount != nil {
			tc.mount.ContainerPath, tc.mount.HostPath = "/a", "/x"
			c.Mounts = []*runtime.Mount{tc.mount}
		}
		err := ValidateContainer(c, tc.pod)
		if tc.words == "" && err != nil {
			t.Error(err)
		}
		if tc.words != "" {
			refused(t, err, errdef.Invalid, tc.words)
		}
	}
}

func TestBuildInUserns(t *testing.T) {
	in := example()
	inUserns(&in)
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "userns", s)
	if s, err = BuildPause(in); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "userns-pause", s)

	in.Pod.UserNS, in.Handler.FlatBinds, in.Handler.RecursiveReadOnly = "/run/crid/ns/user/p", true, true
	in.Mounts = []Mount{
		{Mount: &runtime.Mount{ContainerPath: "/vol", MountOptions: []string{"noexec"}}, Source: "/srv", Flags: []string{"nosuid", "noexec"},
			Below: []Submount{{"sub", []string{"ro", "nodev"}}, {"sub/in", nil}, {"taken/x", nil}, {"other", nil}}},
		{Mount: &runtime.Mount{ContainerPath: "/vol/taken", Readonly: true}, Source: "/mine", Flags: []string{"ro", "nosuid"}},
		{Mount: &runtime.Mount{ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true}, Source: "/srv/2", Below: []Submount{{"sub", nil}}},
	}
	if s, err = Build(in); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "userns-flat-binds", s)

	in.User.Additional = []uint32{0, 70000}
	_, err = Build(in)
	refused(t, err, errdef.Invalid, "group 70000")
	in.User = User{UID: 65536}
	_, err = Build(in)
	refused(t, err, errdef.Invalid, "user 65536")

	in.User, in.Handler.UserNamespaces = User{}, false
	_, err = Build(in)
	refused(t, err, errdef.Unsupported, "userns_options")
}
