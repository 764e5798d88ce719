package storage

import (
	"context"
	"fmt"
	"runtime/metrics"
	"time"

	"github.com/crid/crid/internal/errdef"
)

const (
	// pullMemory is how much crid's heap may grow while a pull is under way, in bytes. A pull needs tens of MiB.
	pullMemory = 512 << 20
	// pullMemoryLook is how often that is looked at. A network fills a few dozen MiB in that time.
	pullMemoryLook = 50 * time.Millisecond
)

// errMemory is why a pull was ended whose registry answers without end.
var errMemory = fmt.Errorf("crid's memory grew too much while it was pulled: does its registry answer without end? %w", errdef.Exhausted)

// withinMemory returns a context that ends when crid's heap has grown by more than so many bytes: containers/image reads the whole body
// of an answer that is an error, however long, and takes no HTTP transport that would bound it. Of several pulls at a
// time nobody can tell which it is: all end, and the others will be tried again. stop must be called.
func withinMemory(ctx context.Context, growth uint64) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	limit := heap() + growth
	go func() { // ends with ctx
		ticker := time.NewTicker(pullMemoryLook)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if heap() > limit {
					cancel(errMemory)
				}
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// heap is how many bytes the objects of the heap take.
func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
