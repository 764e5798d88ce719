package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/crid/crid/internal/errdef"
)

// PodArgs are the CNI arguments by which plugins know a Kubernetes pod.
func PodArgs(namespace, name, uid, id string) map[string]string {
	return map[string]string{
		"IgnoreUnknown":              "1", // plugins that know none of these must not fail
		"K8S_POD_NAMESPACE":          namespace,
		"K8S_POD_NAME":               name,
		"K8S_POD_UID":                uid,
		"K8S_POD_INFRA_CONTAINER_ID": id,
	}
}

// check refuses what a plugin would misread.
func (r Request) check() error {
	if err := utils.ValidateContainerID(r.ID); err != nil {
		return fmt.Errorf("network id %q: %s: %w", r.ID, err.Msg, errdef.Invalid)
	}
	if err := utils.ValidateInterfaceName(r.IfName); err != nil {
		return fmt.Errorf("interface name %q: %s: %w", r.IfName, err.Msg, errdef.Invalid)
	}
	for k, v := range r.Args {
		if strings.ContainsAny(k, ";=") || strings.ContainsAny(v, ";") {
			return fmt.Errorf("CNI argument %s=%q: contains a separator: %w", k, v, errdef.Invalid)
		}
	}
	for _, p := range r.Ports {
		if err := p.check(); err != nil {
			return err
		}
	}
	return nil
}

func (p PortMapping) check() error {
	for what, port := range map[string]int32{"host port": p.HostPort, "container port": p.ContainerPort} {
		if port < 1 || port > 65535 {
			return fmt.Errorf("%s %d: not in 1-65535: %w", what, port, errdef.Invalid)
		}
	}
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, p.Protocol) {
		return fmt.Errorf("host port %d: protocol %q is none of tcp, udp, sctp: %w", p.HostPort, p.Protocol, errdef.Invalid)
	}
	if p.HostIP != "" {
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			return fmt.Errorf("host port %d: host address %q is no IP address: %w", p.HostPort, p.HostIP, errdef.Invalid)
		}
	}
	return nil
}

// capabilities are the arguments that libcni passes to those plugins that declare them.
type capabilities struct {
	Ports     []PortMapping `json:"portMappings"`
	Bandwidth *bandwidth    `json:"bandwidth"`
	Cgroup    string        `json:"cgroupPath"`
}

// bandwidth is the capability argument of that name; rates in bits a second, bursts in bits.
type bandwidth struct {
	IngressRate  int64 `json:"ingressRate,omitempty"`
	IngressBurst int64 `json:"ingressBurst,omitempty"`
	EgressRate   int64 `json:"egressRate,omitempty"`
	EgressBurst  int64 `json:"egressBurst,omitempty"`
}

// runtimeConf is r as libcni takes it; the order of the arguments does not change between calls.
func (r Request) runtimeConf() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: r.ID, NetNS: r.NetNS, IfName: r.IfName, CapabilityArgs: map[string]any{}}
	for _, k := range slices.Sorted(maps.Keys(r.Args)) {
		rt.Args = append(rt.Args, [2]string{k, r.Args[k]})
	}
	if len(r.Ports) > 0 {
		rt.CapabilityArgs["portMappings"] = r.Ports
	}
	if r.Ingress > 0 || r.Egress > 0 {
		rt.CapabilityArgs["bandwidth"] = bandwidth{
			IngressRate: r.Ingress, IngressBurst: burst(r.Ingress),
			EgressRate: r.Egress, EgressBurst: burst(r.Egress),
		}
	}
	if r.Cgroup != "" {
		rt.CapabilityArgs["cgroupPath"] = r.Cgroup
	}
	return rt
}

// burst is a tenth of a second's worth of rate: enough for any timer frequency of the kernel, small enough
// for the limit to be felt. The plugin refuses 4 GiB and more, and below 1 MiB large packets would stall.
func burst(rate int64) int64 {
	const mib = 8 << 20
	if rate == 0 {
		return 0
	}
	return min(max(rate/10, mib), 2047*mib)
}

// selfContained tells of which plugins it is known that they leave host ports to others. A network with any
// other plugin may map ports by itself, as Cilium does, so it is not for crid to refuse it.
func selfContained(plugin string) bool {
	switch plugin {
	case "bridge", "ptp", "ipvlan", "macvlan", "vlan", "host-device", "dummy", "tap", "loopback", "flannel",
		"tuning", "bandwidth", "firewall", "sbr", "vrf":
		return true
	}
	return false
}

// mapsPorts tells whether some plugin of list maps host ports, or may do so.
func mapsPorts(list *libcni.NetworkConfigList) bool {
	for _, p := range list.Plugins {
		if p.Network.Capabilities["portMappings"] || !selfContained(p.Network.Type) {
			return true
		}
	}
	return false
}
