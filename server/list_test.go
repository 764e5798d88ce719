package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/storage"
)

// crowded is a house of n pods, containers and images. Each has notes as annotation.
func crowded(n int, notes string) *house {
	h := furnish()
	for i := range n {
		id := fmt.Sprintf("%064x", i)
		labels := map[string]string{
			"io.kubernetes.container.name": "main", "io.kubernetes.pod.name": "web-" + id[56:],
			"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": id[:36],
		}
		annotations := map[string]string{
			"io.kubernetes.container.hash": "5e7d3a2f", "io.kubernetes.container.restartCount": "0",
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "File", "io.kubernetes.pod.terminationGracePeriod": "30", "notes": notes,
		}
		pod := podConfig(id)
		pod.Labels, pod.Annotations = labels, annotations
		h.pods.byID[id] = &fakePod{id: id, config: pod, handler: "crun", status: sandbox.Status{State: sandbox.Ready, CreatedAt: time.Unix(1, 0)}}
		config := containerConfig(id)
		config.Labels, config.Annotations = labels, annotations
		h.containers.byID[id] = &fakeContainer{id: id, pod: id, config: config, status: container.Status{
			Life: container.Life{State: container.Running, CreatedAt: time.Unix(1, 0)}, ImageRef: "sha256:" + id, ImageID: id,
		}}
		h.images.images = append(h.images.images, storage.Image{ID: id, RepoTags: []string{notes + id}})
	}
	return h
}

// received is what a list told: the encoded items by id, and how many messages of what size it took.
type received struct {
	items    map[string]string
	messages int
	largest  int
	twice    []string
}

func (r *received) add(id string, item proto.Message) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(item)
	if err != nil {
		panic(err)
	}
	if _, known := r.items[id]; known {
		r.twice = append(r.twice, id)
	}
	r.items[id] = string(raw)
}

// drain reads a stream to its end.
func drain[R any, M interface {
	*R
	proto.Message
}, I interface {
	proto.Message
	comparable
}](t *testing.T, stream grpc.ServerStreamingClient[R], err error, list func(M) []I, id func(I) string) *received {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got := &received{items: map[string]string{}}
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got.messages++
		got.largest = max(got.largest, proto.Size(M(m)))
		if len(list(m)) == 0 {
			t.Error("a message without an item")
		}
		for _, item := range list(m) {
			got.add(id(item), item)
		}
	}
}

// streams reads all lists in both ways, by name.
func (h *house) lists(t *testing.T) (pieces, wholes map[string]*received) {
	t.Helper()
	ctx := t.Context()
	pieces, wholes = map[string]*received{}, map[string]*received{}
	pods, err := h.runtime.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
	pieces["pods"] = drain(t, pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes, (*runtime.PodSandbox).GetId)
	podList, err := h.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	wholes["pods"] = gather(t, err, podList.GetItems(), (*runtime.PodSandbox).GetId)

	containers, err := h.runtime.StreamContainers(ctx, &runtime.StreamContainersRequest{})
	pieces["containers"] = drain(t, containers, err, (*runtime.StreamContainersResponse).GetContainers, (*runtime.Container).GetId)
	containerList, err := h.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
	wholes["containers"] = gather(t, err, containerList.GetContainers(), (*runtime.Container).GetId)

	images, err := h.image.StreamImages(ctx, &runtime.StreamImagesRequest{})
	pieces["images"] = drain(t, images, err, (*runtime.StreamImagesResponse).GetImages, (*runtime.Image).GetId)
	imageList, err := h.image.ListImages(ctx, &runtime.ListImagesRequest{})
	wholes["images"] = gather(t, err, imageList.GetImages(), (*runtime.Image).GetId)

	stats, err := h.runtime.StreamContainerStats(ctx, &runtime.StreamContainerStatsRequest{})
	containerID := func(s *runtime.ContainerStats) string { return s.Attributes.Id }
	pieces["container stats"] = drain(t, stats, err, (*runtime.StreamContainerStatsResponse).GetContainerStats, containerID)
	statsList, err := h.runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	wholes["container stats"] = gather(t, err, statsList.GetStats(), containerID)

	podStats, err := h.runtime.StreamPodSandboxStats(ctx, &runtime.StreamPodSandboxStatsRequest{})
	podID := func(s *runtime.PodSandboxStats) string { return s.Attributes.Id }
	pieces["pod stats"] = drain(t, podStats, err, (*runtime.StreamPodSandboxStatsResponse).GetPodSandboxStats, podID)
	podStatsList, err := h.runtime.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	wholes["pod stats"] = gather(t, err, podStatsList.GetStats(), podID)

	metrics, err := h.runtime.StreamPodSandboxMetrics(ctx, &runtime.StreamPodSandboxMetricsRequest{})
	pieces["metrics"] = drain(t, metrics, err, (*runtime.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics, (*runtime.PodSandboxMetrics).GetPodSandboxId)
	metricsList, err := h.runtime.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	wholes["metrics"] = gather(t, err, metricsList.GetPodMetrics(), (*runtime.PodSandboxMetrics).GetPodSandboxId)
	return pieces, wholes
}

func gather[I proto.Message](t *testing.T, err error, list []I, id func(I) string) *received {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got := &received{items: map[string]string{}}
	for _, item := range list {
		got.add(id(item), item)
	}
	return got
}

func TestStreamsTellWhatListsTell(t *testing.T) {
	for _, c := range []struct {
		n        int
		notes    int // bytes
		messages int // at least, of pods
	}{{0, 0, 0}, {1, 0, 1}, {3, 100, 1}, {12, 300 << 10, 4}, {3, 2 << 20, 3}} {
		t.Run(fmt.Sprintf("%d of %d bytes", c.n, c.notes), func(t *testing.T) {
			h := crowded(c.n, strings.Repeat("x", c.notes))
			h.connect(t)
			pieces, wholes := h.lists(t)
			for name, got := range pieces {
				if len(got.items) != c.n || len(got.twice) > 0 || !maps.Equal(got.items, wholes[name].items) {
					t.Errorf("%s: %d items, %q twice; the whole list has %d", name, len(got.items), got.twice, len(wholes[name].items))
				}
				if got.largest > chunkSize+100 && c.notes < chunkSize {
					t.Errorf("%s: a message of %d bytes", name, got.largest)
				}
			}
			if got := pieces["pods"].messages; got < c.messages {
				t.Errorf("%d messages of pods", got)
			}
		})
	}
}

// A client that takes messages of 4 MiB at most gets through all that the largest node can have and more.
func TestStreamOfTenThousand(t *testing.T) {
	h := crowded(10_000, strings.Repeat("x", 8<<10))
	h.connect(t)
	stream, err := h.runtime.StreamContainers(t.Context(), &runtime.StreamContainersRequest{}, grpc.MaxCallRecvMsgSize(4<<20))
	got := drain(t, stream, err, (*runtime.StreamContainersResponse).GetContainers, (*runtime.Container).GetId)
	if len(got.items) != 10_000 || len(got.twice) > 0 {
		t.Errorf("%d items, %q twice", len(got.items), got.twice)
	}
}

// What a client has begun to read is the images as they were then, in chunks; the next list is of those that are left.
func TestStreamOfImagesThatAreRemovedMeanwhile(t *testing.T) {
	const n = 5000
	h := crowded(n, strings.Repeat("x", 2<<10))
	h.connect(t)
	stream, err := h.image.StreamImages(t.Context(), &runtime.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || len(first.Images) == 0 || len(first.Images) == n {
		t.Fatalf("the first chunk has %d images, %v", len(first.Images), err)
	}
	last := fmt.Sprintf("%064x", n-1)
	if _, err := h.image.RemoveImage(t.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: last}}); err != nil {
		t.Fatal(err)
	}
	rest := drain(t, stream, nil, (*runtime.StreamImagesResponse).GetImages, (*runtime.Image).GetId)
	if len(first.Images)+len(rest.items) != n || len(rest.twice) > 0 || rest.items[last] == "" || rest.largest > chunkSize+100 {
		t.Errorf("%d and %d images, %q twice, the largest message has %d bytes", len(first.Images), len(rest.items), rest.twice, rest.largest)
	}
	stream, err = h.image.StreamImages(t.Context(), &runtime.StreamImagesRequest{})
	if next := drain(t, stream, err, (*runtime.StreamImagesResponse).GetImages, (*runtime.Image).GetId); len(next.items) != n-1 || next.items[last] != "" {
		t.Errorf("after the removal: %d images", len(next.items))
	}
}

func TestStreamsFilter(t *testing.T) {
	h := crowded(3, "")
	h.connect(t)
	id := fmt.Sprintf("%064x", 1)
	containers, err := h.runtime.StreamContainers(t.Context(), &runtime.StreamContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: id}})
	got := drain(t, containers, err, (*runtime.StreamContainersResponse).GetContainers, (*runtime.Container).GetId)
	pods, err := h.runtime.StreamPodSandboxes(t.Context(), &runtime.StreamPodSandboxesRequest{Filter: &runtime.PodSandboxFilter{
		State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}}})
	none := drain(t, pods, err, (*runtime.StreamPodSandboxesResponse).GetPodSandboxes, (*runtime.PodSandbox).GetId)
	images, err := h.image.StreamImages(t.Context(), &runtime.StreamImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: id}}})
	one := drain(t, images, err, (*runtime.StreamImagesResponse).GetImages, (*runtime.Image).GetId)
	if len(got.items) != 1 || len(none.items) != 0 || len(one.items) != 1 || one.items[id] == "" {
		t.Errorf("%d containers, %d pods, %d images", len(got.items), len(none.items), len(one.items))
	}
}

// What is kept encoded must not outlive the status that it tells of.
func TestListsTellOfChanges(t *testing.T) {
	h := crowded(2, "")
	h.connect(t)
	id := fmt.Sprintf("%064x", 1)
	c, p := h.containers.byID[id], h.pods.byID[id]
	list := func() (*runtime.Container, *runtime.PodSandbox) {
		t.Helper()
		containers, err := h.runtime.ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{Id: id}})
		pods, podErr := h.runtime.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{Id: id}})
		if err := errors.Join(err, podErr); err != nil || len(containers.Containers) != 1 || len(pods.Items) != 1 {
			t.Fatalf("%v, %v, %v", containers, pods, err)
		}
		return containers.Containers[0], pods.Items[0]
	}
	list()
	c.status.State, p.status.State = container.Exited, sandbox.NotReady
	if container, pod := list(); container.State != runtime.ContainerState_CONTAINER_EXITED || pod.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after the end: %s, %s", container.State, pod.State)
	}
	c.config, p.config = containerConfig("other"), podConfig("other")
	if container, pod := list(); container.Metadata.Name != "other" || pod.Metadata.Name != "other" {
		t.Errorf("of another configuration: %v, %v", container, pod)
	}
}

// What is large is not kept a second time.
func TestLargeItemsAreNotKept(t *testing.T) {
	for size, want := range map[int]bool{100: true, maxKept: false} {
		var memo atomic.Value
		if _, err := encodeOnce(&memo, 1, func() proto.Message { return &runtime.Container{Id: strings.Repeat("x", size)} }); err != nil {
			t.Fatal(err)
		}
		if kept := memo.Load() != nil; kept != want {
			t.Errorf("%d bytes: kept is %v", size, kept)
		}
	}
}

func TestAStreamEndsWithItsReader(t *testing.T) {
	h := crowded(200, strings.Repeat("x", 300<<10))
	h.connect(t)
	for what, begin := range map[string]func(context.Context) error{
		"containers": func(ctx context.Context) error {
			return begun(h.runtime.StreamContainers(ctx, &runtime.StreamContainersRequest{}))
		},
		"images": func(ctx context.Context) error {
			return begun(h.image.StreamImages(ctx, &runtime.StreamImagesRequest{}))
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if err := begin(ctx); err != nil {
			t.Fatal(what, err)
		}
		if h.server.Active() == 0 {
			t.Errorf("%s: all was sent before anybody hung up", what)
		}
		cancel()
		for deadline := time.Now().Add(10 * time.Second); h.server.Active() > 0; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the call goes on without a reader", what)
			}
		}
	}
}

// begun reads the first message of a stream.
func begun[R any](stream grpc.ServerStreamingClient[R], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

// listing is a house whose lists take no time to find.
type listing struct {
	Containers
	all []Container
}

func (l listing) List() []Container { return l.all }

type podListing struct {
	Pods
	all []Pod
}

func (l podListing) List() []Pod { return l.all }

func quickHouse(n int) *house {
	h := crowded(n, "")
	h.server.containers = listing{h.containers, h.containers.List()}
	h.server.pods = podListing{h.pods, h.pods.List()}
	return h
}

// BenchmarkLists is the server's work for a list of a thousand, up to the bytes that gRPC is given.
func BenchmarkLists(b *testing.B) {
	h := quickHouse(1000)
	for i := range 500 {
		name := fmt.Sprintf("registry.example.com/team/app-%d", i)
		h.images.images = append(h.images.images, storage.Image{
			ID: fmt.Sprintf("%064d", i), Size: 1, Labels: map[string]string{"name": name}, Annotations: map[string]string{"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
			RepoTags: []string{name + ":1"}, RepoDigests: []string{fmt.Sprintf("%s@sha256:%064d", name, i)},
		})
	}
	s, images := &runtimeService{Server: h.server}, &imageService{Server: h.server}
	for name, list := range map[string]func() (proto.Message, error){
		"containers": func() (proto.Message, error) {
			return s.ListContainers(b.Context(), &runtime.ListContainersRequest{})
		},
		"pods": func() (proto.Message, error) {
			return s.ListPodSandbox(b.Context(), &runtime.ListPodSandboxRequest{})
		},
		"500 images": func() (proto.Message, error) {
			return images.ListImages(b.Context(), &runtime.ListImagesRequest{})
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m, err := list()
				if err == nil {
					_, err = proto.Marshal(m)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// unread takes what it is sent and does not look at it: a client that costs little.
type unread struct{}

func (unread) Name() string                         { return "proto" }
func (unread) Marshal(any) (mem.BufferSlice, error) { return mem.BufferSlice{}, nil }
func (unread) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*int) = data.Len()
	return nil
}

// BenchmarkListsThroughASocket tells the processor time of a call as cpu-ms/op: the server's, and that of a client that
// does not decode.
func BenchmarkListsThroughASocket(b *testing.B) {
	h := quickHouse(1000)
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(ctx, l) }() // ends by stop
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(unread{}), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		b.Fatal(err)
	}
	for _, method := range []string{runtime.RuntimeService_ListContainers_FullMethodName, runtime.RuntimeService_ListPodSandbox_FullMethodName} {
		b.Run(path.Base(method), func(b *testing.B) {
			before := processorTime(b)
			var size int
			for b.Loop() {
				if err := conn.Invoke(ctx, method, nil, &size); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime(b)-before)/1e6/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(size), "bytes")
		})
	}
	if err := conn.Close(); err != nil {
		b.Error(err)
	}
	stop()
	if err := <-served; err != nil {
		b.Error(err)
	}
}

// processorTime is what this program has used of processors.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hasty is a container that ends after it was looked at a number of times.
type hasty struct {
	Container
	looks *int
}

func (c hasty) Status() container.Status {
	s := c.Container.Status()
	if *c.looks--; *c.looks < 0 {
		s.State = container.Exited
	}
	return s
}

// A list of those that run must not have one that has ended, though it ends meanwhile.
func TestAFilteredListTellsWhatItAskedFor(t *testing.T) {
	for looks := range 4 {
		h := crowded(1, "")
		h.server.containers = listing{h.containers, []Container{hasty{h.containers.List()[0], &looks}}}
		running := &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}
		for raw, err := range h.server.containerItems(&runtime.ContainerFilter{State: running}) {
			list := &runtime.ListContainersResponse{}
			if err := errors.Join(err, proto.Unmarshal(raw, list)); err != nil || list.Containers[0].State != running.State {
				t.Errorf("%v, %v", list, err)
			}
		}
	}
}
