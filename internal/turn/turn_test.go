package turn

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// crowd has each of n take a turn of a stage with room for two, for as long as each takes. It tells how many had one
// at the same time, and when each was done.
func crowd(t *testing.T, n int, takes func(i int) time.Duration) (most int32, took []time.Duration) {
	t.Helper()
	s := newStage(2, patience)
	began := time.Now()
	took = make([]time.Duration, n)
	var now, peak atomic.Int32
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { // ends with its turn
			done, err := s.Take(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			peak.Store(max(peak.Load(), now.Add(1)))
			<-time.After(takes(i))
			now.Add(-1)
			done()
			done()
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	if n := len(s.taken) + len(s.waiting); n != 0 || s.late != 0 {
		t.Errorf("%d turns were not given back", n)
	}
	return peak.Load(), took
}

func TestTwoAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		most, took := crowd(t, 10, func(int) time.Duration { return time.Second })
		if last := slices.Max(took); most != 2 || last != 5*time.Second {
			t.Errorf("%d at a time, %v in all", most, last)
		}
	})
}

func TestWhatHangsHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const hanging = 6
		_, took := crowd(t, 10, func(i int) time.Duration {
			if i < hanging {
				return time.Hour
			}
			return time.Second
		})
		for _, d := range took[hanging:] { // at worst they come behind all who hang, and then there is one turn for them
			if d > (hanging-1)*patience+4*time.Second {
				t.Errorf("one that does not hang took %v", d)
			}
		}
	})
}

// TestWhatIsSlowIsNotMadeSlower has each of a crowd take longer the more there are at a time.
func TestWhatIsSlowIsNotMadeSlower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, takes := range []time.Duration{3 * time.Second, 5 * time.Second, 20 * time.Second} {
			most, _ := crowd(t, 100, func(int) time.Duration { return takes })
			if bound := 2 + int32((takes+patience-1)/patience); most > bound {
				t.Errorf("%d at a time when each takes %v; want %d at most", most, takes, bound)
			}
		}
	})
}

// TestWhatHangsIsMadeUpForAtOnce lets many pass beside one that hangs, for which there is a turn again.
func TestWhatHangsIsMadeUpForAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, took := crowd(t, 101, func(i int) time.Duration {
			if i == 0 {
				return time.Hour
			}
			return time.Second
		})
		if last := slices.Max(took[1:]); last > 55*time.Second {
			t.Errorf("a hundred that take a second, two at a time, took %v", last)
		}
	})
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	s := newStage(1, time.Hour)
	done, err := s.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the caller has left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := s.Take(ctx); !errors.Is(err, gone) {
		t.Error(err)
	}
	done()
	if len(s.taken) != 0 || len(s.waiting) != 0 {
		t.Error("the turn was not given back")
	}
}
