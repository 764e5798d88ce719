package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/admin"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
)

func TestEveryKindOfErrorHasItsCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("x: %w", errdef.NotFound), codes.NotFound},
		{fmt.Errorf("x: %w", errdef.Exists), codes.AlreadyExists},
		{fmt.Errorf("x: %w", errdef.Invalid), codes.InvalidArgument},
		{fmt.Errorf("x: %w", errdef.WrongState), codes.FailedPrecondition},
		{fmt.Errorf("x: %w", errdef.Unavailable), codes.Unavailable},
		{fmt.Errorf("x: %w", errdef.Unsupported), codes.Unimplemented},
		{fmt.Errorf("x: %w", errdef.Exhausted), codes.ResourceExhausted},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOSPC}, codes.ResourceExhausted},
		{fmt.Errorf("x: %w", syscall.EDQUOT), codes.ResourceExhausted},
		{fmt.Errorf("x: %w", errdef.ImageVolume), codes.Unknown},
		{fmt.Errorf("x: %w: %w", errdef.Invalid, errdef.ImageVolume), codes.InvalidArgument},
		{fmt.Errorf("x: %w", errdef.RecursiveReadOnly), codes.Unknown},
		{fmt.Errorf("x: %w", event.ErrLagged), codes.Aborted},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("x: %w", context.Canceled), codes.Canceled},
		{fmt.Errorf("plugin: %w: %w", errdef.Unavailable, context.DeadlineExceeded), codes.Unavailable},
		{errors.New("x"), codes.Unknown},
		{status.Error(codes.DataLoss, "x"), codes.DataLoss},
		{nil, codes.OK},
	} {
		if got := status.Code(toStatus(c.err)); got != c.code {
			t.Errorf("%v: got %s, want %s", c.err, got, c.code)
		}
	}
}

// What registries and programs say may be of any length and any bytes.
func TestMessagesAreShortAndText(t *testing.T) {
	for _, kind := range []error{errdef.NotFound, errdef.RegistryUnavailable, errors.New("none")} {
		said := status.Convert(toStatus(fmt.Errorf("pull: %s: %w", strings.Repeat("no\xff", 1<<20), kind))).Message()
		if len(said) > 3*maxMessage || !utf8.ValidString(said) || !strings.Contains(said, "pull: no") || !strings.Contains(said, kind.Error()) {
			t.Errorf("%v: %d bytes: %.100q", kind, len(said), said)
		}
	}
}

func TestAPanicIsAnErrorAndALineInTheLog(t *testing.T) {
	h := newHouse(t)
	h.images.panics = true
	_, err := h.image.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	codeOf(t, err, codes.Internal, "ImageFsInfo")
	if log := h.log.String(); !strings.Contains(log, "the store is on fire") || !strings.Contains(log, "image.go") {
		t.Errorf("the log lacks the cause or the stack:\n%s", log)
	}
	if _, err := h.runtime.Version(t.Context(), &runtime.VersionRequest{}); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	if n := h.server.Active(); n != 0 {
		t.Errorf("%d calls in progress", n)
	}
}

func TestTheLogTellsCallsByTheirGravity(t *testing.T) {
	h, _ := withContainer(t)
	ctx := t.Context()
	if _, err := h.runtime.ListContainers(ctx, &runtime.ListContainersRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: "x"}); err == nil {
		t.Fatal("there is no container x")
	}
	for _, want := range []string{
		`level=DEBUG msg=ListContainers took=`,
		`level=INFO msg=StopContainer took=\S+ container=c`,
		`level=WARN msg=ContainerStatus took=\S+ container=x err="rpc error: code = NotFound`,
	} {
		if !regexp.MustCompile(want).MatchString(h.log.String()) {
			t.Errorf("no line %s in\n%s", want, h.log)
		}
	}
	if levelOf("RuntimeConfig") >= 0 {
		t.Error("RuntimeConfig only reads")
	}
}

// subscribe opens an event stream and returns once nothing can be missed.
func subscribe(t *testing.T, h *house) grpc.ServerStreamingClient[runtime.ContainerEventResponse] {
	t.Helper()
	stream, err := h.runtime.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestEventsCarryHowThePodStands(t *testing.T) {
	h, _ := withContainer(t)
	stream := subscribe(t, h)
	at := time.Unix(5, 6)
	for i, want := range []runtime.ContainerEventType{
		runtime.ContainerEventType_CONTAINER_CREATED_EVENT, runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
	} {
		h.events.Publish(event.Event{Kind: event.Kind(i), PodID: "p", ContainerID: "c", At: at})
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got.GetContainerEventType() != want || got.GetContainerId() != "c" || got.GetCreatedAt() != at.UnixNano() {
			t.Errorf("got %v, want %s", got, want)
		}
		if got.GetPodSandboxStatus().GetMetadata().GetName() != "p" || len(got.GetContainersStatuses()) != 1 {
			t.Errorf("the event lacks the pod: %v", got)
		}
	}
	h.events.Publish(event.Event{Kind: event.Deleted, PodID: "gone", ContainerID: "gone", At: at})
	if got, err := stream.Recv(); err != nil || got.GetPodSandboxStatus() != nil {
		t.Errorf("a pod that is gone: %v, %v", got, err)
	}
}

func TestTheEndEndsStreamsAndCallsInOrder(t *testing.T) {
	h := withImages(t)
	stream := subscribe(t, h)
	h.images.block = true
	ctx, cancel := context.WithCancel(t.Context())
	pulled := make(chan error, 1)
	go func() { // ends by cancel
		_, err := h.image.PullImage(ctx, &runtime.PullImageRequest{Image: ref("a:1")})
		pulled <- err
	}()
	h.stop()
	_, err := stream.Recv()
	codeOf(t, err, codes.Unavailable, "crid is stopping")
	cancel() // the pull holds the end back for its grace
	<-pulled
	select {
	case err := <-h.served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(stopGrace + 5*time.Second):
		t.Fatal("Serve did not return")
	}
}

func TestTheEndDoesNotWaitForACallThatHeedsNothing(t *testing.T) {
	for name, gone := range map[string]bool{"its client waits": false, "its client is gone": true} {
		t.Run(name, func(t *testing.T) {
			h, _ := withContainer(t)
			h.server.grace = 100 * time.Millisecond
			begun, release := make(chan struct{}), make(chan struct{})
			defer close(release)
			h.containers.byID["c"].hook = func() { close(begun); <-release }
			go func() { // ends when the connection does
				_, _ = h.runtime.StartContainer(context.Background(), &runtime.StartContainerRequest{ContainerId: "c"})
			}()
			<-begun
			if gone {
				if err := h.conn.Close(); err != nil {
					t.Fatal(err)
				}
			}
			h.stop()
			select {
			case err := <-h.served:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("Serve did not return")
			}
			if log := h.log.String(); !strings.Contains(log, "calls=1") {
				t.Errorf("the log does not tell of the call:\n%s", log)
			}
		})
	}
}

// TestTheListOfRPCs calls everything and compares what answers Unimplemented with docs/rpcs.md.
func TestTheListOfRPCs(t *testing.T) {
	doc, err := os.ReadFile("../docs/rpcs.md")
	if err != nil {
		t.Fatal(err)
	}
	served, missing, ok := strings.Cut(string(doc), "## Not served yet")
	missing, own, also := strings.Cut(missing, "## crid's own")
	if !ok || !also {
		t.Fatal("docs/rpcs.md has no section \"Not served yet\", and \"crid's own\" behind it")
	}
	h := newHouse(t)
	if got, want := h.answering(t, admin.Admin_ServiceDesc), calls(own); !slices.Equal(got[0], sorted(want)) || len(got[1]) > 0 {
		t.Errorf("crid's own: got\n%v\ndocs/rpcs.md says\n%v", got, want)
	}
	want := [2][]string{calls(served), calls(missing)}
	got := h.answering(t, runtime.RuntimeService_ServiceDesc, runtime.ImageService_ServiceDesc)
	for i, what := range []string{"served", "not served"} {
		if !slices.Equal(got[i], sorted(want[i])) {
			t.Errorf("%s: got\n%v\ndocs/rpcs.md says\n%v", what, got[i], want[i])
		}
	}
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}

// answering calls everything that services have: what answers, and what answers Unimplemented.
func (h *house) answering(t *testing.T, services ...grpc.ServiceDesc) (got [2][]string) {
	t.Helper()
	for _, desc := range services {
		for _, m := range desc.Methods {
			i := h.lacks(t, desc.ServiceName, m.MethodName)
			got[i] = append(got[i], m.MethodName)
		}
		for _, s := range desc.Streams {
			i := h.lacks(t, desc.ServiceName, s.StreamName)
			got[i] = append(got[i], s.StreamName)
		}
	}
	return [2][]string{sorted(got[0]), sorted(got[1])}
}

// calls are the RPCs that a text has as list items or table rows: `Name` at the beginning of a line.
func calls(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)`").FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// lacks calls an RPC with an empty request, which has the same bytes whatever its type: 1 if it is not there.
// A stream that does not end at once is there, and so is a list that ends without an item.
func (h *house) lacks(t *testing.T, service, method string) int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := h.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/"+method)
	if err == nil {
		err = errors.Join(stream.SendMsg(&runtime.VersionRequest{}), stream.CloseSend())
	}
	if err != nil {
		t.Fatal(err)
	}
	if header, err := stream.Header(); err == nil && header != nil {
		return 0
	}
	err = stream.RecvMsg(&runtime.VersionResponse{})
	if err == io.EOF && !strings.HasPrefix(method, "Stream") && !strings.HasSuffix(method, "Images") {
		t.Errorf("%s ended without an answer", method)
	}
	if status.Code(err) == codes.Unimplemented {
		return 1
	}
	return 0
}
