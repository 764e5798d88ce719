package server

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/event"
)

// FuzzStreams sends bytes as the request of any call that answers with a stream, of events or of lists. Whatever they are,
// the stream ends with the client, and an error has a code with a meaning.
func FuzzStreams(f *testing.F) {
	for i := range streamCalls() {
		for _, raw := range []string{"", "\x0a\x03\x0a\x01c", "\x0a\x00", "\xf8\x07\x01", "\x0a\xff", "\x08"} {
			f.Add(uint8(i), []byte(raw))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		calls := streamCalls()
		c := calls[int(which)%len(calls)]
		h := inhabited()
		var service any = &runtimeService{Server: h.server}
		if c.image {
			service = &imageService{Server: h.server}
		}
		ctx, leave := context.WithCancel(t.Context())
		s := &playedStream{ctx: ctx, raw: raw, leave: leave, events: h.events}
		switch err := c.stream.Handler(service, s); status.Code(err) {
		case codes.OK, codes.Canceled, codes.Unimplemented, codes.InvalidArgument:
		default:
			if !s.malformed && ctx.Err() == nil {
				t.Errorf("%s of %q: %v", c.stream.StreamName, raw, err)
			}
		}
		leave()
	})
}

type streamCall struct {
	image  bool
	stream grpc.StreamDesc
}

func streamCalls() []streamCall {
	var all []streamCall
	for _, s := range runtime.RuntimeService_ServiceDesc.Streams {
		all = append(all, streamCall{false, s})
	}
	for _, s := range runtime.ImageService_ServiceDesc.Streams {
		all = append(all, streamCall{true, s})
	}
	return all
}

// playedStream is a client that sends one message, and leaves with the first answer. Something happens as soon as it
// listens.
type playedStream struct {
	ctx       context.Context
	leave     func()
	raw       []byte
	malformed bool
	events    *event.Bus[event.Event]
}

func (s *playedStream) Context() context.Context    { return s.ctx }
func (s *playedStream) SetHeader(metadata.MD) error { return nil }
func (s *playedStream) SetTrailer(metadata.MD)      {}
func (s *playedStream) SendHeader(metadata.MD) error {
	s.events.Publish(event.Event{Kind: event.Started, ContainerID: "c", PodID: "p", At: time.Unix(2, 0)})
	return nil
}

func (s *playedStream) RecvMsg(into any) error {
	err := proto.Unmarshal(s.raw, into.(proto.Message))
	s.malformed = err != nil
	return err
}

func (s *playedStream) SendMsg(m any) error {
	_, err := proto.Marshal(m.(proto.Message))
	s.leave()
	return err
}
