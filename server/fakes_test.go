package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stats"
	"github.com/crid/crid/internal/storage"
)

// house is a server on fakes that behave, with clients of its two services.
type house struct {
	pods       *fakePods
	containers *fakeContainers
	images     *fakeImages
	store      *fakeLibrary
	stats      *fakeStats
	events     *event.Bus[event.Event]
	network    fact.Condition
	log        *syncBuffer
	server     *Server
	stop       func()     // begins the end
	served     chan error // what Serve returned
	conn       *grpc.ClientConn

	runtime runtime.RuntimeServiceClient
	image   runtime.ImageServiceClient
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := furnish()
	h.connect(t)
	return h
}

// furnish makes a house that nobody serves.
func furnish() *house {
	h := &house{
		pods:       &fakePods{byID: map[string]*fakePod{}},
		containers: &fakeContainers{byID: map[string]*fakeContainer{}},
		images:     &fakeImages{},
		store:      &fakeLibrary{},
		stats:      &fakeStats{},
		events:     event.New[event.Event](16),
		network:    fact.Condition{Ready: true},
		log:        &syncBuffer{},
		served:     make(chan error, 1),
	}
	h.server = New(Deps{
		Facts: Facts{Version: "v1.2.3", Handlers: []fact.Handler{
			{Name: "crun", RecursiveReadOnly: true}, {Name: "runc"},
		}},
		Pods: h.pods, Containers: h.containers, Images: h.images, Rootfs: h.images, Events: h.events, Stats: h.stats,
		Streams: fakeStreams{},
		Network: func() fact.Condition { return h.network },
		Info:    func() map[string]any { return map[string]any{"config": map[string]string{"root": "/r"}} },
		Admin:   Admin{Library: h.store, Fsck: h.store.fsck},
		Log:     slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	return h
}

// connect serves and dials; the end of the test ends both.
func (h *house) connect(t *testing.T) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() { h.served <- h.server.Serve(ctx, l) }() // ends by stop
	conn, err := grpc.NewClient("passthrough:///crid",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	h.conn = conn
	h.runtime, h.image = runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && status.Code(err) != codes.Canceled { // the test closed it
			t.Error(err)
		}
		stop()
	})
}

// syncBuffer is a log that a test may read while it is written.
type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// fakePod is a pod that stands as it is told to.
type fakePod struct {
	id      string
	config  *runtime.PodSandboxConfig
	handler string
	status  sandbox.Status
	left    int // how many creates have left
	memo    atomic.Value
}

func (p *fakePod) Memo() *atomic.Value               { return &p.memo }
func (p *fakePod) ID() string                        { return p.id }
func (p *fakePod) Config() *runtime.PodSandboxConfig { return p.config }
func (p *fakePod) Handler() string                   { return p.handler }
func (p *fakePod) Status() sandbox.Status            { return p.status }

func (p *fakePod) Enter(ctx context.Context, _ runtime.NamespaceMode) (context.Context, spec.PodEnv, func(), error) {
	if p.status.State != sandbox.Ready {
		return ctx, spec.PodEnv{}, nil, fmt.Errorf("pod %s is not ready: %w", p.id, errdef.WrongState)
	}
	return ctx, spec.PodEnv{ID: p.id, Handler: p.handler}, func() { p.left++ }, nil
}

// fakePods keeps pods in a map. The id of a new one is its name.
type fakePods struct {
	byID map[string]*fakePod
	err  error // returned by Run, Stop and Remove
}

func (f *fakePods) Run(_ context.Context, key sandbox.Key, config *runtime.PodSandboxConfig, handler string) (Pod, error) {
	if f.err != nil {
		return nil, f.err
	}
	p := &fakePod{id: key.Name, config: config, handler: handler, status: sandbox.Status{State: sandbox.Ready, CreatedAt: time.Unix(7, 0)}}
	f.byID[p.id] = p
	return p, nil
}

func (f *fakePods) Stop(_ context.Context, id string) error {
	p, err := f.Get(id)
	if err != nil {
		return err
	}
	p.(*fakePod).status.State = sandbox.NotReady
	return f.err
}

func (f *fakePods) Remove(_ context.Context, id string) error {
	if _, err := f.Get(id); err != nil {
		return err
	}
	delete(f.byID, id)
	return f.err
}

func (f *fakePods) Get(id string) (Pod, error) {
	if p, ok := f.byID[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("pod %s: %w", id, errdef.NotFound)
}

func (f *fakePods) List() []Pod {
	var all []Pod
	for _, p := range f.byID {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Pod) int { return strings.Compare(a.ID(), b.ID()) })
	return all
}

// fakeContainer is a container that stands as it is told to, and notes what is done to it.
type fakeContainer struct {
	id, pod string
	pause   bool
	config  *runtime.ContainerConfig
	status  container.Status
	err     error // returned by everything that does something
	did     []string
	hook    func() // runs at Start; nil = nothing does
	exec    ExecResult
	memo    atomic.Value
}

func (c *fakeContainer) Memo() *atomic.Value              { return &c.memo }
func (c *fakeContainer) ID() string                       { return c.id }
func (c *fakeContainer) PodID() string                    { return c.pod }
func (c *fakeContainer) Pause() bool                      { return c.pause }
func (c *fakeContainer) Config() *runtime.ContainerConfig { return c.config }
func (c *fakeContainer) Status() container.Status         { return c.status }

func (c *fakeContainer) do(what string) error {
	c.did = append(c.did, what)
	return c.err
}

func (c *fakeContainer) Start(context.Context) error {
	if c.hook != nil {
		c.hook()
	}
	return c.do("start")
}

func (c *fakeContainer) Remove(context.Context) error    { return c.do("remove") }
func (c *fakeContainer) ReopenLog(context.Context) error { return c.do("reopen") }
func (c *fakeContainer) Stop(_ context.Context, grace time.Duration) error {
	return c.do("stop " + grace.String())
}

func (c *fakeContainer) Cgroup() string { return "/" + c.pod + "/crid-" + c.id }

func (c *fakeContainer) Update(_ context.Context, change *runtime.LinuxContainerResources) error {
	return c.do(fmt.Sprintf("update %d shares", change.GetCpuShares()))
}

func (c *fakeContainer) Exec(_ context.Context, cmd []string, timeout time.Duration, limit int) (ExecResult, error) {
	return c.exec, c.do(fmt.Sprintf("exec %s %s %d", strings.Join(cmd, " "), timeout, limit))
}

// fakeContainers keeps containers in a map. The id of a new one is its name.
type fakeContainers struct {
	byID    map[string]*fakeContainer
	created []container.Request
	err     error // returned by Create
}

func (f *fakeContainers) Create(_ context.Context, r container.Request) (Container, error) {
	f.created = append(f.created, r)
	if f.err != nil {
		return nil, f.err
	}
	c := &fakeContainer{id: r.Key.Name, pod: r.Key.PodID, config: r.Config}
	c.status.State = container.Created
	f.byID[c.id] = c
	return c, nil
}

func (f *fakeContainers) Get(id string) (Container, error) {
	if c, ok := f.byID[id]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdef.NotFound)
}

func (f *fakeContainers) List() []Container { return f.OfPod("") }

func (f *fakeContainers) OfPod(podID string) []Container {
	var all []Container
	for _, c := range f.byID {
		if podID == "" || c.pod == podID {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Container) int { return strings.Compare(a.ID(), b.ID()) })
	return all
}

func (f *fakeContainers) Spec(string) ([]byte, error) { return []byte(`{"ociVersion":"1.0.2"}`), nil }

// fakeImages knows images by id and by tag.
type fakeImages struct {
	images []storage.Image
	pulled storage.PullRequest // the last
	err    error               // returned by Pull and Remove
	block  bool                // Pull waits for its context
	panics bool                // Usage panics
}

func (f *fakeImages) Pull(ctx context.Context, r storage.PullRequest) (storage.Image, error) {
	f.pulled = r
	if r.Progress != nil {
		r.Progress([]storage.LayerProgress{{Digest: "sha256:1", Done: 3, Total: 4, State: storage.LayerPulling}})
	}
	if f.block {
		<-ctx.Done()
		return storage.Image{}, ctx.Err()
	}
	if f.err != nil {
		return storage.Image{}, f.err
	}
	return f.Resolve(ctx, r.Ref)
}

func (f *fakeImages) Resolve(_ context.Context, ref string) (storage.Image, error) {
	for _, i := range f.images {
		if i.ID == ref || slices.Contains(i.RepoTags, ref) {
			return i, nil
		}
	}
	return storage.Image{}, fmt.Errorf("image %s: %w", ref, errdef.NotFound)
}

func (f *fakeImages) Inspect(_ context.Context, id string) (storage.Details, error) {
	return storage.Details{Digest: "sha256:99", Manifest: []byte(`{"layers":[]}`), Config: []byte(`{"author":"me of ` + id + `","config":{"User":"1002:3"}}`), Share: storage.Share{Exclusive: 1, Shared: 2}}, nil
}

func (f *fakeImages) List(context.Context) ([]storage.Image, error) { return f.images, nil }

func (f *fakeImages) Remove(_ context.Context, ref string) error {
	f.images = slices.DeleteFunc(f.images, func(i storage.Image) bool { return i.ID == ref })
	return f.err
}

func (f *fakeImages) Usage(context.Context) (storage.Usage, error) {
	if f.panics {
		panic("the store is on fire")
	}
	return storage.Usage{Mountpoint: "/images", Bytes: 5, Inodes: 6, At: time.Unix(9, 0)}, nil
}

func (f *fakeImages) Total(context.Context) (storage.Usage, error) {
	return storage.Usage{Mountpoint: "/rootfs", Bytes: 7, Inodes: 8, At: time.Unix(9, 0)}, nil
}

// fakeStats measures nothing: it answers with whom it was asked of, and as the cgroup's what it was given.
type fakeStats struct {
	containers []stats.Container // of the last call, Pod's included
	pods       []stats.Pod
}

func (f *fakeStats) Container(ctx context.Context, c stats.Container) (*runtime.ContainerStats, error) {
	return f.Containers(ctx, []stats.Container{c})[0], nil
}

func (f *fakeStats) Containers(_ context.Context, all []stats.Container) []*runtime.ContainerStats {
	f.containers = all
	out := []*runtime.ContainerStats{}
	for _, c := range all {
		out = append(out, &runtime.ContainerStats{Attributes: c.Attributes})
	}
	return out
}

func (f *fakeStats) Pod(ctx context.Context, p stats.Pod) (*runtime.PodSandboxStats, error) {
	return f.Pods(ctx, []stats.Pod{p})[0], nil
}

func (f *fakeStats) Pods(ctx context.Context, all []stats.Pod) []*runtime.PodSandboxStats {
	f.pods = all
	out := []*runtime.PodSandboxStats{}
	for _, p := range all {
		out = append(out, &runtime.PodSandboxStats{Attributes: p.Attributes, Linux: &runtime.LinuxPodSandboxStats{Containers: f.Containers(ctx, p.Containers)}})
	}
	return out
}

func (f *fakeStats) Metrics(_ context.Context, all []stats.Pod) []*runtime.PodSandboxMetrics {
	f.pods = all
	out := []*runtime.PodSandboxMetrics{}
	for _, p := range all {
		out = append(out, &runtime.PodSandboxMetrics{PodSandboxId: p.Attributes.Id, Metrics: []*runtime.Metric{{Name: p.Attributes.Annotations["notes"]}}})
	}
	return out
}
