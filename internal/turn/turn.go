// Package turn lets few at a time do what costs a processor: of a crowd that all fork at once each waits for all. It does
// not know what is done.
package turn

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// patience is how long a turn counts. Plugins and runtimes take a tenth of a second; who takes longer than this waits
// for something, and must not keep others from their turn.
const patience = 2 * time.Second

// Stage is one thing that few do at a time.
type Stage struct {
	turns    chan struct{} // holds a token for each turn that is taken
	patience time.Duration
}

// New returns a stage for n at a time for each processor.
func New(n int) *Stage {
	return &Stage{turns: make(chan struct{}, n*runtime.GOMAXPROCS(0)), patience: patience}
}

// Take waits for a turn until ctx ends. The turn is given back by done, which may be repeated, and by itself after two
// seconds: what hangs holds nobody.
func (s *Stage) Take(ctx context.Context) (done func(), err error) {
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
	}
	give := sync.OnceFunc(func() { <-s.turns })
	timer := time.AfterFunc(s.patience, give)
	return func() {
		timer.Stop()
		give()
	}, nil
}
