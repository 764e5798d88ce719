package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// What pods' networks do to the host: a pod's port does not come before the host's own rules, and the host's side of a
// pod's link takes no router's word.
func TestCVE_2019_9946_RulesOfTheHostComeFirst(t *testing.T) {
	c := harness.Start(t)
	rule := []string{"-p", "tcp", "--dport", "18081", "-m", "comment", "--comment", "of the host", "-j", "RETURN"}
	iptables := func(args ...string) string {
		out, err := exec.Command("iptables", append([]string{"-w", "-t", "nat"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("iptables %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	iptables(append([]string{"-A", "PREROUTING"}, rule...)...)
	defer iptables(append([]string{"-D", "PREROUTING"}, rule...)...)
	c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.PortMappings = []*runtime.PortMapping{{Protocol: runtime.Protocol_TCP, ContainerPort: 80, HostPort: 18081}}
	})
	rules := iptables("-S", "PREROUTING")
	own, pods := strings.Index(rules, "of the host"), strings.Index(rules, "CNI-HOSTPORT-DNAT")
	if own < 0 || pods >= 0 && pods < own {
		t.Errorf("the rules are\n%s", rules)
	}
	if !strings.Contains(iptables("-S"), "CNI-HOSTPORT-DNAT") {
		t.Error("no port is mapped: this proves nothing")
	}
	links, err := filepath.Glob("/proc/sys/net/ipv6/conf/t*/accept_ra")
	if err != nil || len(links) == 0 {
		t.Fatalf("the bridges: %v, %v", links, err)
	}
	for _, link := range links {
		if got := contents(t, filepath.Dir(link), "accept_ra"); got != "0" {
			t.Errorf("CVE-2020-10749: %s is %s", link, got)
		}
	}
}
