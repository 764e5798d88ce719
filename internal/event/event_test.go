package event

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestReadersSeeEverythingInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := New[int](8)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		bus.Publish(-1) // before anybody listens: nobody's
		results := make(chan []int, 3)
		for range cap(results) {
			sub := bus.Subscribe(ctx)
			go func() { // ends with ctx
				var got []int
				for v, err := range sub {
					if err != nil {
						t.Error(err)
					}
					got = append(got, v)
				}
				results <- got
			}()
		}
		for i := range 100 {
			bus.Publish(i)
			synctest.Wait()
		}
		cancel()
		for range cap(results) {
			got := <-results
			if len(got) != 100 || got[0] != 0 || got[99] != 99 {
				t.Errorf("got %d events: %v", len(got), got)
			}
		}
	})
}

func TestASlowReaderIsTold(t *testing.T) {
	bus := New[int](4)
	sub := bus.Subscribe(t.Context())
	for i := range 5 {
		bus.Publish(i)
	}
	var last error
	n := 0
	for _, err := range sub {
		n, last = n+1, err
	}
	if n != 1 || !errors.Is(last, ErrLagged) {
		t.Errorf("%d events, last error %v; want one, ErrLagged", n, last)
	}
}

func TestARingFullIsNotLagging(t *testing.T) {
	bus := New[int](4)
	sub := bus.Subscribe(t.Context())
	for i := range 4 {
		bus.Publish(i)
	}
	want := 0
	for v, err := range sub {
		if err != nil || v != want {
			t.Fatalf("got %d, %v; want %d", v, err, want)
		}
		if want++; want == 4 {
			break
		}
	}
}

func TestABusCounts(t *testing.T) {
	bus := New[int](2)
	slow := bus.Subscribe(t.Context())
	for i := range 3 {
		bus.Publish(i)
	}
	if c := bus.Counts(); c != (Counts{Published: 3}) {
		t.Errorf("before anybody reads: %+v", c)
	}
	for _, err := range slow {
		if c := bus.Counts(); !errors.Is(err, ErrLagged) || c != (Counts{Published: 3, Lagged: 1, Readers: 1}) {
			t.Errorf("%v: %+v", err, c)
		}
	}
	if c := bus.Counts(); c != (Counts{Published: 3, Lagged: 1}) {
		t.Errorf("when nobody reads any more: %+v", c)
	}
}
