package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/lsm"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/storage"
)

// open starts a crid on the host.
func (s session) open() *Manager {
	s.t.Helper()
	dir, err := state.Open[Record](filepath.Join(s.dir, "records"), RecordVersion)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return New(Deps{
		Handlers:  map[string]Handler{"fake": {Fact: fact.Handler{Name: "fake", SpecVersion: "1.0.2", UserNamespaces: true}, Runtime: fakeRuntime{s}}},
		Monitors:  fakeMonitors{s},
		Rootfs:    fakeRootfs{s},
		Mapper:    fakeMapper{s},
		Images:    fakeImages{s},
		Volumes:   fakeVolumes{s},
		Cgroups:   fakeCgroups{s},
		Limits:    fakeLimits{s},
		Records:   countedRecords{s, dir},
		Events:    event.New[event.Event](64),
		Additions: plainHost(),
		Host:      fact.Host{BootID: "boot-1", Kernel: "6.1.0", Seccomp: true, Capabilities: ^uint64(0), Controllers: []string{"cpu", "cpuset", "memory"}},
		Log:       slog.New(slog.NewTextHandler(io.Discard, nil)),
		Options:   Options{ImageVolumes: VolumesBind, PauseRoot: "/pause-root", Roots: []string{s.dir}},
	})
}

// plainHost is a host that adds nothing to containers and has no security modules.
func plainHost() Additions {
	return Additions{Hooks: noHooks{}, Security: lsm.Open(context.Background(), fact.Host{})}
}

type noHooks struct{}

func (noHooks) Inject(*specs.Spec, map[string]string, bool) error { return nil }

// start is a crid on a host of its own that lasts as long as the test.
func start(t *testing.T) (*host, *Manager) {
	t.Helper()
	h := newHost(t)
	m := h.boot().open()
	t.Cleanup(func() { closeManager(t, m) })
	return h, m
}

func closeManager(t *testing.T, m *Manager) {
	t.Helper()
	if err := m.Close(context.Background()); err != nil {
		t.Errorf("close: %v", err)
	}
}

const testPod = "pod1"

func testImage() storage.Image {
	return storage.Image{ID: "sha256-of-busybox", RepoDigests: []string{"docker.io/library/busybox@sha256:" + strings.Repeat("a", 64)},
		Config: imgspec.ImageConfig{Cmd: []string{"sh"}}}
}

// dataImage is one that containers have as a volume.
func dataImage() storage.Image {
	return storage.Image{ID: "sha256-of-data", RepoDigests: []string{"docker.io/library/data@sha256:" + strings.Repeat("b", 64)}}
}

// withData gives the container an image as a volume.
func (r Request) withData(subPath string) Request {
	r.Volumes = map[string]storage.Image{dataImage().ID: dataImage()}
	r.Config.Mounts = append(r.Config.Mounts, &runtime.Mount{ContainerPath: "/data", ImageSubPath: subPath,
		Image: &runtime.ImageSpec{Image: dataImage().ID, UserSpecifiedImage: "data"}})
	return r
}

func (h *host) request(name string) Request {
	return Request{
		Key:   Key{PodID: testPod, Name: name},
		Pod:   h.pod(),
		Image: testImage(),
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name},
			Image:    &runtime.ImageSpec{Image: testImage().ID, UserSpecifiedImage: "busybox"},
			LogPath:  name + ".log",
			Command:  []string{"top"},
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
			}},
		},
	}
}

func (h *host) pod() spec.PodEnv {
	return spec.PodEnv{ID: testPod, Handler: "fake", CgroupParent: "/crid-test",
		Config: &runtime.PodSandboxConfig{LogDirectory: filepath.Join(h.dir, "logs"), Metadata: &runtime.PodSandboxMetadata{Name: "p"}}}
}

// left is what there still is of containers, and what happened that must not.
func (h *host) left() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := slices.Clone(h.observed)
	for id := range h.mains {
		found = append(found, "monitor of "+id)
	}
	for path := range h.cgroups {
		found = append(found, "cgroup "+path)
	}
	for id := range h.rootfs {
		found = append(found, "root filesystem "+id)
	}
	for id := range h.images.mounted {
		found = append(found, "mounted image "+id)
	}
	for id := range h.states {
		found = append(found, "runtime state of "+id)
	}
	if h.images.holds != 0 {
		found = append(found, fmt.Sprintf("%d holds of images", h.images.holds))
	}
	for _, dir := range []string{"records", "monitor"} {
		files, err := os.ReadDir(filepath.Join(h.dir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.t.Error(err)
		}
		for _, f := range files {
			if f.Name() != state.ReserveName {
				found = append(found, dir+"/"+f.Name())
			}
		}
	}
	return found
}

func (h *host) wantNothingLeft(m *Manager) {
	h.t.Helper()
	if left := h.left(); len(left) > 0 {
		h.t.Errorf("left behind: %q", left)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.byID)+len(m.byKey)+len(m.byPod) > 0 {
		h.t.Errorf("the maps still hold %d ids, %d keys, %d pods", len(m.byID), len(m.byKey), len(m.byPod))
	}
	for _, c := range m.byID {
		h.t.Errorf("%s is %+v", c, c.Status().Life)
	}
}

// config is the configuration that a container was made with.
func (h *host) config(id string) *specs.Spec {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.bundle(id), "config.json"))
	if err != nil {
		h.t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		h.t.Fatal(err)
	}
	return &s
}

// hang makes the calls of one kind wait until the gate is closed.
func (h *host) hang(call string) (gate chan struct{}) {
	gate = make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = func(_ int, what string) verdict {
		if what == call {
			h.mu.Unlock()
			<-gate
			h.mu.Lock()
		}
		return right
	}
	return gate
}
