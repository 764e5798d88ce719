package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestARoomThatDoesNotEndHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &rooms{observers: observers{log: slog.New(slog.NewTextHandler(&log, nil))}}
		release := make(chan struct{})
		ended := false
		r.onClose("first", func(context.Context) error { ended = true; return nil })
		r.onClose("stuck", func(context.Context) error { <-release; return nil })
		r.onClose("slow", func(context.Context) error { <-time.After(closeGrace / 2); return nil })
		r.onClose("broken", func(context.Context) error { return errors.New("no") })
		ctx, cancel := context.WithTimeout(t.Context(), closeGrace)
		defer cancel()
		began := time.Now()
		err := r.close(ctx)
		if err == nil || err.Error() != "close broken: no" {
			t.Errorf("got %v; want what failed alone", err)
		}
		if text := log.String(); !strings.Contains(text, "room=stuck") || strings.Contains(text, "room=slow") {
			t.Errorf("the log names the wrong rooms: %s", text)
		}
		if !ended || time.Since(began) != closeGrace+lastWord {
			t.Errorf("the other room ended: %v, after %v", ended, time.Since(began))
		}
		close(release)
	})
}
