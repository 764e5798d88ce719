package storage

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// progressPeriod is how often somebody who watches a pull is told of it.
const progressPeriod = 100 * time.Millisecond

// LayerState is how far a layer of a pull is.
type LayerState string

// The states of a layer.
const (
	LayerWaiting LayerState = "waiting" // for its turn, or for another pull that fetches it
	LayerPulling LayerState = "pulling" // it is fetched and unpacked at the same time
	LayerPulled  LayerState = "pulled"  // it is verified and unpacked, and waits for those below it
	LayerStored  LayerState = "stored"  // it is in the store
	LayerReused  LayerState = "reused"  // it was in the store before
	LayerSaving  LayerState = "saving"  // it is written to an archive
	LayerSaved   LayerState = "saved"   // it is in the archive
)

// LayerProgress is how far one layer of a pull, a load or a save is.
type LayerProgress struct {
	Digest digest.Digest // of the blob, as the manifest names it
	Done   int64         // bytes of the blob that have come
	Total  int64         // bytes of the blob; -1 = unknown
	State  LayerState
}

// board is where a download, or who reads or writes an archive, writes how far it is, for all who wait for it.
type board struct {
	mu     sync.Mutex // guards layers; nothing is waited for under it
	layers []*meter   // in the order of the image, the lowest first
}

// meter is how far one layer is.
type meter struct {
	digest digest.Digest
	total  int64
	done   atomic.Int64
	state  atomic.Pointer[LayerState]
}

func newMeter(d digest.Digest, total int64) *meter {
	m := &meter{digest: d, total: total}
	m.set(LayerWaiting)
	return m
}

func (m *meter) set(s LayerState) { m.state.Store(&s) }

// show begins the pull of an image with these layers, perhaps anew.
func (b *board) show(layers []*meter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.layers = layers
}

// meters are those of the layers that are shown.
func (b *board) meters() []*meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.layers
}

// begin returns the meter of a blob of which reading begins, perhaps once more. A blob that is no layer has one that nobody
// looks at.
func (b *board) begin(d digest.Digest) *meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.layers {
		if m.digest == d && *m.state.Load() != LayerPulling {
			m.done.Store(0)
			m.set(LayerPulling)
			return m
		}
	}
	return newMeter(d, -1)
}

// settle says that all layers are in the store.
func (b *board) settle() {
	for _, m := range b.meters() {
		switch *m.state.Load() {
		case LayerWaiting:
			m.set(LayerReused)
		case LayerPulling:
			m.set(LayerStored)
		}
	}
}

// snapshot is nil as long as the layers are unknown.
func (b *board) snapshot() []LayerProgress {
	layers := b.meters()
	if layers == nil {
		return nil
	}
	out := make([]LayerProgress, 0, len(layers))
	for _, m := range layers {
		out = append(out, LayerProgress{Digest: m.digest, Done: m.done.Load(), Total: m.total, State: *m.state.Load()})
	}
	return out
}

// watch returns when done is closed or ctx has ended, and tells tell of what goes on until then.
func (b *board) watch(ctx context.Context, done <-chan struct{}, tell func([]LayerProgress)) error {
	if tell == nil {
		tell = func([]LayerProgress) {}
	}
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	var last []LayerProgress
	report := func() {
		if now := b.snapshot(); now != nil && !slices.Equal(now, last) {
			last = now
			tell(now)
		}
	}
	for {
		select {
		case <-done:
			report()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			report()
		}
	}
}
