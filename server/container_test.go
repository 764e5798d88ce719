package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/storage"
)

func containerConfig(name string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name, Attempt: 3},
		Image:    &runtime.ImageSpec{Image: "1d", UserSpecifiedImage: "busybox:1"},
		Labels:   map[string]string{"app": name},
	}
}

// withPod is a house with a ready pod "p" and an image.
func withPod(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	h.pods.byID["p"] = &fakePod{id: "p", config: podConfig("p"), handler: "crun", status: sandbox.Status{State: sandbox.Ready}}
	h.images.images = []storage.Image{{ID: "1d", RepoTags: []string{"docker.io/library/busybox:1"}, Size: 3}}
	return h
}

func TestAContainerIsCreatedWithItsPodAndImage(t *testing.T) {
	h := withPod(t)
	config := containerConfig("c")
	got, err := h.runtime.CreateContainer(t.Context(), &runtime.CreateContainerRequest{PodSandboxId: "p", Config: config})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetContainerId() != "c" || len(h.containers.created) != 1 {
		t.Fatalf("got %v after %d creates", got, len(h.containers.created))
	}
	r := h.containers.created[0]
	if r.Key != (container.Key{PodID: "p", Name: "c", Attempt: 3}) || r.Image.ID != "1d" || r.Pod.Handler != "crun" {
		t.Errorf("asked for %+v", r)
	}
	same(t, r.Config, config)
	if h.pods.byID["p"].left != 1 {
		t.Error("the create never left its pod")
	}
}

func TestACreateThatCannotBeSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*house, *runtime.CreateContainerRequest)
		code codes.Code
		want string
	}{
		{"no pod", func(_ *house, r *runtime.CreateContainerRequest) { r.PodSandboxId = "q" }, codes.NotFound, "pod q"},
		{"no pod id", func(_ *house, r *runtime.CreateContainerRequest) { r.PodSandboxId = "" }, codes.InvalidArgument, "pod_sandbox_id is empty"},
		{"no name", func(_ *house, r *runtime.CreateContainerRequest) { r.Config.Metadata = nil }, codes.InvalidArgument, "config.metadata.name is empty"},
		{"no image named", func(_ *house, r *runtime.CreateContainerRequest) { r.Config.Image = nil }, codes.InvalidArgument, "config.image.image is empty"},
		{"no image", func(h *house, _ *runtime.CreateContainerRequest) { h.images.images = nil }, codes.NotFound, "image 1d"},
		{"pod stopped", func(h *house, _ *runtime.CreateContainerRequest) { h.pods.byID["p"].status.State = sandbox.NotReady },
			codes.FailedPrecondition, "not ready"},
		{"exists", func(h *house, _ *runtime.CreateContainerRequest) {
			h.containers.err = fmt.Errorf("c: %w", errdef.Exists)
		},
			codes.AlreadyExists, "c: already exists"},
		{"mount", func(_ *house, r *runtime.CreateContainerRequest) {
			r.Config.Mounts = []*runtime.Mount{{HostPath: "/x"}}
		},
			codes.InvalidArgument, "container_path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := withPod(t)
			r := &runtime.CreateContainerRequest{PodSandboxId: "p", Config: containerConfig("c")}
			c.edit(h, r)
			_, err := h.runtime.CreateContainer(t.Context(), r)
			codeOf(t, err, c.code, c.want)
		})
	}
}

func TestTheImagesOfMountsAreResolved(t *testing.T) {
	h := withPod(t)
	data := storage.Image{ID: "2d", RepoTags: []string{"docker.io/library/data:1"}, Size: 3}
	h.images.images = append(h.images.images, data)
	create := func(image *runtime.ImageSpec) error {
		config := containerConfig("c")
		config.Mounts = []*runtime.Mount{{HostPath: "/x", ContainerPath: "/x"}, {ContainerPath: "/data", Image: image, Readonly: true}}
		_, err := h.runtime.CreateContainer(t.Context(), &runtime.CreateContainerRequest{PodSandboxId: "p", Config: config})
		return err
	}
	if err := create(&runtime.ImageSpec{Image: "2d"}); err != nil {
		t.Fatal(err)
	}
	if got := h.containers.created[0].Volumes; len(got) != 1 || got["2d"].ID != "2d" {
		t.Errorf("asked for %+v", got)
	}
	for name, spec := range map[string]*runtime.ImageSpec{
		"image 3d":        {Image: "3d"},
		"runtime_handler": {Image: "2d", RuntimeHandler: "nonesuch"},
	} {
		err := create(spec)
		want := codes.Unknown
		if spec.RuntimeHandler != "" {
			want = codes.InvalidArgument
		}
		codeOf(t, err, want, name)
		if !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: mounts[1] (/data): ") {
			t.Errorf("the kubelet does not recognise %v", err)
		}
	}
}

// withContainer is a house with a running container "c".
func withContainer(t *testing.T) (*house, *fakeContainer) {
	t.Helper()
	h := withPod(t)
	c := &fakeContainer{id: "c", pod: "p", config: containerConfig("c"), status: container.Status{
		Life: container.Life{State: container.Running, CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0)},
		PID:  42,
	}}
	h.containers.byID["c"] = c
	return h, c
}

func TestWhatIsDoneToAContainer(t *testing.T) {
	h, c := withContainer(t)
	ctx := t.Context()
	calls := []func() error{
		func() error {
			_, err := h.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "c"})
			return err
		},
		func() error {
			_, err := h.runtime.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: "c"})
			return err
		},
		func() error {
			_, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c", Timeout: 30})
			return err
		},
		func() error {
			_, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c", Timeout: 1 << 60})
			return err
		},
		func() error {
			_, err := h.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: "c"})
			return err
		},
	}
	for _, call := range calls {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	if got, want := strings.Join(c.did, "; "), "start; reopen; stop 30s; stop 2562047h47m16s; remove"; got != want {
		t.Errorf("did %s, want %s", got, want)
	}
	c.err = fmt.Errorf("container c is exited: %w", errdef.WrongState)
	for _, call := range calls {
		codeOf(t, call(), codes.FailedPrecondition, "container c is exited")
	}
}

func TestUnknownContainers(t *testing.T) {
	h, ctx := newHouse(t), t.Context()
	if _, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "x"}); err != nil {
		t.Error(err)
	}
	if _, err := h.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: "x"}); err != nil {
		t.Error(err)
	}
	_, err := h.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: "x"})
	codeOf(t, err, codes.NotFound, "container x")
	_, err = h.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: "x"})
	codeOf(t, err, codes.NotFound, "container x")
	_, err = h.runtime.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: "x"})
	codeOf(t, err, codes.NotFound, "container x")
	_, err = h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "x", Timeout: -1})
	codeOf(t, err, codes.InvalidArgument, "timeout is -1")
	_, err = h.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{})
	codeOf(t, err, codes.InvalidArgument, "container_id is empty")
}

func TestNobodySeesAPauseOrAContainerBeingCreated(t *testing.T) {
	h, c := withContainer(t)
	for _, hide := range []func(){
		func() { c.pause = true },
		func() { c.pause, c.status.State = false, container.Creating },
	} {
		hide()
		_, err := h.runtime.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "c"})
		codeOf(t, err, codes.NotFound, "container c")
		list, err := h.runtime.ListContainers(t.Context(), &runtime.ListContainersRequest{})
		if err != nil || len(list.GetContainers()) != 0 {
			t.Errorf("listed %v, %v", list, err)
		}
	}
}

func TestContainerStatusTellsAll(t *testing.T) {
	h, c := withContainer(t)
	c.config.Annotations = map[string]string{"note": "x"}
	mounts := []*runtime.Mount{{HostPath: "/h", ContainerPath: "/c", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	resources := &runtime.LinuxContainerResources{CpuShares: 2}
	c.status = container.Status{
		Life: container.Life{
			State: container.Exited, CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0), FinishedAt: time.Unix(3, 0),
			ExitCode: 137, Reason: "OOMKilled", Message: "killed",
		},
		User:      spec.User{UID: 1000, GID: 1001, Additional: []uint32{1002}},
		Resources: resources, Mounts: mounts, ImageID: "1d", ImageRef: "docker.io/library/busybox@sha256:2e",
		LogPath: "/var/log/c.log", StopSignal: runtime.Signal_SIGNAL_SIGTERM,
	}
	got, err := h.runtime.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "c", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &runtime.ContainerStatusResponse{
		Status: &runtime.ContainerStatus{
			Id: "c", Metadata: c.config.Metadata, State: runtime.ContainerState_CONTAINER_EXITED,
			CreatedAt: 1e9, StartedAt: 2e9, FinishedAt: 3e9, ExitCode: 137, Reason: "OOMKilled", Message: "killed",
			Image:    &runtime.ImageSpec{Image: "busybox:1", UserSpecifiedImage: "busybox:1"},
			ImageRef: "docker.io/library/busybox@sha256:2e", ImageId: "1d",
			Labels: c.config.Labels, Annotations: c.config.Annotations, Mounts: mounts, LogPath: "/var/log/c.log",
			Resources: &runtime.ContainerResources{Linux: resources},
			User: &runtime.ContainerUser{Linux: &runtime.LinuxContainerUser{
				Uid: 1000, Gid: 1001, SupplementalGroups: []int64{1002},
			}},
			StopSignal: runtime.Signal_SIGNAL_SIGTERM,
		},
		Info: map[string]string{"info": `{"sandboxID":"p","pid":0,"runtimeSpec":{"ociVersion":"1.0.2"}}`},
	})
}

func TestContainerFiltersAreAnded(t *testing.T) {
	h := newHouse(t)
	for _, id := range []string{"aa1", "aa2", "b"} {
		c := &fakeContainer{id: id, pod: "pod-" + id, config: containerConfig(id)}
		c.status.State = container.Running
		h.containers.byID[id] = c
	}
	h.containers.byID["aa2"].status.State = container.Exited
	exited := &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_EXITED}
	for _, c := range []struct {
		name   string
		filter *runtime.ContainerFilter
		want   string
	}{
		{"none", nil, "aa1 aa2 b"},
		{"id prefix", &runtime.ContainerFilter{Id: "aa"}, "aa1 aa2"},
		{"pod", &runtime.ContainerFilter{PodSandboxId: "pod-b"}, "b"},
		{"state", &runtime.ContainerFilter{State: exited}, "aa2"},
		{"label", &runtime.ContainerFilter{LabelSelector: map[string]string{"app": "b"}}, "b"},
		{"contradiction", &runtime.ContainerFilter{PodSandboxId: "pod-b", State: exited}, ""},
		{"all", &runtime.ContainerFilter{Id: "aa2", PodSandboxId: "pod-aa", State: exited, LabelSelector: map[string]string{"app": "aa2"}}, "aa2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := h.runtime.ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: c.filter})
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, item := range got.GetContainers() {
				ids = append(ids, item.GetId())
			}
			if strings.Join(ids, " ") != c.want {
				t.Errorf("got %v, want %s", ids, c.want)
			}
		})
	}
}

func TestExecSyncAnswersOrTimesOut(t *testing.T) {
	h, c := withContainer(t)
	c.exec = ExecResult{ExitCode: 3, Stdout: []byte("out"), Stderr: []byte("err")}
	got, err := h.runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"ls", "/"}, Timeout: 5})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &runtime.ExecSyncResponse{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3})
	if want := fmt.Sprintf("exec ls / 5s %d", maxOutput); c.did[0] != want {
		t.Errorf("did %s, want %s", c.did[0], want)
	}
	c.err = fmt.Errorf("exec in container c: %w", context.DeadlineExceeded)
	_, err = h.runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"ls"}, Timeout: 1})
	codeOf(t, err, codes.DeadlineExceeded, "command timed out after 1s")
	_, err = h.runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c"})
	codeOf(t, err, codes.InvalidArgument, "cmd is empty")
	_, err = h.runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "b\x00c"}})
	codeOf(t, err, codes.InvalidArgument, "cmd[1] has a NUL byte")
}

func TestTheAnswerOfExecSyncFitsTheKubelet(t *testing.T) {
	h, c := withContainer(t)
	c.exec = ExecResult{Stdout: make([]byte, maxOutput), Stderr: make([]byte, maxOutput)}
	got, err := h.runtime.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"yes"}})
	if err != nil {
		t.Fatal(err) // the client of the house takes 16 MiB, as the kubelet does
	}
	if len(got.GetStdout()) != maxOutput/2 || len(got.GetStderr()) != maxOutput/2 {
		t.Errorf("%d and %d bytes", len(got.GetStdout()), len(got.GetStderr()))
	}
}

func TestTrimGivesOneStreamWhatTheOtherLeaves(t *testing.T) {
	for _, c := range []struct{ a, b, wantA, wantB int }{
		{10, 10, 10, 10}, {200, 10, 90, 10}, {10, 200, 10, 90}, {200, 200, 50, 50}, {60, 45, 55, 45}, {0, 200, 0, 100},
	} {
		a, b := trim(make([]byte, c.a), make([]byte, c.b), 100)
		if len(a) != c.wantA || len(b) != c.wantB {
			t.Errorf("%d, %d: got %d, %d, want %d, %d", c.a, c.b, len(a), len(b), c.wantA, c.wantB)
		}
	}
}
