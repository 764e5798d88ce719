package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// setNamespaces gives the container a mount namespace of its own, the pod's network, IPC and UTS namespaces
// (the host's where the pod has none) and the PID namespace that it asks for.
func setNamespaces(s *specs.Spec, in Input) error {
	pid, err := pidNamespace(in)
	if err != nil {
		return err
	}
	list := podNamespaces(in.Pod)
	if pid != nil {
		list = append(list, *pid)
	}
	if ownCgroupNamespace(in) {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = list
	return nil
}

func podNamespaces(pod PodEnv) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, n := range []specs.LinuxNamespace{
		{Type: specs.NetworkNamespace, Path: pod.NetNS},
		{Type: specs.IPCNamespace, Path: pod.IPCNS},
		{Type: specs.UTSNamespace, Path: pod.UTSNS},
	} {
		if n.Path != "" {
			list = append(list, n)
		}
	}
	return list
}

// pidNamespace answers nil for the host's. In a pod that is itself in the host's PID namespace, mode POD
// means the host's.
func pidNamespace(in Input) (*specs.LinuxNamespace, error) {
	join := func(path, what string) (*specs.LinuxNamespace, error) {
		if path == "" {
			return nil, fmt.Errorf("container %s: %s: %w", in.ID, what, errdef.WrongState)
		}
		return &specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path}, nil
	}
	switch mode := securityContext(in.Config).GetNamespaceOptions().GetPid(); mode {
	case runtime.NamespaceMode_NODE:
		return nil, nil
	case runtime.NamespaceMode_CONTAINER:
		return &specs.LinuxNamespace{Type: specs.PIDNamespace}, nil
	case runtime.NamespaceMode_TARGET:
		return join(in.Target, "the target's PID namespace is not known")
	case runtime.NamespaceMode_POD:
		if podOptions(in.Pod.Config).GetPid() == runtime.NamespaceMode_NODE {
			return nil, nil
		}
		return join(in.Pod.PIDNS, "the pod has no shared PID namespace")
	default:
		return nil, fmt.Errorf("linux.security_context.namespace_options.pid: unknown mode %v: %w", mode, errdef.Invalid)
	}
}

// ownCgroupNamespace hides the host's cgroups. It needs cgroup v2 to be of use, and a privileged container
// is meant to see the host.
func ownCgroupNamespace(in Input) bool {
	return in.Host.Cgroup == fact.CgroupV2 && !securityContext(in.Config).GetPrivileged()
}

// podOptions answers nil, which means POD for everything, where the pod's config has no options.
func podOptions(c *runtime.PodSandboxConfig) *runtime.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}
