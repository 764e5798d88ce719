package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// defaultCapabilities are what images are built to expect: the set that Docker and containerd give.
func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
		"CAP_SYS_CHROOT",
	}
}

// setCapabilities leaves the inheritable and ambient sets empty unless ambient capabilities are asked for: a
// filled inheritable set would give file capabilities to processes that never asked (CVE-2022-24769).
func setCapabilities(s *specs.Spec, in Input) error {
	sc := securityContext(in.Config)
	if sc.GetPrivileged() {
		all := heldCapabilities(in.Host)
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		return nil
	}
	c, err := capabilities(sc.GetCapabilities(), in.Host)
	if err != nil {
		return err
	}
	s.Process.Capabilities = c
	return nil
}

// capabilities works the sets out. Dropping wins: "ALL" leaves nothing of the defaults and of any other "ALL", only
// what is added by name; a name that is dropped is in no set, however it was added. What is ambient is in the other
// sets as well, else the kernel would not have it so. For a user who is not root, what is only added is in the
// bounding set: the kernel clears the rest at exec, and a program with file capabilities gets it back. What crid itself
// lacks is left out of the defaults and of "ALL", and Invalid by name.
func capabilities(c *runtime.Capability, host fact.Host) (*specs.LinuxCapabilities, error) {
	addAll, add, err := parseCapabilities("add_capabilities", c.GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	ambientAll, ambient, err := parseCapabilities("add_ambient_capabilities", c.GetAddAmbientCapabilities())
	if err != nil {
		return nil, err
	}
	dropAll, drop, err := parseCapabilities("drop_capabilities", c.GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	has := heldCapabilities(host)
	dropped := func(name string) bool { return slices.Contains(drop, name) }
	lacking := func(name string) bool { return !slices.Contains(has, name) }
	for _, asked := range []struct {
		field string
		names []string
	}{{"add_capabilities", add}, {"add_ambient_capabilities", ambient}} {
		for _, name := range asked.names {
			if lacking(name) && !dropped(name) {
				return nil, fmt.Errorf("linux.security_context.capabilities.%s: crid itself runs without %s, see its unit's CapabilityBoundingSet: %w",
					asked.field, name, errdef.Invalid)
			}
		}
	}
	set := slices.DeleteFunc(defaultCapabilities(), lacking)
	if addAll || ambientAll {
		set = has
	}
	if dropAll {
		set = nil
	}
	if ambientAll && !dropAll {
		ambient = has
	}
	set = sorted(slices.DeleteFunc(slices.Concat(set, add, ambient), dropped))
	ambient = sorted(slices.DeleteFunc(slices.Clone(ambient), dropped))
	return &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient,
	}, nil
}

// parseCapabilities turns names with or without CAP_, in any case, into the kernel's; "ALL" is told apart.
func parseCapabilities(field string, names []string) (all bool, parsed []string, err error) {
	known := knownCapabilities()
	for _, name := range names {
		upper := strings.ToUpper(name)
		if upper == "ALL" {
			all = true
			continue
		}
		full := "CAP_" + strings.TrimPrefix(upper, "CAP_")
		if !slices.Contains(known, full) {
			return false, nil, fmt.Errorf("linux.security_context.capabilities.%s: unknown capability %q: %w",
				field, name, errdef.Invalid)
		}
		parsed = append(parsed, full)
	}
	return all, parsed, nil
}

func knownCapabilities() []string { return heldCapabilities(fact.Host{Capabilities: everyCapability}) }

// everyCapability stands for a host that denies crid none.
const everyCapability = ^uint64(0)

// heldCapabilities are those of "ALL" and of privileged containers: all that crid can hand on. A runtime that is asked
// for more fails with a bare "operation not permitted".
func heldCapabilities(host fact.Host) []string {
	var names []string
	for _, c := range capability.ListKnown() {
		if host.Capabilities&(1<<uint(c)) != 0 {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return sorted(names)
}

// sorted answers s in order and without doubles; it may reuse s.
func sorted(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
