package sandbox

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
)

const planID = "0123456789abcdef"

// inMode is a pod's configuration with namespace modes of the network and of IPC.
func inMode(net, ipc runtime.NamespaceMode, edit func(*runtime.PodSandboxConfig)) *runtime.PodSandboxConfig {
	cfg := config("a")
	cfg.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Network: net, Ipc: ipc},
	}}
	edit(cfg)
	return cfg
}

func TestPlan(t *testing.T) {
	const pod, node = runtime.NamespaceMode_POD, runtime.NamespaceMode_NODE
	args := map[string]string{
		"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "a", "K8S_POD_UID": "uid-a",
		"K8S_POD_INFRA_CONTAINER_ID": planID,
	}
	for name, c := range map[string]struct {
		cfg    *runtime.PodSandboxConfig
		parent string
		want   ns.Want
		net    *network.Request
	}{
		"a pod of its own": {
			cfg: inMode(pod, pod, func(c *runtime.PodSandboxConfig) {
				c.Linux.CgroupParent = "/kubepods//besteffort/pod1/"
				c.Linux.Sysctls = map[string]string{"net/ipv4/ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "80"}
				c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}
				c.PortMappings = []*runtime.PortMapping{
					{ContainerPort: 53},
					{ContainerPort: 53, HostPort: 5353, Protocol: runtime.Protocol_UDP, HostIp: "127.0.0.1"},
				}
			}),
			parent: "/kubepods/besteffort/pod1",
			want: ns.Want{Net: true, IPC: true, UTS: true, Hostname: "a", Sysctls: map[string]string{
				"net.ipv4.ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1",
			}},
			net: &network.Request{
				ID: planID, NetNS: "/ns/net/" + planID, IfName: "eth0", Conflist: json.RawMessage(`{"name":"today"}`), Args: args,
				Ports:   []network.PortMapping{{HostPort: 5353, ContainerPort: 53, Protocol: "udp", HostIP: "127.0.0.1"}},
				Ingress: 10_000_000, Cgroup: "/kubepods/besteffort/pod1",
			},
		},
		"without a hostname": {
			cfg:    inMode(pod, node, func(c *runtime.PodSandboxConfig) { c.Hostname = ""; c.Linux.CgroupParent = "a/pod" }),
			parent: "/a/pod",
			want: ns.Want{Net: true, UTS: true, Hostname: planID[:12], Sysctls: map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "0",
			}},
			net: &network.Request{
				ID: planID, NetNS: "/ns/net/" + planID, IfName: "eth0", Conflist: json.RawMessage(`{"name":"today"}`), Args: args,
				Cgroup: "/a/pod",
			},
		},
		"on the host's network": {
			cfg: inMode(node, pod, func(c *runtime.PodSandboxConfig) {
				c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 80}}
				c.Linux.Sysctls = map[string]string{"kernel.sem": "1"}
			}),
			parent: "/crid",
			want:   ns.Want{IPC: true, Hostname: "thehost", Sysctls: map[string]string{"kernel.sem": "1"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := newHost(t).boots()
			m.deps.Config.Sysctls["kernel.shm_rmid_forced"] = "1"
			rec, w, err := m.plan(planID, Record{Config: CRIConfig{c.cfg}})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, w); diff != "" {
				t.Errorf("namespaces (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.net, rec.Network); diff != "" {
				t.Errorf("network (-want +got):\n%s", diff)
			}
			if rec.CgroupParent != c.parent || rec.Hostname != c.want.Hostname {
				t.Errorf("cgroup parent %s, hostname %s", rec.CgroupParent, rec.Hostname)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	m, _ := newHost(t).boots()
	cfg := config("a")
	cfg.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "much"}
	if _, _, err := m.plan(planID, Record{Config: CRIConfig{cfg}}); !errors.Is(err, errdef.Invalid) {
		t.Errorf("a bandwidth of %q: %v", "much", err)
	}
	cfg = config("a")
	cfg.Linux = &runtime.LinuxPodSandboxConfig{CgroupParent: "kubepods-podx.slice"}
	if _, _, err := m.plan(planID, Record{Config: CRIConfig{cfg}}); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "linux.cgroup_parent") {
		t.Errorf("a slice for cgroupfs: %v", err)
	}
	m.deps.Config.Hostname = func() (string, error) { return "", errInjected }
	cfg = inMode(runtime.NamespaceMode_NODE, runtime.NamespaceMode_POD, func(*runtime.PodSandboxConfig) {})
	if _, _, err := m.plan(planID, Record{Config: CRIConfig{cfg}}); !errors.Is(err, errInjected) {
		t.Errorf("a host without a name: %v", err)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	cfg := config("a")
	cfg.Linux = &runtime.LinuxPodSandboxConfig{Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 1 << 60}}
	rec := Record{
		Key: keyOf("a"), State: NotReady, Reason: "Stopped", Message: "m", Erasing: true, CreatedAt: time.Unix(1, 2).UTC(),
		BootID: "b", Handler: "crun", Config: CRIConfig{cfg}, Hostname: "h", CgroupParent: "/p", Detached: true, IPs: []string{"10.0.0.2"},
		Network: &network.Request{ID: planID, Conflist: json.RawMessage(`{"a":1}`)},
	}
	raw, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	var back Record
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(rec, back, protocmp.Transform()); diff != "" {
		t.Errorf("(-stored +read):\n%s", diff)
	}
	var newer CRIConfig
	if err := json.Unmarshal([]byte(`{"hostname":"h","fieldOfTomorrow":{"a":1}}`), &newer); err != nil || newer.GetHostname() != "h" {
		t.Errorf("a configuration of a newer CRI: %v, %v", newer, err)
	}
}
