package storage

import (
	"io"
	"sync"
)

const (
	aheadPiece  = 1 << 20 // bytes of a piece
	aheadPieces = 4       // of one layer that is being unpacked
)

// ahead reads from something before it is wanted, on another processor. It is read by one, and closed by the same.
type ahead struct {
	store *sync.Pool // of pieces
	from  io.ReadCloser
	free  chan []byte
	full  chan []byte   // closed at the end
	done  chan struct{} // closed when no more is wanted
	err   error         // why it ends, once full is closed
	piece []byte
	left  []byte // of piece
	ended bool
}

func readAhead(from io.ReadCloser, store *sync.Pool) *ahead {
	a := &ahead{store: store, from: from, free: make(chan []byte, aheadPieces), full: make(chan []byte, aheadPieces), done: make(chan struct{})}
	for range aheadPieces {
		a.free <- nil // which gets its bytes when it is needed: most layers are small
	}
	go a.run() // ends with what is read, or at Close
	return a
}

func (a *ahead) run() {
	defer close(a.full)
	for a.err == nil {
		var piece []byte
		select {
		case piece = <-a.free:
		case <-a.done:
			return
		}
		if piece == nil {
			piece = a.newPiece()
		}
		n := 0
		for n < len(piece) && a.err == nil && !a.isDone() {
			var more int
			more, a.err = a.from.Read(piece[n:])
			n += more
		}
		a.full <- piece[:n] // never blocks: there are no more pieces than places
	}
}

func (a *ahead) isDone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (a *ahead) newPiece() []byte {
	if had, ok := a.store.Get().(*[aheadPiece]byte); ok {
		return had[:]
	}
	return make([]byte, aheadPiece)
}

func (a *ahead) giveBack(piece []byte) {
	if cap(piece) > 0 {
		a.store.Put((*[aheadPiece]byte)(piece[:aheadPiece]))
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.piece != nil {
			a.free <- a.piece[:aheadPiece] // never blocks
			a.piece = nil
		}
		if a.ended {
			return 0, a.err
		}
		a.piece = <-a.full
		a.left = a.piece
		a.ended = a.piece == nil
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// Close waits until nothing is read any more.
func (a *ahead) Close() error {
	close(a.done)
	for piece := range a.full {
		a.giveBack(piece)
	}
	for len(a.free) > 0 {
		a.giveBack(<-a.free)
	}
	a.giveBack(a.piece)
	return a.from.Close()
}
