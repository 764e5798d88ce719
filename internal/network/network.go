// Package network attaches a network namespace to the host's CNI networks and detaches it again. It does
// not know pods: it is handed a Request that says everything, and that the caller keeps for the undoing.
package network

import "encoding/json"

// Request is one attachment, complete: what ADD was called with, and so what DEL and CHECK must be called
// with, whatever the configuration directory says by then. Prepare fills Conflist from today's network;
// the caller stores the Request before Add.
type Request struct {
	ID       string            `json:"id"`                 // CNI container id: the pod's id
	NetNS    string            `json:"netns"`              // path of the pinned network namespace
	IfName   string            `json:"ifname"`             // eth0
	Conflist json.RawMessage   `json:"conflist,omitempty"` // the network configuration list as it was at Add
	Args     map[string]string `json:"args,omitempty"`     // CNI_ARGS: K8S_POD_NAME and so on
	Ports    []PortMapping     `json:"ports,omitempty"`    // capability portMappings
	Ingress  int64             `json:"ingress,omitempty"`  // capability bandwidth, bits a second; 0 = no limit
	Egress   int64             `json:"egress,omitempty"`   // capability bandwidth, bits a second; 0 = no limit
	Cgroup   string            `json:"cgroup,omitempty"`   // capability cgroupPath
}

// PortMapping is one entry of the CNI capability portMappings. HostPort is never 0: a port without a host
// port is no mapping.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// Attachment is what Add brought.
type Attachment struct {
	IPs []string `json:"ips"` // of the interface IfName, in the order of the plugin's answer; the first is the pod's IP
}
