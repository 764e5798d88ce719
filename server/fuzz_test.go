package server

import (
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/admin"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/storage"
)

// FuzzRequests sends bytes as the request of any call, the way gRPC does once it has a whole message. Whatever they are, there is no panic, an error has a code with a meaning, and one that blames the request names a field of it.
func FuzzRequests(f *testing.F) {
	calls := allCalls()
	for i, c := range calls {
		for _, depth := range []int{1, 2, 6} {
			raw, err := proto.Marshal(c.filled(depth))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(i), raw)
		}
	}
	for _, m := range []proto.Message{
		&runtime.RunPodSandboxRequest{Config: podConfig("a")},
		&runtime.CreateContainerRequest{PodSandboxId: "p", Config: containerConfig("b"), SandboxConfig: podConfig("p")},
		&runtime.UpdateContainerResourcesRequest{ContainerId: "c", Linux: &runtime.LinuxContainerResources{CpuShares: 2}},
		&runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "i"}, Auth: &runtime.AuthConfig{Auth: "YTpi"}},
		&runtime.PortForwardRequest{PodSandboxId: "p", Port: []int32{80}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		i := slices.IndexFunc(calls, func(c rpc) bool { return c.request == m.ProtoReflect().Descriptor().FullName() })
		f.Add(uint8(i), raw)
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		calls[int(which)%len(calls)].send(t, raw)
	})
}

// rpc is a method of one of the two services.
type rpc struct {
	serves  func(h *house) any // the service that it is of
	name    string
	method  grpc.MethodDesc // zero for one that answers with a stream
	stream  grpc.StreamDesc // zero for one that does not
	request protoreflect.FullName
	fields  *regexp.Regexp // finds the name of a field of the request
	example proto.Message
}

func allCalls() []rpc {
	var calls []rpc
	for _, service := range []struct {
		desc   grpc.ServiceDesc
		serves func(h *house) any
	}{
		{runtime.RuntimeService_ServiceDesc, func(h *house) any { return &runtimeService{Server: h.server} }},
		{runtime.ImageService_ServiceDesc, func(h *house) any { return &imageService{Server: h.server} }},
		{admin.Admin_ServiceDesc, func(h *house) any { return newAdminService(h.server) }},
	} {
		for _, m := range service.desc.Methods {
			calls = append(calls, rpc{serves: service.serves, name: m.MethodName, method: m}.explore())
		}
		for _, s := range service.desc.Streams {
			calls = append(calls, rpc{serves: service.serves, name: s.StreamName, stream: s}.explore())
		}
	}
	return calls
}

// explore learns what the request looks like.
func (c rpc) explore() rpc {
	// The handler decodes into the request's type: this is how it tells which.
	_, _ = c.call(context.Background(), furnish(), func(request any) error {
		c.example = request.(proto.Message)
		return errdef.Invalid
	})
	d := c.example.ProtoReflect().Descriptor()
	c.request = d.FullName()
	names := map[string]bool{}
	fieldNames(d, names)
	c.fields = regexp.MustCompile(`\b(` + strings.Join(slices.Sorted(maps.Keys(names)), "|") + `)\b`)
	return c
}

// call sends what decode makes the request, and returns the answers.
func (c rpc) call(ctx context.Context, h *house, decode func(any) error) ([]any, error) {
	if c.stream.Handler == nil {
		answer, err := c.method.Handler(c.serves(h), ctx, decode, h.server.gate.unary)
		return []any{answer}, err
	}
	s := &heard{ctx: ctx, decode: decode}
	err := h.server.gate.stream(c.serves(h), s, &grpc.StreamServerInfo{FullMethod: "/x/" + c.name}, c.stream.Handler)
	return s.said, err
}

// heard is a stream that keeps what it is sent.
type heard struct {
	grpc.ServerStream // nil: nothing else may be asked of it
	ctx               context.Context
	decode            func(any) error
	said              []any
	had               bool // its one message
}

func (h *heard) Context() context.Context { return h.ctx }

// RecvMsg gives one message.
func (h *heard) RecvMsg(m any) error {
	if h.had {
		return io.EOF
	}
	h.had = true
	return h.decode(m)
}

func (h *heard) SendMsg(m any) error          { h.said = append(h.said, m); return nil }
func (h *heard) SendHeader(metadata.MD) error { return nil }

// fieldNames collects the names of all fields at any depth.
func fieldNames(d protoreflect.MessageDescriptor, into map[string]bool) {
	for i := range d.Fields().Len() {
		field := d.Fields().Get(i)
		known := into[string(field.Name())]
		into[string(field.Name())] = true
		if field.Message() != nil && !known {
			fieldNames(field.Message(), into)
		}
	}
}

// filled is a request with something in every field down to depth.
func (c rpc) filled(depth int) proto.Message {
	m := c.example.ProtoReflect().New()
	fill(m, depth)
	return m.Interface()
}

func fill(m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		switch {
		case field.Message() != nil && !field.IsMap() && depth == 0:
		case field.IsMap():
			m.Mutable(field).Map().Set(protoreflect.ValueOfString("k").MapKey(), scalar(field.MapValue()))
		case field.IsList() && field.Message() != nil:
			fill(m.Mutable(field).List().AppendMutable().Message(), depth-1)
		case field.IsList():
			m.Mutable(field).List().Append(scalar(field))
		case field.Message() != nil:
			fill(m.Mutable(field).Message(), depth-1)
		default:
			m.Set(field, scalar(field))
		}
	}
}

// scalar is a value that says something to the fakes where one can.
func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		known := map[protoreflect.Name]string{
			"pod_sandbox_id": "p", "container_id": "c", "image": "i", "runtime_handler": "crun", "container_path": "/in",
			"host_path": "/on", "working_dir": "/", "protocol": "tcp", "log_directory": "/var/log/pods/p", "host_ip": "::1",
		}
		if v, ok := known[f.Name()]; ok {
			return protoreflect.ValueOfString(v)
		}
		return protoreflect.ValueOfString("a")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("b"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	}
	panic(fmt.Sprintf("%s is of kind %s", f.FullName(), f.Kind()))
}

// inhabited is a house with a pod, a running container and an image.
func inhabited() *house {
	h := furnish()
	h.pods.byID["p"] = &fakePod{id: "p", config: podConfig("p"), handler: "crun",
		status: sandbox.Status{State: sandbox.Ready, CreatedAt: time.Unix(1, 0)}}
	c := &fakeContainer{id: "c", pod: "p", config: containerConfig("c")}
	c.status.Life = container.Life{State: container.Running, CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0)}
	h.containers.byID["c"] = c
	h.images.images = []storage.Image{{ID: "i", RepoTags: []string{"i"}, Config: imgspec.ImageConfig{User: "1:2"}}}
	return h
}

func (c rpc) send(t *testing.T, raw []byte) {
	t.Helper()
	h := inhabited()
	var request proto.Message
	malformed := false
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if endless := c.name == "GetContainerEvents"; endless {
		cancel()
	}
	answers, err := c.call(ctx, h, func(into any) error {
		request = into.(proto.Message)
		err := proto.Unmarshal(raw, request)
		malformed = err != nil
		return err
	})
	if malformed || status.Code(err) == codes.Canceled && ctx.Err() != nil {
		return // gRPC's to refuse; of the client's own doing
	}
	if err != nil {
		c.judge(t, request, err)
		return
	}
	for _, answer := range answers {
		if m, ok := answer.(proto.Message); !ok {
			t.Errorf("%s answers with %T", c.name, answer)
		} else if raw, err := proto.Marshal(m); err != nil || c.stream.Handler != nil && len(raw) == 0 {
			t.Errorf("%s answers with what cannot be sent, or an empty message: %v", c.name, err)
		}
	}
}

// judge looks at what a client is told.
func (c rpc) judge(t *testing.T, request proto.Message, err error) {
	t.Helper()
	said := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.InvalidArgument:
		if !c.fields.MatchString(said) {
			t.Errorf("%s of %v: %v names no field", c.name, request, err)
		}
	case codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented:
	case codes.Unknown:
		if !slices.ContainsFunc(prefixed, func(kind error) bool { return strings.HasPrefix(said, kind.Error()) }) {
			t.Errorf("%s of %v: %v has no kind", c.name, request, err)
		}
	default:
		t.Errorf("%s of %v: %v", c.name, request, err)
	}
}
