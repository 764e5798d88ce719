package server

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/sandbox"
)

func podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:    &runtime.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "uid", Attempt: 2},
		Labels:      map[string]string{"app": name, "tier": "web"},
		Annotations: map[string]string{"note": "x"},
	}
}

func codeOf(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want code %s and %q", err, code, text)
	}
}

func TestAPodRunsStopsAndIsRemoved(t *testing.T) {
	h, ctx := newHouse(t), t.Context()
	ran, err := h.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: podConfig("a")})
	if err != nil {
		t.Fatal(err)
	}
	id := ran.GetPodSandboxId()
	if got := h.pods.byID[id].handler; got != "crun" {
		t.Errorf("the handler named \"\" is %q, want the default", got)
	}
	for range 2 {
		if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := h.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = h.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: id})
	codeOf(t, err, codes.NotFound, "pod a")
	if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Errorf("stopping an unknown pod: %v", err)
	}
}

func TestAUserNamespaceNeedsAHandlerThatHasThem(t *testing.T) {
	h := newHouse(t)
	ids := []*runtime.IDMapping{{HostId: 100000, Length: 65536}}
	config := podConfig("a")
	config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
		UsernsOptions: &runtime.UserNamespace{Uids: ids, Gids: ids}}}}
	_, err := h.runtime.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: config})
	codeOf(t, err, codes.Unimplemented, "userns_options: handler crun")
}

func TestPodStatusShowsPodNetworkAndContainers(t *testing.T) {
	h := newHouse(t)
	config := podConfig("a")
	config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
	}}
	h.pods.byID["a"] = &fakePod{id: "a", config: config, handler: "runc", status: sandbox.Status{
		State: sandbox.NotReady, Reason: "Stopped", CreatedAt: time.Unix(1, 2), IPs: []string{"10.0.0.5", "fd00::5"},
	}}
	shown := &fakeContainer{id: "c", pod: "a", config: &runtime.ContainerConfig{}}
	shown.status.State = container.Running
	making := &fakeContainer{id: "m", pod: "a"}
	making.status.State = container.Creating
	pause := &fakeContainer{id: "p", pod: "a", pause: true}
	pause.status.State = container.Running
	h.containers.byID = map[string]*fakeContainer{"c": shown, "m": making, "p": pause}

	got, err := h.runtime.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: "a", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got.GetStatus(), &runtime.PodSandboxStatus{
		Id: "a", Metadata: config.Metadata, State: runtime.PodSandboxState_SANDBOX_NOTREADY,
		CreatedAt: time.Unix(1, 2).UnixNano(),
		Network:   &runtime.PodSandboxNetworkStatus{Ip: "10.0.0.5", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::5"}}},
		Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{
			Options: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
		Labels: config.Labels, Annotations: config.Annotations, RuntimeHandler: "runc",
	})
	if n := len(got.GetContainersStatuses()); n != 1 || got.GetContainersStatuses()[0].GetId() != "c" {
		t.Errorf("containers: %v", got.GetContainersStatuses())
	}
	if got.GetTimestamp() == 0 || !strings.Contains(got.GetInfo()["info"], `"reason":"Stopped"`) {
		t.Errorf("timestamp %d, info %v", got.GetTimestamp(), got.GetInfo())
	}
}

func TestPodFiltersAreAnded(t *testing.T) {
	h := newHouse(t)
	for _, id := range []string{"aa1", "aa2", "b"} {
		h.pods.byID[id] = &fakePod{id: id, config: podConfig(id), status: sandbox.Status{State: sandbox.Ready}}
	}
	h.pods.byID["aa2"].status.State = sandbox.NotReady
	notReady := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}
	for _, c := range []struct {
		name   string
		filter *runtime.PodSandboxFilter
		want   string
	}{
		{"none", nil, "aa1 aa2 b"},
		{"empty", &runtime.PodSandboxFilter{}, "aa1 aa2 b"},
		{"id", &runtime.PodSandboxFilter{Id: "b"}, "b"},
		{"id prefix", &runtime.PodSandboxFilter{Id: "aa"}, "aa1 aa2"},
		{"state", &runtime.PodSandboxFilter{State: notReady}, "aa2"},
		{"label", &runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "b", "tier": "web"}}, "b"},
		{"label without value", &runtime.PodSandboxFilter{LabelSelector: map[string]string{"other": ""}}, ""},
		{"id and state", &runtime.PodSandboxFilter{Id: "b", State: notReady}, ""},
		{"all", &runtime.PodSandboxFilter{Id: "a", State: notReady, LabelSelector: map[string]string{"app": "aa2"}}, "aa2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := h.runtime.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: c.filter})
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, item := range got.GetItems() {
				ids = append(ids, item.GetId())
			}
			if strings.Join(ids, " ") != c.want {
				t.Errorf("got %v, want %s", ids, c.want)
			}
		})
	}
}

func TestAPodThatCannotBeIsRefusedByField(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		name, want string
		edit       func(*runtime.RunPodSandboxRequest)
	}{
		{"no config", "config.metadata.name is empty", func(r *runtime.RunPodSandboxRequest) { r.Config = nil }},
		{"no uid", "config.metadata.uid is empty", func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata.Uid = "" }},
		{"NUL", "config.metadata.name holds a NUL byte", func(r *runtime.RunPodSandboxRequest) { r.Config.Metadata.Name = "a\x00b" }},
		{"long", "config.metadata.namespace has 2000 bytes", func(r *runtime.RunPodSandboxRequest) {
			r.Config.Metadata.Namespace = strings.Repeat("x", 2000)
		}},
		{"labels", "labels and annotations have", func(r *runtime.RunPodSandboxRequest) {
			r.Config.Annotations = map[string]string{"big": strings.Repeat("x", 1<<20)}
		}},
		{"size", "config has", func(r *runtime.RunPodSandboxRequest) {
			r.Config.Annotations = map[string]string{"big": strings.Repeat("x", 5<<20)}
		}},
		{"handler", `runtime_handler: no handler "kata"; known: crun, runc`, func(r *runtime.RunPodSandboxRequest) { r.RuntimeHandler = "kata" }},
		{"sysctl", "sysctl", func(r *runtime.RunPodSandboxRequest) {
			r.Config.Linux = &runtime.LinuxPodSandboxConfig{Sysctls: map[string]string{"vm.swappiness": "1"}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &runtime.RunPodSandboxRequest{Config: podConfig("a")}
			c.edit(r)
			_, err := h.runtime.RunPodSandbox(t.Context(), r)
			codeOf(t, err, codes.InvalidArgument, c.want)
		})
	}
	if len(h.pods.byID) != 0 {
		t.Error("a pod was made all the same")
	}
}

func TestAPodWithoutReadableRecordCanOnlyBeRemoved(t *testing.T) {
	h := newHouse(t)
	h.pods.byID["x"] = &fakePod{id: "x"}
	_, err := h.runtime.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: "x"})
	codeOf(t, err, codes.Unavailable, "remove it")
	if _, err := h.runtime.RemovePodSandbox(t.Context(), &runtime.RemovePodSandboxRequest{PodSandboxId: "x"}); err != nil {
		t.Error(err)
	}
}
