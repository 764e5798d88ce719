package integration

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

func withSysctls(sysctls map[string]string) func(*runtime.PodSandboxConfig) {
	return func(cfg *runtime.PodSandboxConfig) { cfg.Linux.Sysctls = sysctls }
}

func TestSysctlsArriveInThePodAlone(t *testing.T) {
	c := harness.Start(t)
	show := []string{"/proc/sys/kernel/shm_rmid_forced", "/proc/sys/kernel/msgmax", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/conf/lo/log_martians"}
	before := hostSettings(t, show)
	pod := c.RunPod(withSysctls(map[string]string{
		"kernel.shm_rmid_forced":           "1",
		"kernel/msgmax":                    "4096",
		"net.ipv4.ip_local_port_range":     "2000 3000",
		"net/ipv4/conf/lo/log_martians":    "1",
		"net.ipv4.ip_local_reserved_ports": "2100,2200-2300",
	}))
	got := pod.Output("cat " + strings.Join(show, " ") + " /proc/sys/net/ipv4/ip_local_reserved_ports")
	if want := "1\n4096\n2000\t3000\n1\n2100,2200-2300\n"; got != want {
		t.Errorf("in the pod: %q, want %q", got, want)
	}
	if after := hostSettings(t, show); after != before {
		t.Errorf("the host changed from %q to %q", before, after)
	}
}

func hostSettings(t *testing.T, files []string) string {
	t.Helper()
	var all strings.Builder
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(raw)
	}
	return all.String()
}

func TestSysctlsThatWouldChangeTheHostAreRefused(t *testing.T) {
	c := harness.Start(t)
	pattern := hostSettings(t, []string{"/proc/sys/kernel/core_pattern"})
	hostNetwork := func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	}
	hostIPC := func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Ipc = runtime.NamespaceMode_NODE
	}
	plain := func(*runtime.PodSandboxConfig) {}
	for _, s := range []struct {
		name, value string
		pod         func(*runtime.PodSandboxConfig)
	}{
		{"kernel.core_pattern", "|/x", plain},
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x #", plain},
		{"kernel.shm_rmid_forced", "1\nkernel.core_pattern=x", plain},
		{"net/../kernel/core_pattern", "|/x", plain},
		{"vm.swappiness", "1", plain},
		{"fs.file-max", "1000000", plain},
		{"net.ipv4.ip_forward", "1", hostNetwork},
		{"kernel.msgmax", "4096", hostIPC},
		{"net.ipv4.no_such_thing", "1", plain},
		{"net.ipv4.ip_local_port_range", "many", plain},
		{"net.ipv4.ip_forward", "", plain},
		{"net.ipv4.ip_forward", "1 garbage", plain},
		{"net.ipv4.ping_group_range", "0 10 20", plain},
		{"net.ipv4.ping_group_range", "0 10 20", usersOf(idMap(hostUID), idMap(hostGID))},
		{"kernel.shm_rmid_forced", "1 garbage", usersOf(idMap(hostUID), idMap(hostGID))},
	} {
		_, err := c.Runtime.RunPodSandbox(c.Context(), c.PodConfig(withSysctls(map[string]string{s.name: s.value}), s.pod), "")
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), s.name) || !strings.Contains(err.Error(), "linux.sysctls: ") {
			t.Errorf("%s=%q: %v; want InvalidArgument, the field and the name", s.name, s.value, err)
		}
	}
	if after := hostSettings(t, []string{"/proc/sys/kernel/core_pattern"}); after != pattern {
		t.Errorf("core_pattern of the host is now %q", after)
	}
	if pods, err := c.Runtime.ListPodSandbox(c.Context(), nil); err != nil || len(pods) != 0 {
		t.Errorf("%d pods, %v", len(pods), err)
	}
}
