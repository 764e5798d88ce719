package integration

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// slow is a crid that can be made to stay at a fail point.
type slow struct {
	*harness.Crid
	t       *testing.T
	control string
}

func startSlow(t *testing.T) *slow {
	t.Helper()
	control := filepath.Join(t.TempDir(), "control")
	return &slow{t: t, control: control, Crid: harness.Start(t,
		harness.Program(harness.Binary("crid-failpoint"), failpoint.Control+"="+control))}
}

// hold lets crid stay at a fail point until release is called.
func (s *slow) hold(point string) (release func()) {
	s.t.Helper()
	order := func(text string) {
		temp := s.control + ".new"
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(temp, s.control); err != nil {
			s.t.Fatal(err)
		}
	}
	order("hold " + point)
	return func() { order("") }
}

// many is how many clients ask for the same at once.
const many = 16

// call is one that answers with an id.
type call func(ctx context.Context) (string, error)

// impatient calls with little time while crid is kept from answering, then many times at once with enough, calls
// release when all have had time to begin, and returns the answer, of which there has to be one.
func (s *slow) impatient(release func(), call call) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if id, err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
		s.t.Errorf("the impatient client got %q, %v", id, err)
	}
	ids := make([]string, many)
	var calls sync.WaitGroup
	for i := range ids {
		ctx := s.Context()
		calls.Go(func() {
			var err error
			if ids[i], err = call(ctx); err != nil {
				s.t.Error(err)
			}
		})
	}
	<-time.After(300 * time.Millisecond)
	release()
	calls.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			s.t.Errorf("ids %q and %q", ids[0], id)
		}
	}
	return ids[0]
}

// inFlight waits until Status tells of an operation of this kind.
func (s *slow) inFlight(kind string) {
	s.t.Helper()
	eventually(s.t, kind+" in flight", func() bool {
		resp, err := s.Runtime.Status(s.Context(), true)
		if err != nil {
			s.t.Fatal(err)
		}
		var info struct{ Operations []struct{ Kind string } }
		if err := json.Unmarshal([]byte(resp.Info["crid"]), &info); err != nil {
			s.t.Fatal(err)
		}
		return len(info.Operations) > 0 && strings.HasPrefix(info.Operations[0].Kind, kind)
	})
}

func TestARetryGetsTheRunningWorksResult(t *testing.T) {
	s := startSlow(t)
	cfg := s.PodConfig()
	pod := s.Pod(s.impatient(s.hold("network/plugin/called"), func(ctx context.Context) (string, error) {
		return s.Runtime.RunPodSandbox(ctx, cfg, "")
	}), cfg)
	if list, err := s.Runtime.ListPodSandbox(s.Context(), nil); err != nil || len(list) != 1 || pod.Status().State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("pods: %v, %v", list, err)
	}
	s.Pull(images.Busybox)
	ctrCfg := pod.ContainerConfig("sleep 1000")
	ctr := pod.Container(s.impatient(s.hold("monitor/start/forked"), func(ctx context.Context) (string, error) {
		return s.Runtime.CreateContainer(ctx, pod.ID, ctrCfg, cfg)
	}), ctrCfg)
	if list, err := s.Runtime.ListContainers(s.Context(), nil); err != nil || len(list) != 1 || ctr.Status().State != runtime.ContainerState_CONTAINER_CREATED {
		t.Errorf("containers: %v, %v", list, err)
	}
	s.impatient(s.hold("oci/run/called"), func(ctx context.Context) (string, error) {
		return "started", s.Runtime.StartContainer(ctx, ctr.ID)
	})
	ctr.Exec("true")
}

// A pull runs only while somebody waits for it; what many wait for runs once.
func TestPullsAreShared(t *testing.T) {
	s := startSlow(t)
	call := func(ctx context.Context) (string, error) {
		return s.Images.PullImage(ctx, &runtime.ImageSpec{Image: harness.Ref(images.Volume)}, nil, nil)
	}
	release := s.hold("storage/pull/resolved")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if id, err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the impatient client got %q, %v", id, err)
	}
	release()
	<-time.After(500 * time.Millisecond) // in which it would be done, from a registry on this machine
	if list, err := s.Images.ListImages(s.Context(), nil); err != nil || len(list) > 0 {
		t.Errorf("images of a pull that nobody waits for: %v, %v", list, err)
	}
	id := s.impatient(s.hold("storage/pull/resolved"), call)
	if list, err := s.Images.ListImages(s.Context(), nil); err != nil || len(list) != 1 || list[0].Id != id {
		t.Errorf("images: %v, %v", list, err)
	}
}

// What a repeated RunPodSandbox meets, with real parts.
func TestRetriesOfRunPodSandbox(t *testing.T) {
	s := startSlow(t)
	cfg := s.PodConfig()
	call := func(ctx context.Context) (string, error) { return s.Runtime.RunPodSandbox(ctx, cfg, "") }
	first, err := call(s.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := call(s.Context()); err != nil || again != first {
		t.Errorf("while it is ready: %s, %v", again, err)
	}
	cfg.Annotations, cfg.Hostname = map[string]string{"note": "regenerated"}, "otherhost" // as the kubelet may
	if again, err := call(s.Context()); err != nil || again != first {
		t.Errorf("while it is ready, of another configuration: %s, %v", again, err)
	}
	if err := s.Runtime.StopPodSandbox(s.Context(), first); err != nil {
		t.Fatal(err)
	}
	_, err = call(s.Context())
	refused(t, "once it is stopped", err, first, "RemovePodSandbox")
	release := s.hold("sandbox/files/unmounted")
	removed := make(chan error, 1)
	ctx := s.Context()
	go func() { removed <- s.Runtime.RemovePodSandbox(ctx, first) }() // ends once released
	s.inFlight("remove pod")
	second := s.impatient(release, call)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if second == first {
		t.Error("the removed pod came back")
	}
}

// refused looks whether a call was answered with AlreadyExists, and with what is in its way and how to get rid of that.
func refused(t *testing.T, when string, err error, words ...string) {
	t.Helper()
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("%s: %v", when, err)
		return
	}
	for _, word := range append(words, "remove") {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
			t.Errorf("%s: no %q in %v", when, word, err)
		}
	}
}

// What a repeated CreateContainer meets, with real parts.
func TestRetriesOfCreateContainer(t *testing.T) {
	s := startSlow(t)
	s.Pull(images.User)
	pod := s.RunPod()
	ctr := pod.Create("sleep 1000")
	cfg := ctr.Config
	call := func(ctx context.Context) (string, error) {
		return s.Runtime.CreateContainer(ctx, pod.ID, cfg, pod.Config)
	}
	if again, err := call(s.Context()); err != nil || again != ctr.ID {
		t.Errorf("once it is created: %s, %v", again, err)
	}
	ctr.Start()
	if again, err := call(s.Context()); err != nil || again != ctr.ID {
		t.Errorf("while it runs: %s, %v", again, err)
	}
	named := func(cfg *runtime.ContainerConfig) { cfg.Metadata = ctr.Config.Metadata }
	_, err := pod.TryCreate(pod.ContainerConfig("sleep 1000", named, func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.User) }))
	refused(t, "of another image", err, ctr.ID, "image")
	_, err = pod.TryCreate(pod.ContainerConfig("sleep 2000", named))
	refused(t, "of another command", err, ctr.ID, "command")
	ctr.Stop(0)
	_, err = call(s.Context())
	refused(t, "once it has exited", err, ctr.ID)
	release := s.hold("monitor/disarm/removed")
	removed := make(chan error, 1)
	ctx := s.Context()
	go func() { removed <- s.Runtime.RemoveContainer(ctx, ctr.ID) }() // ends once released
	s.inFlight("container")
	second := s.impatient(release, call)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if second == ctr.ID {
		t.Error("the removed container came back")
	}
}
