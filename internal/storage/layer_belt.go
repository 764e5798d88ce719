package storage

import (
	"context"
	"errors"
	"io"
)

const (
	beltPieces = 6         // of one layer that is being unpacked
	beltPiece  = 256 << 10 // bytes of a piece
)

// belt carries a layer's archive, in pieces, from who unpacks its compression to who looks at it, and on to who makes files
// of it. All three work at the same time, on different pieces; a piece is copied by nobody. When one fails ctx ends.
type belt struct {
	free   chan []byte
	plain  chan []byte // not looked at yet; closed at the end
	looked chan []byte // closed at the end
}

func newBelt() *belt {
	b := &belt{free: make(chan []byte, beltPieces), plain: make(chan []byte, beltPieces), looked: make(chan []byte, beltPieces)}
	for range beltPieces {
		b.free <- make([]byte, beltPiece)
	}
	return b
}

// fill puts all that from has on the belt.
func (b *belt) fill(ctx context.Context, from io.Reader) error {
	for {
		piece, err := take(ctx, b.free)
		if err != nil {
			return err
		}
		piece = piece[:beltPiece]
		n := 0
		for n < len(piece) && err == nil {
			var more int
			more, err = from.Read(piece[n:])
			n += more
		}
		if n > 0 {
			b.plain <- piece[:n] // never blocks: there are no more pieces than places
		}
		if errors.Is(err, io.EOF) {
			close(b.plain)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take waits for a piece. It returns none when there will be no more.
func take(ctx context.Context, from <-chan []byte) ([]byte, error) {
	select {
	case piece := <-from:
		return piece, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// look reads what is on the belt, and hands a piece on when the next one is wanted: by then it has been looked at.
func (b *belt) look(ctx context.Context, sum io.Writer) *beltReader {
	return &beltReader{ctx: ctx, from: b.plain, to: b.looked, sum: sum}
}

// unpack reads what has been looked at.
func (b *belt) unpack(ctx context.Context) *beltReader {
	return &beltReader{ctx: ctx, from: b.looked, to: b.free}
}

type beltReader struct {
	ctx   context.Context // of one layer: a reader has none to pass on
	from  <-chan []byte
	to    chan<- []byte
	sum   io.Writer // gets all that passes; may be nil
	piece []byte
	left  []byte // of piece
}

func (r *beltReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		r.pass()
		piece, err := take(r.ctx, r.from)
		if err != nil {
			return 0, err
		}
		if piece == nil {
			return 0, io.EOF
		}
		if r.sum != nil {
			if _, err := r.sum.Write(piece); err != nil {
				return 0, err
			}
		}
		r.piece, r.left = piece, piece
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// pass hands on the piece that has been read.
func (r *beltReader) pass() {
	if r.piece != nil {
		r.to <- r.piece // never blocks
		r.piece = nil
	}
}
