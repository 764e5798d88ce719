package server

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
)

// same compares messages field by field.
func same(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestVersionIsWhatTheKubeletExpects(t *testing.T) {
	got, err := newHouse(t).runtime.Version(t.Context(), &runtime.VersionRequest{Version: "0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &runtime.VersionResponse{
		Version: "0.1.0", RuntimeName: "crid", RuntimeVersion: "v1.2.3", RuntimeApiVersion: "v1",
	})
}

func TestStatusTellsReadinessHandlersAndFeatures(t *testing.T) {
	h := newHouse(t)
	h.network = fact.Condition{Reason: "NetworkPluginNotReady", Message: "no file in /etc/cni/net.d"}
	got, err := h.runtime.Status(t.Context(), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	rro := &runtime.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}
	same(t, got, &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			{Type: "RuntimeReady", Status: true},
			{Type: "NetworkReady", Reason: "NetworkPluginNotReady", Message: "no file in /etc/cni/net.d"},
		}},
		RuntimeHandlers: []*runtime.RuntimeHandler{
			{Name: "", Features: rro}, {Name: "crun", Features: rro}, {Name: "runc", Features: &runtime.RuntimeHandlerFeatures{}},
		},
		Features: &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	})
	verbose, err := h.runtime.Status(t.Context(), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, verbose.GetInfo(), map[string]string{"config": `{"root":"/r"}`})
}

func TestTheCgroupDriverAndThePodCIDR(t *testing.T) {
	h := newHouse(t)
	got, err := h.runtime.RuntimeConfig(t.Context(), &runtime.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &runtime.RuntimeConfigResponse{
		Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: runtime.CgroupDriver_CGROUPFS},
	})
	h.server.facts.Systemd = true
	got, err = h.runtime.RuntimeConfig(t.Context(), &runtime.RuntimeConfigRequest{})
	if err != nil || got.GetLinux().GetCgroupDriver() != runtime.CgroupDriver_SYSTEMD {
		t.Errorf("with the systemd driver: %v, %v", got, err)
	}
	if _, err := h.runtime.UpdateRuntimeConfig(t.Context(), &runtime.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: "10.1.0.0/16"}},
	}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(h.log.String(), "10.1.0.0/16") {
		t.Error("the log does not mention the pod CIDR")
	}
}
