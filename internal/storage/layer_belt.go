package storage

import (
	"context"
	"errors"
	"io"
	"sync"
)

const (
	beltPiece  = 1 << 20 // bytes of a piece
	beltPieces = 12      // of one layer that is being unpacked
	// beltBatch is how many pieces are handed at a time to who makes files. It has a thread of its own, and on a busy machine
	// each turn that it gets costs the others a wait for a processor.
	beltBatch = 5
)

// belt carries a layer's archive, in pieces, from who unpacks its compression to who looks at it, and on to who makes files
// of it. All three work at the same time, on different pieces; a piece is copied by nobody. When one fails ctx ends.
type belt struct {
	store  *sync.Pool // of pieces that no belt has
	free   chan []byte
	plain  chan []byte   // not looked at yet; closed at the end
	looked chan [][]byte // closed at the end
}

func newBelt(store *sync.Pool) *belt {
	b := &belt{store: store, free: make(chan []byte, beltPieces), plain: make(chan []byte, beltPieces), looked: make(chan [][]byte, beltPieces)}
	for range beltPieces {
		b.free <- []byte{} // which gets its bytes when it is needed: most layers are small
	}
	return b
}

func (b *belt) newPiece() []byte {
	if had, ok := b.store.Get().(*[beltPiece]byte); ok {
		return had[:]
	}
	return make([]byte, beltPiece)
}

// clear gives back what lies free, when nobody works at the belt any more.
func (b *belt) clear() {
	for len(b.free) > 0 {
		if piece := <-b.free; cap(piece) > 0 {
			b.store.Put((*[beltPiece]byte)(piece[:beltPiece]))
		}
	}
}

// fill puts all that from has on the belt.
func (b *belt) fill(ctx context.Context, from io.Reader) error {
	for {
		piece, err := take(ctx, b.free)
		if err != nil {
			return err
		}
		if cap(piece) == 0 {
			piece = b.newPiece()
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

// take waits for something on the belt. It returns nothing when there will be no more.
func take[T any](ctx context.Context, from <-chan T) (T, error) {
	select {
	case t := <-from:
		return t, nil
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// lookout reads what is on the belt, and hands a piece on when the next one is wanted: by then it has been looked at.
type lookout struct {
	ctx   context.Context // of one layer: a reader has none to pass on
	belt  *belt
	sum   io.Writer // gets all that passes
	batch [][]byte
	piece []byte
	left  []byte // of piece
}

func (l *lookout) Read(p []byte) (int, error) {
	for len(l.left) == 0 {
		l.pass()
		piece, err := take(l.ctx, l.belt.plain)
		if err != nil {
			return 0, err
		}
		if piece == nil {
			return 0, io.EOF
		}
		if _, err := l.sum.Write(piece); err != nil {
			return 0, err
		}
		l.piece, l.left = piece, piece
	}
	n := copy(p, l.left)
	l.left = l.left[n:]
	return n, nil
}

// pass hands on the piece that has been read.
func (l *lookout) pass() {
	if l.piece != nil {
		l.batch, l.piece = append(l.batch, l.piece), nil
	}
	if len(l.batch) == beltBatch {
		l.flush()
	}
}

func (l *lookout) flush() {
	if len(l.batch) > 0 {
		l.belt.looked <- l.batch // never blocks
		l.batch = nil
	}
}

// end hands on all that has been read.
func (l *lookout) end() {
	l.pass()
	l.flush()
	close(l.belt.looked)
}

// unpacker reads what has been looked at.
type unpacker struct {
	ctx   context.Context // of one layer: a reader has none to pass on
	belt  *belt
	batch [][]byte
	left  []byte // of the first piece of batch
}

func (u *unpacker) Read(p []byte) (int, error) {
	for len(u.left) == 0 {
		if len(u.batch) > 0 {
			u.belt.free <- u.batch[0] // never blocks
			u.batch = u.batch[1:]
		}
		if len(u.batch) == 0 {
			batch, err := take(u.ctx, u.belt.looked)
			if err != nil {
				return 0, err
			}
			if batch == nil {
				return 0, io.EOF
			}
			u.batch = batch
		}
		u.left = u.batch[0]
	}
	n := copy(p, u.left)
	u.left = u.left[n:]
	return n, nil
}
