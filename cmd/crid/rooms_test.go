package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestARoomThatDoesNotEndHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rooms{}
		release := make(chan struct{})
		ended := false
		r.onClose("first", func(context.Context) error { ended = true; return nil })
		r.onClose("stuck", func(context.Context) error { <-release; return nil })
		ctx, cancel := context.WithTimeout(t.Context(), closeGrace)
		defer cancel()
		began := time.Now()
		err := r.close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "close stuck") {
			t.Errorf("got %v; want one that names the stuck room", err)
		}
		if !ended || time.Since(began) != closeGrace+lastWord {
			t.Errorf("the other room ended: %v, after %v", ended, time.Since(began))
		}
		close(release)
	})
}
