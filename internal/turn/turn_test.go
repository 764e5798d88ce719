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
	s := &Stage{turns: make(chan struct{}, 2), patience: patience}
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
	if len(s.turns) != 0 {
		t.Errorf("%d turns were not given back", len(s.turns))
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
		for _, d := range took[hanging:] { // at worst they come behind all who hang, two of them at a time
			if d > hanging/2*patience+2*time.Second {
				t.Errorf("one that does not hang took %v", d)
			}
		}
	})
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	s := &Stage{turns: make(chan struct{}, 1), patience: time.Hour}
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
	if len(s.turns) != 0 {
		t.Error("the turn was not given back")
	}
}
