package stats

import (
	"context"
	"errors"
	"log/slog"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

const (
	// layerAge is how old a measurement may be that is answered without a thought. The next is begun then.
	layerAge = time.Minute
	// layerPatience is how long a call waits for measurements, of however many containers: for the first ones, or
	// those after a long silence.
	layerPatience = 2 * time.Second
	// layerTurns is how many measurements run at a time: one that takes long must not hold all others.
	layerTurns = 2
	// layerLimit bounds one measurement.
	layerLimit = 10 * time.Minute
)

// layers measures what containers have written, few at a time and only when somebody asks.
type layers struct {
	known   memory[*layer]
	measure func(ctx context.Context, id string) (Layer, error)
	log     *slog.Logger
	turn    chan struct{} // holds those whose turn it is
	life    context.Context
	close   context.CancelFunc
}

func newLayers(deps Deps) *layers {
	l := &layers{measure: deps.Layer, log: deps.Log, turn: make(chan struct{}, layerTurns)}
	l.life, l.close = context.WithCancel(context.Background())
	return l
}

// layer is the last measurement of one container, and the next. A value is never edited.
type layer struct {
	usage *cri.FilesystemUsage // nil = not measured yet
	at    time.Time
	next  chan struct{} // closed when the measurement under way has ended; nil = none is
}

// get returns the last measurement, and begins a new one when that is old; it waits, as long as ctx lets it, when
// there is none or a very old one. nil: there is still none.
func (l *layers) get(ctx context.Context, id string) *cri.FilesystemUsage {
	now := l.ask(id)
	if now.next == nil || now.usage != nil && time.Since(now.at) < 2*layerAge {
		return now.usage
	}
	select {
	case <-now.next:
	case <-ctx.Done():
	}
	return l.ask(id).usage
}

// ask returns what is known, and sees to it that it is measured again in time.
func (l *layers) ask(id string) *layer {
	return l.known.update(id, func(old *layer, known bool) *layer {
		if known && (old.next != nil || time.Since(old.at) < layerAge) {
			return old
		}
		fresh := layer{next: make(chan struct{})}
		if known {
			fresh.usage, fresh.at = old.usage, old.at
		}
		go l.run(id, fresh) // ends with the measurement, which is bounded, or with close
		return &fresh
	})
}

// run measures when its turn comes.
func (l *layers) run(id string, before layer) {
	defer close(before.next)
	ctx, cancel := context.WithTimeout(l.life, layerLimit)
	defer cancel()
	after := layer{usage: before.usage, at: time.Now()}
	select {
	case l.turn <- struct{}{}:
		usage, err := l.measure(ctx, id)
		<-l.turn
		if err == nil {
			after.at = time.Now()
			after.usage = toFilesystem(after.at, usage)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errdef.NotFound) {
			l.log.Warn("cannot measure what a container has written", "container", id, "err", err)
		}
	case <-ctx.Done():
	}
	l.known.update(id, func(*layer, bool) *layer { return &after })
}

func toFilesystem(at time.Time, u Layer) *cri.FilesystemUsage {
	return &cri.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &cri.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  value(u.Bytes),
		InodesUsed: value(u.Inodes),
	}
}
