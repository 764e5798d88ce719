package sandbox

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

func closedNow(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestGate(t *testing.T) {
	var g gate
	ctx1, leave1, ok1 := g.enter(t.Context())
	_, leave2, ok2 := g.enter(t.Context())
	if !ok1 || !ok2 {
		t.Fatal("the zero gate is not open")
	}
	leave2()
	leave2()
	if ctx1.Err() != nil {
		t.Error("one who leaves cancels another")
	}
	empty, busy := g.close()
	if !busy || closedNow(empty) {
		t.Error("somebody is inside")
	}
	if !errors.Is(context.Cause(ctx1), errdef.WrongState) {
		t.Errorf("cause %v", context.Cause(ctx1))
	}
	inner, _, ok := g.enter(t.Context())
	if ok || inner != t.Context() {
		t.Error("a closed gate admits")
	}
	leave1()
	leave1()
	if again, busy := g.close(); busy || !closedNow(empty) || again != empty {
		t.Error("nobody is inside")
	}
}

func TestGateThatNobodyEntered(t *testing.T) {
	var g gate
	if empty, busy := g.close(); busy || !closedNow(empty) {
		t.Error("nobody is inside")
	}
}

func TestGateUnderLoad(t *testing.T) {
	var (
		g  gate
		wg sync.WaitGroup
	)
	for range 64 {
		wg.Go(func() {
			for {
				_, leave, ok := g.enter(context.Background())
				if !ok {
					return
				}
				leave()
			}
		})
	}
	empty, _ := g.close()
	<-empty
	wg.Wait()
}
