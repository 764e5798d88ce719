// Package ns makes namespaces that live without a process, pinned by bind mounts, and takes them away again.
// It does not know pods, runtimes or networks: it is handed an id and what to make for it.
package ns

// Want says which namespaces to make for an id and what to write inside them before anybody enters.
type Want struct {
	Net, IPC, UTS bool
	Hostname      string            // written into the new UTS namespace; ignored without UTS
	Sysctls       map[string]string // dotted name to value, written from inside the new namespaces
}

// Set names the pins of an id as host paths; a namespace that was not made has the empty path.
type Set struct {
	Net string `json:"net,omitempty"`
	IPC string `json:"ipc,omitempty"`
	UTS string `json:"uts,omitempty"`
}
