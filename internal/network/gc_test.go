package network

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
)

// TestGCGivesWay lets a plugin hang in a collection, at each of the two things that a collection does, while a pod
// wants to be attached.
func TestGCGivesWay(t *testing.T) {
	for _, stuck := range []string{"DEL", "GC"} {
		t.Run(stuck, func(t *testing.T) {
			p := newPlugs(t, "plugin")
			p.write("10-net.conflist", conflist("net", "1.1.0", "plugin"))
			p.watch()
			_, err := p.cni.Add(t.Context(), p.prepare("stale"))
			must(t, err)
			p.script("plugin", script{Hang: map[string]bool{stuck: true}})
			collected := make(chan error, 1)
			go func() { collected <- p.cni.GC(t.Context(), func() []Request { return nil }) }() // ends by giving way
			waitFor(t, "the plugin hangs", func() bool {
				select {
				case err := <-collected:
					t.Fatal("the collection ended before:", err)
				default:
				}
				names, _ := p.calls()
				return slices.Contains(names, "plugin "+stuck)
			})
			ctx, cancel := context.WithTimeout(t.Context(), pluginDeadline/2)
			defer cancel()
			_, err = p.cni.Add(ctx, p.prepare("new"))
			must(t, err)
			wantKind(t, <-collected, errBusy)
			wantKind(t, errBusy, errdef.Unavailable)
		})
	}
}

func TestGarbageIsCollectedAgainAndAgain(t *testing.T) {
	p := newPlugs(t, "plugin")
	p.write("10-net.conflist", conflist("net", "1.1.0", "plugin"))
	p.watch()
	p.script("plugin", script{Fail: map[string]string{"GC": `{"code":1,"msg":"cannot"}`}})
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan error), make(chan struct{})
	leave, err := p.cni.gate.enter(ctx) // an attachment that lasts: the collection waits for its end
	must(t, err)
	go func() { // ends with ctx
		defer close(ended)
		p.cni.KeepCollecting(ctx, Rhythm{Period: time.Millisecond, Retry: time.Millisecond},
			func() []Request { return nil }, func(err error) { told <- err })
	}()
	select {
	case err := <-told:
		t.Error("told while a pod is attached:", err)
	case <-time.After(50 * time.Millisecond):
	}
	leave()
	for range 2 {
		wantKind(t, <-told, errdef.Unavailable, "cannot")
	}
	p.script("plugin", script{})
	for i := range 3 {
		_, err := p.cni.Add(t.Context(), p.prepare(fmt.Sprint("stale-", i)))
		must(t, err)
		waitForNothing(t, p, told)
	}
	cancel()
	<-ended
}

// waitForNothing waits until nothing is remembered, whatever is told meanwhile.
func waitForNothing(t *testing.T, p *plugs, told <-chan error) {
	t.Helper()
	waitFor(t, "the stale attachment is gone", func() bool {
		select {
		case <-told:
		default:
		}
		left, err := p.cni.Recall("")
		must(t, err)
		return len(left) == 0
	})
}
