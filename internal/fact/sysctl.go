package fact

import "strings"

// SysctlNamespace is the kind of namespace, net or ipc, that a kernel setting belongs to; empty when it belongs to none
// that pods have of their own for it, so that to set it would change the host. Dots part the name's words.
func SysctlNamespace(name string) string {
	switch {
	case strings.HasPrefix(name, "net."):
		return "net"
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"),
		name == "kernel.sem":
		return "ipc"
	}
	return ""
}
