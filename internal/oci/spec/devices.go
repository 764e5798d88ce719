package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// allAccess is what a device cgroup can allow: read, write, mknod.
const allAccess = "rwm"

// setDevices adds the device nodes and what the device cgroup lets the container do with them. The runtime
// adds the usual ones (null, zero, tty, ...) and their rules itself.
func setDevices(s *specs.Spec, in Input) error {
	privileged := securityContext(in.Config).GetPrivileged()
	rules := []specs.LinuxDeviceCgroup{{Allow: privileged, Access: allAccess}}
	for _, d := range in.Devices {
		if ownedByRuntime(d.Path) {
			continue
		}
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		if !privileged {
			rules = append(rules, deviceRule(d))
		}
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: rules}
	return nil
}

func deviceRule(d Device) specs.LinuxDeviceCgroup {
	access := d.Access
	if access == "" {
		access = allAccess
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access}
}

// ownedByRuntime tells the nodes that the runtime makes for the container's own terminal: the host's must not
// take their place. Among all nodes of a directory they are left out, one that is asked for by its path is refused.
func ownedByRuntime(device string) bool {
	p := path.Clean(device)
	return p == "/dev/console" || p == "/dev/ptmx" || p == "/dev/pts" || strings.HasPrefix(p, "/dev/pts/")
}
