package sandbox

import (
	"fmt"
	"math/big"
	"path"
	"regexp"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
)

// plan completes the record of a pod to be made with all that undoing it will need, and says what to pin. It
// makes nothing.
func (m *Manager) plan(id string, rec Record) (Record, ns.Want, error) {
	cfg := rec.Config.PodSandboxConfig
	w := want(cfg)
	sysctls, err := sysctls(cfg, m.deps.Config.Sysctls, w)
	if err != nil {
		return rec, w, err
	}
	if rec.Hostname, err = m.hostname(id, cfg); err != nil {
		return rec, w, err
	}
	w.Hostname, w.Sysctls = rec.Hostname, sysctls
	rec.CgroupParent = cgroupParent(cfg, m.deps.Config.CgroupParent)
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

// cgroupParent cleans a path and leaves the name of a slice as it is.
func cgroupParent(cfg *runtime.PodSandboxConfig, otherwise string) string {
	parent := cfg.GetLinux().GetCgroupParent()
	switch {
	case parent == "":
		return otherwise
	case strings.HasPrefix(parent, "/"):
		return path.Clean(parent)
	default:
		return parent
	}
}

// sysctls merges the pod's over the defaults. A sysctl of a namespace that the pod shares with the host would
// change the host: it is refused when the pod asks for it, and left out when it is a default.
func sysctls(cfg *runtime.PodSandboxConfig, defaults map[string]string, w ns.Want) (map[string]string, error) {
	merged := map[string]string{}
	for name, value := range defaults {
		if sysctlFits(name, w) {
			merged[name] = value
		}
	}
	for name, value := range cfg.GetLinux().GetSysctls() {
		name := strings.ReplaceAll(name, "/", ".")
		if !sysctlFits(name, w) {
			return nil, fmt.Errorf("linux.sysctls: %s: %w: it belongs to no namespace that the pod has of its own", name, errdef.Invalid)
		}
		merged[name] = value
	}
	return merged, nil
}

// sysctlFits tells whether the sysctl lives in one of the namespaces wanted.
func sysctlFits(name string, w ns.Want) bool {
	if strings.HasPrefix(name, "net.") {
		return w.Net
	}
	for _, prefix := range []string{"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."} {
		if strings.HasPrefix(name, prefix) {
			return w.IPC
		}
	}
	return name == "kernel.domainname" && w.UTS
}

// The annotations by which Kubernetes limits a pod's bandwidth: quantities of bits a second.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
)

// networkRequest says all that the pod asks of its network, but the namespace's path.
func networkRequest(id string, cfg *runtime.PodSandboxConfig) (network.Request, error) {
	meta := cfg.GetMetadata()
	req := network.Request{ID: id, Args: map[string]string{
		"IgnoreUnknown":              "1",
		"K8S_POD_NAMESPACE":          meta.GetNamespace(),
		"K8S_POD_NAME":               meta.GetName(),
		"K8S_POD_UID":                meta.GetUid(),
		"K8S_POD_INFRA_CONTAINER_ID": id,
	}}
	var err error
	if req.Ports, err = ports(cfg.GetPortMappings()); err != nil {
		return req, err
	}
	if req.Ingress, err = bandwidth(cfg, ingressBandwidth); err != nil {
		return req, err
	}
	req.Egress, err = bandwidth(cfg, egressBandwidth)
	return req, err
}

// ports leaves out what has no host port: the kubelet sends every port of every container.
func ports(mappings []*runtime.PortMapping) ([]network.PortMapping, error) {
	var all []network.PortMapping
	for i, pm := range mappings {
		if pm.GetHostPort() == 0 {
			continue
		}
		if !isPort(pm.GetHostPort()) || !isPort(pm.GetContainerPort()) {
			return nil, fmt.Errorf("port_mappings[%d]: %w: %d to %d: ports go from 1 to 65535",
				i, errdef.Invalid, pm.GetHostPort(), pm.GetContainerPort())
		}
		protocol, ok := runtime.Protocol_name[int32(pm.GetProtocol())]
		if !ok {
			return nil, fmt.Errorf("port_mappings[%d]: %w: protocol %d is unknown", i, errdef.Invalid, pm.GetProtocol())
		}
		all = append(all, network.PortMapping{
			HostPort: pm.GetHostPort(), ContainerPort: pm.GetContainerPort(),
			Protocol: strings.ToLower(protocol), HostIP: pm.GetHostIp(),
		})
	}
	return all, nil
}

func isPort(n int32) bool { return n > 0 && n <= 65535 }

func bandwidth(cfg *runtime.PodSandboxConfig, annotation string) (int64, error) {
	text, ok := cfg.GetAnnotations()[annotation]
	if !ok {
		return 0, nil
	}
	bits, err := quantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s: %w", annotation, err)
	}
	return bits, nil
}

// quantityPattern is what Kubernetes takes for a positive quantity: a decimal number, then a decimal or
// binary suffix or an exponent.
var quantityPattern = regexp.MustCompile(`^\+?([0-9]+\.?[0-9]*|\.[0-9]+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?$`)

// quantity reads a Kubernetes quantity, rounded up to a whole number as Kubernetes does. At least 1: to limit
// to nothing would be no network.
func quantity(text string) (int64, error) {
	parts := quantityPattern.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("%q: %w: a quantity like 10M is wanted", text, errdef.Invalid)
	}
	value, ok := new(big.Rat).SetString(strings.TrimSuffix(parts[1], "."))
	if !ok {
		return 0, fmt.Errorf("%q: %w: a quantity like 10M is wanted", text, errdef.Invalid)
	}
	value.Mul(value, scale(parts[2], parts[3]))
	whole, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	if !whole.IsInt64() || whole.Sign() <= 0 {
		return 0, fmt.Errorf("%q: %w: a quantity from 1 to 2^63-1 is wanted", text, errdef.Invalid)
	}
	return whole.Int64(), nil
}

// scale is what a suffix (k, Mi, ...) or an exponent multiplies by.
func scale(suffix, exponent string) *big.Rat {
	base, power := int64(10), 0
	switch {
	case exponent != "":
		power, _ = strconv.Atoi(exponent) // two digits, by the pattern
	case strings.HasSuffix(suffix, "i"):
		base, power = 2, 10*(1+strings.Index("KMGTPE", suffix[:1]))
	case suffix != "":
		power = 3 * (strings.Index("num kMGTPE", suffix) - 3)
	}
	pow := new(big.Int).Exp(big.NewInt(base), big.NewInt(int64(max(power, -power))), nil)
	if power < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), pow)
	}
	return new(big.Rat).SetInt(pow)
}
