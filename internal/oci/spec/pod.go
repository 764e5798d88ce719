package spec

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// maxHostname is the kernel's limit for the name of a UTS namespace, in bytes.
const maxHostname = 64

// ValidatePod refuses, naming the CRI field, what cannot become a pod, before anything is done for it.
func ValidatePod(c *runtime.PodSandboxConfig) error {
	if err := cmp.Or(validateText(c), validateMetadata(c.GetMetadata())); err != nil {
		return err
	}
	if h := c.GetHostname(); len(h) > maxHostname || !oneWord(h) || strings.Contains(h, "/") {
		return fmt.Errorf("hostname %q: longer than %d bytes, or with a space or a slash: %w", h, maxHostname, errdef.Invalid)
	}
	if d := c.GetLogDirectory(); d != "" && (!path.IsAbs(d) || climbs(d)) {
		return fmt.Errorf("log_directory %q is not an absolute path without \"..\": %w", d, errdef.Invalid)
	}
	if _, ok := c.GetLabels()[""]; ok {
		return fmt.Errorf("labels: empty key: %w", errdef.Invalid)
	}
	if err := validateDNS(c.GetDnsConfig()); err != nil {
		return err
	}
	for i, p := range c.GetPortMappings() {
		if err := validatePort(p); err != nil {
			return fmt.Errorf("port_mappings[%d]: %w", i, err)
		}
	}
	if err := validatePodNamespaces(podOptions(c)); err != nil {
		return err
	}
	for _, r := range []struct {
		field string
		value *runtime.LinuxContainerResources
	}{{"linux.overhead", c.GetLinux().GetOverhead()}, {"linux.resources", c.GetLinux().GetResources()}} {
		if err := ValidateChange(r.field, r.value); err != nil {
			return err
		}
	}
	if p := c.GetLinux().GetCgroupParent(); climbs(p) {
		return fmt.Errorf("linux.cgroup_parent %q: has a component \"..\": %w", p, errdef.Invalid)
	}
	if err := CheckSysctls(c.GetLinux().GetSysctls(), podOptions(c)); err != nil {
		return fmt.Errorf("linux.sysctls: %w", err)
	}
	return nil
}

// validateMetadata asks for what names a pod. A slash or semicolon would reach into file names and CNI_ARGS.
func validateMetadata(m *runtime.PodSandboxMetadata) error {
	for _, f := range []struct{ name, value string }{
		{"name", m.GetName()}, {"uid", m.GetUid()}, {"namespace", m.GetNamespace()},
	} {
		if f.value == "" {
			return fmt.Errorf("metadata.%s is empty: %w", f.name, errdef.Invalid)
		}
		if !oneWord(f.value) || strings.ContainsAny(f.value, "/;=") {
			return fmt.Errorf("metadata.%s %q: has a space or one of / ; =: %w", f.name, f.value, errdef.Invalid)
		}
	}
	return nil
}

// validateDNS keeps each value from becoming a line or a word of its own in resolv.conf.
func validateDNS(d *runtime.DNSConfig) error {
	for _, list := range []struct {
		field  string
		values []string
	}{{"servers", d.GetServers()}, {"searches", d.GetSearches()}, {"options", d.GetOptions()}} {
		for i, v := range list.values {
			if v == "" || !oneWord(v) {
				return fmt.Errorf("dns_config.%s[%d] %q: empty or with a space: %w", list.field, i, v, errdef.Invalid)
			}
		}
	}
	return nil
}

// validatePort accepts host port 0, which means none and is what the kubelet sends for most ports.
func validatePort(p *runtime.PortMapping) error {
	if _, known := runtime.Protocol_name[int32(p.GetProtocol())]; !known {
		return fmt.Errorf("protocol: unknown %v: %w", p.GetProtocol(), errdef.Invalid)
	}
	if n := p.GetContainerPort(); n < 0 || n > 65535 {
		return fmt.Errorf("container_port %d is not within 0 and 65535: %w", n, errdef.Invalid)
	}
	if n := p.GetHostPort(); n < 0 || n > 65535 {
		return fmt.Errorf("host_port %d is not within 0 and 65535: %w", n, errdef.Invalid)
	}
	if p.GetHostPort() != 0 && p.GetContainerPort() == 0 {
		return fmt.Errorf("container_port is not set for host_port %d: %w", p.GetHostPort(), errdef.Invalid)
	}
	if ip := p.GetHostIp(); ip != "" {
		if _, err := netip.ParseAddr(ip); err != nil {
			return fmt.Errorf("host_ip %q is no IP address: %w", ip, errdef.Invalid)
		}
	}
	return nil
}

func validatePodNamespaces(o *runtime.NamespaceOption) error {
	if err := podLevel("network", o.GetNetwork()); err != nil {
		return err
	}
	if err := podLevel("ipc", o.GetIpc()); err != nil {
		return err
	}
	const field = "linux.security_context.namespace_options"
	if p := o.GetPid(); p != runtime.NamespaceMode_CONTAINER && podLevel("pid", p) != nil {
		return fmt.Errorf("%s.pid: a pod cannot have mode %v: %w", field, p, errdef.Invalid)
	}
	return validateUserns(o)
}

// podLevel refuses modes that make no sense for a namespace that all containers of a pod share.
func podLevel(kind string, m runtime.NamespaceMode) error {
	if m == runtime.NamespaceMode_POD || m == runtime.NamespaceMode_NODE {
		return nil
	}
	return fmt.Errorf("linux.security_context.namespace_options.%s: mode %v is neither POD nor NODE: %w", kind, m,
		errdef.Invalid)
}

// CheckSysctls accepts only what belongs to a namespace that the pod has of its own; any other sysctl would
// change the host. No such setting takes a value with a plus or equals sign: those are how one setting is made to
// pass for two.
func CheckSysctls(sysctls map[string]string, o *runtime.NamespaceOption) error {
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		if err := checkSysctl(name, o); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		if strings.TrimSpace(sysctls[name]) == "" {
			return fmt.Errorf("%q: the value is empty: %w", name, errdef.Invalid)
		}
		if strings.ContainsAny(sysctls[name], "\n\x00+=") {
			return fmt.Errorf("%q: value %q has a line break, a NUL byte, a plus or an equals sign: %w", name,
				sysctls[name], errdef.Invalid)
		}
		if other, twice := seen[SysctlName(name)]; twice {
			return fmt.Errorf("%q and %q are one setting: %w", other, name, errdef.Invalid)
		}
		seen[SysctlName(name)] = name
	}
	return nil
}

// SysctlName is the name with dots between its words, whichever of the two forms of sysctl(8) it has: the first
// separator tells. A slash in the answer stands for a dot in a word, such as the name of a VLAN's interface.
func SysctlName(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return strings.NewReplacer("/", ".", ".", "/").Replace(name)
	}
	return name
}

func checkSysctl(name string, o *runtime.NamespaceOption) error {
	dotted := SysctlName(name)
	words := strings.Split(dotted, ".")
	noFile := func(word string) bool { return slices.Contains([]string{"", "/", "//"}, word) } // "", "." and ".."
	if len(words) < 2 || slices.ContainsFunc(words, noFile) || strings.Trim(name, sysctlLetters) != "" {
		return fmt.Errorf("not the name of a sysctl: %w", errdef.Invalid)
	}
	owner := fact.SysctlNamespace(dotted)
	switch {
	case owner == "net" && o.GetNetwork() == runtime.NamespaceMode_NODE:
		return fmt.Errorf("not allowed with the host's network: %w", errdef.Invalid)
	case owner == "ipc" && o.GetIpc() == runtime.NamespaceMode_NODE:
		return fmt.Errorf("not allowed with the host's IPC namespace: %w", errdef.Invalid)
	case owner == "":
		return fmt.Errorf("belongs to no namespace of a pod, so it would change the host: %w", errdef.Invalid)
	}
	return nil
}

const sysctlLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"
