// Package turn lets few at a time do what costs a processor: of a crowd that all fork at once each waits for all. It does
// not know what is done.
package turn

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// patience is how long a turn counts in full. Plugins and runtimes take a tenth of a second; who takes longer than this
// waits for something, and must not keep others from their turn, or the machine is too busy, and more at a time would make
// all of them slower.
const patience = 2 * time.Second

// Stage is one thing that few do at a time.
type Stage struct {
	size     int
	patience time.Duration

	mu      sync.Mutex // guards the fields below; nothing is waited for under it
	taken   []*turn    // in the order in which they were taken
	late    int        // of them, those that no longer count
	waiting []*turn    // in the order in which they get their turn
	last    time.Time  // when turns were last found to be late
	timer   *time.Timer
}

// turn is one that is taken, or waited for.
type turn struct {
	since time.Time
	late  bool
	ready chan struct{} // closed when it is taken
}

// New returns a stage for n at a time for each processor.
func New(n int) *Stage {
	return newStage(n*runtime.GOMAXPROCS(0), patience)
}

func newStage(size int, patience time.Duration) *Stage {
	return &Stage{size: size, patience: patience}
}

// Take waits for a turn until ctx ends. The turn is given back by done, which may be repeated. What hangs holds nobody:
// while somebody waits, a turn that lasts for more than two seconds counts no longer. But it may only be slow, as all are
// on a machine that is overloaded, and then more at a time make it worse: of the turns that last, an eighth of what the
// stage has room for is let off every two seconds.
func (s *Stage) Take(ctx context.Context) (done func(), err error) {
	t := &turn{ready: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, t)
	s.admit()
	s.mu.Unlock()
	select {
	case <-t.ready:
	case <-ctx.Done():
		s.leave(t)
		return nil, fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
	}
	return func() { s.leave(t) }, nil
}

// leave gives a turn back, or up.
func (s *Stage) leave(t *turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.Index(s.waiting, t); at >= 0 {
		s.waiting = slices.Delete(s.waiting, at, at+1)
	}
	if at := slices.Index(s.taken, t); at >= 0 {
		s.taken = slices.Delete(s.taken, at, at+1)
		if t.late {
			s.late--
		}
	}
	s.admit()
}

// admit lets in who may, and sees to the next look when somebody has to wait. The caller holds mu.
func (s *Stage) admit() {
	now := time.Now()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.enter(now)
	if len(s.waiting) > 0 && !now.Before(s.due()) {
		s.letOff(now)
		s.enter(now)
	}
	if len(s.waiting) > 0 {
		s.timer = time.AfterFunc(s.due().Sub(now), func() { // ends by itself
			s.mu.Lock()
			defer s.mu.Unlock()
			s.admit()
		})
	}
}

func (s *Stage) enter(now time.Time) {
	for len(s.waiting) > 0 && len(s.taken)-s.late < s.size {
		next := s.waiting[0]
		next.since = now
		close(next.ready)
		s.waiting, s.taken = slices.Delete(s.waiting, 0, 1), append(s.taken, next)
	}
}

// due is when the next turn is late. The caller holds mu, and the stage has no room: there is one that is not late.
func (s *Stage) due() time.Time {
	oldest := s.taken[slices.IndexFunc(s.taken, func(t *turn) bool { return !t.late })]
	due := oldest.since.Add(s.patience)
	if next := s.last.Add(s.patience); next.After(due) {
		return next
	}
	return due
}

// letOff finds turns to be late, the oldest first.
func (s *Stage) letOff(now time.Time) {
	s.last = now
	left := max(1, s.size/8)
	for _, t := range s.taken {
		if left > 0 && !t.late && now.Sub(t.since) >= s.patience {
			t.late = true
			s.late++
			left--
		}
	}
}
