package sandbox

import (
	"errors"
	"fmt"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/oci/spec"
)

// plan completes the record of a pod to be made with all that undoing it will need, and says what to pin. It
// makes nothing.
func (m *Manager) plan(id string, rec Record) (Record, ns.Want, error) {
	cfg := rec.Config.PodSandboxConfig
	w := want(cfg)
	var err error
	if rec.Hostname, err = m.hostname(id, cfg); err != nil {
		return rec, w, err
	}
	w.Hostname, w.Sysctls = rec.Hostname, sysctls(cfg, m.deps.Config.Sysctls, w)
	if rec.CgroupParent, err = m.cgroupParent(cfg); err != nil {
		return rec, w, err
	}
	if !w.Net {
		return rec, w, nil
	}
	req, err := networkRequest(id, cfg)
	if err != nil {
		return rec, w, err
	}
	req.NetNS = m.deps.Namespaces.Paths(id, w).Net
	req.Cgroup = rec.CgroupParent
	if req, err = m.deps.Network.Prepare(req); err != nil {
		return rec, w, err
	}
	rec.Network = &req
	return rec, w, nil
}

// hostname is the host's own for host-network pods: they live in its UTS namespace. A pod that names none is
// called by its id.
func (m *Manager) hostname(id string, cfg *runtime.PodSandboxConfig) (string, error) {
	if hostNetwork(cfg) {
		name, err := m.deps.Config.Hostname()
		if err != nil {
			return "", fmt.Errorf("read the host's name: %w", err)
		}
		return name, nil
	}
	if name := cfg.GetHostname(); name != "" {
		return name, nil
	}
	return id[:12], nil
}

func (m *Manager) cgroupParent(cfg *runtime.PodSandboxConfig) (string, error) {
	asked := cfg.GetLinux().GetCgroupParent()
	if asked == "" {
		return m.deps.Config.CgroupParent, nil
	}
	parent, err := m.deps.Config.Cgroups.Parent(asked)
	if err != nil {
		return "", fmt.Errorf("linux.cgroup_parent: %w", err)
	}
	return parent, nil
}

// sysctls merges the pod's over the defaults. Defaults are not for host-network pods; one that belongs to an IPC
// namespace which the pod shares with the host is left out.
func sysctls(cfg *runtime.PodSandboxConfig, defaults map[string]string, w ns.Want) map[string]string {
	merged := map[string]string{}
	for name, value := range defaults {
		if w.Net && (w.IPC || strings.HasPrefix(name, "net.")) {
			merged[name] = value
		}
	}
	for name, value := range cfg.GetLinux().GetSysctls() {
		merged[spec.SysctlName(name)] = value
	}
	return merged
}

// sysctlField tells of a setting that the kernel refuses who asked for it: the pod, or crid's configuration.
func sysctlField(err error, cfg *runtime.PodSandboxConfig) error {
	refused := (*ns.SysctlError)(nil)
	if !errors.As(err, &refused) {
		return err
	}
	for name := range cfg.GetLinux().GetSysctls() {
		if spec.SysctlName(name) == refused.Name {
			return fmt.Errorf("linux.sysctls: %w", err)
		}
	}
	return fmt.Errorf("default_sysctls of crid.toml: %w", err)
}

// networkRequest says all that the pod asks of its network, but the namespace's path.
func networkRequest(id string, cfg *runtime.PodSandboxConfig) (network.Request, error) {
	meta := cfg.GetMetadata()
	ingress, egress, err := network.Bandwidth(cfg.GetAnnotations())
	return network.Request{
		ID:      id,
		Args:    network.PodArgs(meta.GetNamespace(), meta.GetName(), meta.GetUid(), id),
		Ports:   ports(cfg.GetPortMappings()),
		Ingress: ingress,
		Egress:  egress,
	}, err
}

// ports leaves out what has no host port: the kubelet sends every port of every container.
func ports(mappings []*runtime.PortMapping) []network.PortMapping {
	var all []network.PortMapping
	for _, pm := range mappings {
		if pm.GetHostPort() != 0 {
			all = append(all, network.PortMapping{
				HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(),
				Protocol: strings.ToLower(pm.GetProtocol().String()), HostIP: pm.GetHostIp(),
			})
		}
	}
	return all
}
