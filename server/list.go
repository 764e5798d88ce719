package server

import (
	"bytes"
	"iter"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// chunkSize bounds a message of a stream, in bytes, but for one item that is larger by itself: gRPC's clients take
	// 4 MiB where nobody tells them otherwise.
	chunkSize = 1 << 20
	// maxKept bounds what is kept encoded of one object, in bytes; what is larger is encoded each time.
	maxKept = 16 << 10
)

// Listed is something that lists tell of.
type Listed interface {
	Memo() *atomic.Value // the server's, and goes with the object
}

// items are the elements of a list as they go over the wire: field 1 of the response, as it is in every list of the
// CRI, repeated.
type items iter.Seq2[[]byte, error]

// encoded is an item that was encoded when its object was as the stamp says.
type encoded[S comparable] struct {
	stamp S
	raw   []byte
}

// encodeOnce returns the item that build makes, from the memo if that has it of the same stamp. What it returns must
// not be changed.
func encodeOnce[S comparable](memo *atomic.Value, stamp S, build func() proto.Message) ([]byte, error) {
	if kept, ok := memo.Load().(*encoded[S]); ok && kept.stamp == stamp {
		return kept.raw, nil
	}
	raw, err := encode(build())
	if err == nil && len(raw) <= maxKept {
		memo.Store(&encoded[S]{stamp, raw})
	}
	return raw, err
}

func encode(m proto.Message) ([]byte, error) {
	size := proto.Size(m)
	raw := make([]byte, 0, size+2*protowire.SizeVarint(uint64(size)))
	raw = protowire.AppendTag(raw, 1, protowire.BytesType)
	raw = protowire.AppendVarint(raw, uint64(size))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(raw, m)
}

// encodeEach encodes messages one after the other, as they are asked for.
func encodeEach[M proto.Message](list []M) items {
	return func(yield func([]byte, error) bool) {
		for _, m := range list {
			if !yield(encode(m)) {
				return
			}
		}
	}
}

// fillWith makes items the content of an empty response. They go out as they are: to the encoder they are fields that it
// does not know, and only whoever decodes the response sees a list.
func fillWith[M proto.Message](response M, raw []byte) M {
	response.ProtoReflect().SetUnknown(raw)
	return response
}

// whole is a response with all items in it.
func whole[M proto.Message](response M, all items) (M, error) {
	var list [][]byte
	for raw, err := range all {
		if err != nil {
			return response, err
		}
		list = append(list, raw)
	}
	return fillWith(response, bytes.Join(list, nil)), nil
}

// inChunks sends items, several with each message; no message is empty.
func inChunks[R any, M interface {
	*R
	proto.Message
}](stream grpc.ServerStreamingServer[R], all items) error {
	var chunk []byte
	for raw, err := range all {
		if err != nil {
			return err
		}
		if len(chunk) > 0 && len(chunk)+len(raw) > chunkSize {
			if err := stream.Send(fillWith(M(new(R)), chunk)); err != nil {
				return err
			}
			chunk = nil
		}
		chunk = append(chunk, raw...)
	}
	if len(chunk) == 0 {
		return nil
	}
	return stream.Send(fillWith(M(new(R)), chunk))
}
