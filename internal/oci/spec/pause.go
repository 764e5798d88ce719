package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/fact"
)

// pauseUser owns nothing anywhere, so the pause can be signalled by root alone.
const pauseUser = 65535

// pauseOOMScoreAdj keeps a pod's PID namespace alive longer than what runs in it.
const pauseOOMScoreAdj = -998

// BuildPause makes the configuration of the process that holds a pod's shared PID namespace: /pause on a
// read-only root, in a new PID namespace and in the pod's others, with no capability and no way to gain one.
// Of in it takes ID, Pod, Host, Handler, Rootfs, Cgroup and Confinement. /dev is a tmpfs because runtimes make
// device nodes there, and the root filesystem is shared by all pauses.
func BuildPause(in Input) (*specs.Spec, error) {
	s, err := base(in)
	if err != nil {
		return nil, err
	}
	s.Root.Readonly = true
	p := s.Process
	p.Args = []string{"/pause"}
	p.Cwd = "/"
	p.Env = []string{"PATH=" + defaultPath}
	p.User = pauseIdentity(UserMap(in.Pod.Config))
	p.Capabilities = &specs.LinuxCapabilities{}
	p.NoNewPrivileges = true
	p.OOMScoreAdj = oomScoreAdj(pauseOOMScoreAdj, in.Host)
	s.Mounts = []specs.Mount{procMount(), devMount()}
	s.Linux.Namespaces = append(podNamespaces(in.Pod), specs.LinuxNamespace{Type: specs.PIDNamespace})
	if ownCgroupNamespace(in) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if err := setUserns(s, in); err != nil {
		return nil, err
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: allAccess}}}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = defaultMaskedPaths(), defaultReadonlyPaths()
	in.Confinement.apply(s)
	s.Annotations = inScope(podAnnotations(in.Pod, "sandbox"), in.Cgroup)
	return s, nil
}

// pauseIdentity is nobody, or root without any capability where the pod's user namespace has no such id.
func pauseIdentity(users fact.IDMap) specs.User {
	if !mapped(users.UIDs, pauseUser) || !mapped(users.GIDs, pauseUser) {
		return specs.User{AdditionalGids: []uint32{0}}
	}
	return specs.User{UID: pauseUser, GID: pauseUser, AdditionalGids: []uint32{pauseUser}}
}
