package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/sandbox"
)

// PodRecord is what the server reads of a pod; it never waits.
type PodRecord interface {
	ID() string
	Config() *runtime.PodSandboxConfig // read-only
	Handler() string
	Status() sandbox.Status
}

// Pod is one pod; *sandbox.Pod is one.
type Pod interface {
	Listed
	PodRecord
	// Enter admits the creation of a container. The context it returns ends when the pod is stopped; leave
	// must be called at the end.
	Enter(ctx context.Context, pid runtime.NamespaceMode) (inner context.Context, env spec.PodEnv, leave func(), err error)
}

// Pods is what the server asks of the room of pods. An id may be shortened while it is unique.
type Pods interface {
	Run(ctx context.Context, key sandbox.Key, config *runtime.PodSandboxConfig, handler string) (Pod, error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Get(id string) (Pod, error)
	List() []Pod
}

func (s *runtimeService) RunPodSandbox(ctx context.Context, r *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	key, handler, err := s.podRequest(r)
	if err != nil {
		return nil, err
	}
	pod, err := s.pods.Run(ctx, key, r.GetConfig(), handler)
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: pod.ID()}, nil
}

// podRequest validates what can be told without asking anybody, and names the handler: never "".
func (s *Server) podRequest(r *runtime.RunPodSandboxRequest) (sandbox.Key, string, error) {
	config := r.GetConfig()
	err := cmp.Or(
		checkPodMetadata(config.GetMetadata()),
		checkConfig("config", config),
		checkLabels("config", config),
		checkName("config.hostname", config.GetHostname(), false),
		checkName("config.log_directory", config.GetLogDirectory(), false),
		spec.ValidatePod(config),
	)
	handler := r.GetRuntimeHandler()
	if handler == "" {
		handler = s.facts.Handlers[0].Name
	}
	if !s.facts.knows(handler) {
		err = cmp.Or(err, fmt.Errorf("runtime_handler: no handler %q; known: %s: %w", handler, s.facts.names(), errdef.Invalid))
	}
	if !spec.UserMap(config).None() && !s.facts.userns(handler) {
		err = cmp.Or(err, fmt.Errorf("config.linux.security_context.namespace_options.userns_options: handler %s has no user namespaces here "+
			"(crictl info says why): %w", handler, errdef.Unsupported))
	}
	m := config.GetMetadata()
	return sandbox.Key{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()}, handler, err
}

// StopPodSandbox of a pod that is not there is done already.
func (s *runtimeService) StopPodSandbox(ctx context.Context, r *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId(), true); err != nil {
		return nil, err
	}
	if err := s.pods.Stop(ctx, r.GetPodSandboxId()); err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return &runtime.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox of a pod that is not there is done already.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if err := checkName("pod_sandbox_id", r.GetPodSandboxId(), true); err != nil {
		return nil, err
	}
	if err := s.pods.Remove(ctx, r.GetPodSandboxId()); err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return &runtime.RemovePodSandboxResponse{}, nil
}

func (s *runtimeService) PodSandboxStatus(_ context.Context, r *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	pod, err := s.getPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	now, status, containers := s.snapshot(pod)
	resp := &runtime.PodSandboxStatusResponse{Status: status, ContainersStatuses: containers, Timestamp: now}
	if r.GetVerbose() {
		st := pod.Status()
		resp.Info, err = info(map[string]any{"info": podInfo{
			Reason:       st.Reason,
			Message:      st.Message,
			NetNS:        st.NetNS,
			Hostname:     st.Hostname,
			CgroupParent: st.CgroupParent,
			Handler:      pod.Handler(),
		}})
	}
	return resp, err
}

// podInfo is what verbose PodSandboxStatus tells besides.
type podInfo struct {
	Reason       string `json:"reason,omitempty"`
	Message      string `json:"message,omitempty"`
	NetNS        string `json:"netns,omitempty"`
	Hostname     string `json:"hostname,omitempty"`
	CgroupParent string `json:"cgroupParent,omitempty"`
	Handler      string `json:"runtimeHandler"`
}

func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return whole(&runtime.ListPodSandboxResponse{}, s.podItems(r.GetFilter()))
}

func (s *runtimeService) StreamPodSandboxes(r *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	return inChunks(stream, s.podItems(r.GetFilter()))
}

// podItems are the pods that a client asks for.
func (s *Server) podItems(f *runtime.PodSandboxFilter) items {
	return func(yield func([]byte, error) bool) {
		for _, pod := range s.pods.List() {
			status := pod.Status() // once: what is told is what was asked for
			if wantsPod(f, pod, status) && !yield(encodePod(pod, status)) {
				return
			}
		}
	}
}

// getPod returns the pod, or NotFound; of a pod whose record cannot be read not even the name is known, and
// nothing can be told.
func (s *Server) getPod(id string) (Pod, error) {
	if err := checkName("pod_sandbox_id", id, true); err != nil {
		return nil, err
	}
	pod, err := s.pods.Get(id)
	if err != nil {
		return nil, err
	}
	if pod.Config().GetMetadata().GetName() == "" {
		return nil, fmt.Errorf("pod %s: its record cannot be read, remove it with RemovePodSandbox: %w", id, errdef.Unavailable)
	}
	return pod, nil
}

func wantsPod(f *runtime.PodSandboxFilter, pod Pod, status sandbox.Status) bool {
	return named(pod.ID(), f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == toPodState(status.State)) &&
		matches(pod.Config().GetLabels(), f.GetLabelSelector())
}

// podStamp is what of a pod's item may change, and whose configuration the rest is.
type podStamp struct {
	config    *runtime.PodSandboxConfig
	state     sandbox.State
	createdAt int64
}

func encodePod(pod Pod, status sandbox.Status) ([]byte, error) {
	stamp := podStamp{pod.Config(), status.State, status.CreatedAt.UnixNano()}
	return encodeOnce(pod.Memo(), stamp, func() proto.Message { return toPodItem(pod, status) })
}

func toPodItem(pod Pod, status sandbox.Status) *runtime.PodSandbox {
	config := pod.Config()
	return &runtime.PodSandbox{
		Id:             pod.ID(),
		Metadata:       config.GetMetadata(),
		State:          toPodState(status.State),
		CreatedAt:      status.CreatedAt.UnixNano(),
		Labels:         config.GetLabels(),
		Annotations:    config.GetAnnotations(),
		RuntimeHandler: pod.Handler(),
	}
}

func toPodStatus(pod Pod) *runtime.PodSandboxStatus {
	config, status := pod.Config(), pod.Status()
	return &runtime.PodSandboxStatus{
		Id:        pod.ID(),
		Metadata:  config.GetMetadata(),
		State:     toPodState(status.State),
		CreatedAt: status.CreatedAt.UnixNano(),
		Network:   toPodNetwork(status.IPs),
		Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{
			Options: config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
		Labels:         config.GetLabels(),
		Annotations:    config.GetAnnotations(),
		RuntimeHandler: pod.Handler(),
	}
}

func toPodState(s sandbox.State) runtime.PodSandboxState {
	if s == sandbox.Ready {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func toPodNetwork(ips []string) *runtime.PodSandboxNetworkStatus {
	network := &runtime.PodSandboxNetworkStatus{}
	for i, ip := range ips {
		if i == 0 {
			network.Ip = ip
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtime.PodIP{Ip: ip})
	}
	return network
}
