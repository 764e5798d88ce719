package server

import (
	"context"
	"encoding/json"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
)

const (
	// runtimeName and the versions below go to the kubelet, which exits on another API version.
	runtimeName       = "crid"
	kubeletAPIVersion = "0.1.0"
	runtimeAPIVersion = "v1"
)

// runtimeService is the CRI's RuntimeService.
type runtimeService struct {
	runtime.UnimplementedRuntimeServiceServer
	*Server
}

func (s *runtimeService) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version:           kubeletAPIVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.facts.Version,
		RuntimeApiVersion: runtimeAPIVersion,
	}, nil
}

// Status is asked every five seconds by the kubelet and so waits for nothing.
func (s *runtimeService) Status(_ context.Context, r *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			// crid serves only once its runtimes were found, so that it is ready whenever it answers.
			toCondition(runtime.RuntimeReady, fact.Condition{Ready: true}),
			toCondition(runtime.NetworkReady, s.network()),
		}},
		RuntimeHandlers: toHandlers(s.facts.Handlers),
		Features:        &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	var err error
	resp.Info, err = info(s.info())
	return resp, err
}

func toCondition(kind string, c fact.Condition) *runtime.RuntimeCondition {
	return &runtime.RuntimeCondition{Type: kind, Status: c.Ready, Reason: c.Reason, Message: c.Message}
}

// toHandlers lists the handlers, the default also under the empty name, by which the kubelet means it.
func toHandlers(handlers []fact.Handler) []*runtime.RuntimeHandler {
	var out []*runtime.RuntimeHandler
	for i, h := range handlers {
		features := &runtime.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: h.RecursiveReadOnly,
			UserNamespaces:          h.UserNamespaces,
		}
		if i == 0 {
			out = append(out, &runtime.RuntimeHandler{Name: "", Features: features})
		}
		out = append(out, &runtime.RuntimeHandler{Name: h.Name, Features: features})
	}
	return out
}

func (s *runtimeService) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.facts.Systemd {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig brings the pod CIDR of the node. The network plugins have their own ways to learn it,
// so it is noted in the log and that is all.
func (s *runtimeService) UpdateRuntimeConfig(ctx context.Context, r *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	s.log.DebugContext(ctx, "pod CIDR of the node is left to the network plugins", "cidr", cidr)
	return &runtime.UpdateRuntimeConfigResponse{}, nil
}

// info turns values into what verbose answers carry: JSON by name.
func info(values map[string]any) (map[string]string, error) {
	out := make(map[string]string, len(values))
	for name, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode info %s: %w", name, err)
		}
		out[name] = string(text)
	}
	return out, nil
}
