package storage

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
)

// blobGate makes a registry wait before it answers a blob; it tells when the first one was asked for, and when
// somebody who asked went away.
type blobGate struct {
	asked, gone, open chan struct{}
}

func holdBlobs(r *fakeRegistry) *blobGate {
	g := &blobGate{asked: make(chan struct{}), gone: make(chan struct{}), open: make(chan struct{})}
	asked, gone := sync.OnceFunc(func() { close(g.asked) }), sync.OnceFunc(func() { close(g.gone) })
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			asked()
			select {
			case <-g.open:
			case <-req.Context().Done():
				gone()
			}
			return false
		}
	})
	return g
}

func TestConcurrentPullsShareOneDownload(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	g := holdBlobs(r)
	ref := r.host + "/a:1"

	hasty, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { // the first of all, and the first to go
		_, err := s.Pull(hasty, PullRequest{Ref: ref})
		left <- err
	}()
	<-g.asked
	const n = 8
	var waiters sync.WaitGroup
	ids := make([]string, n)
	errs := make([]error, n)
	for i := range n {
		waiters.Go(func() {
			img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			ids[i], errs[i] = img.ID, err
		})
	}
	waitFor(t, func() bool { return s.waiting() == n+1 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the waiter that left got %v", err)
	}
	close(g.open)
	waiters.Wait()
	for i := range n {
		if errs[i] != nil || ids[i] != ids[0] {
			t.Errorf("waiter %d: %s, %v", i, ids[i], errs[i])
		}
	}
	if all, most := r.fetched(); all != 3 || most != 1 {
		t.Errorf("%d blobs fetched, one of them %d times; want 3, once each", all, most)
	}
}

// waiting counts the callers of Pull that wait for a download.
func (s *Images) waiting() (n int) {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	for _, f := range s.pulls.flights {
		n += f.waiters
	}
	return n
}

// waitFor yields to other goroutines until done says so.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("waited too long")
		}
	}
}

func TestOtherCredentialsAreAnotherPull(t *testing.T) {
	r := newRegistry(t)
	r.set(func(r *fakeRegistry) { r.user, r.pass = "me", "secret" })
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	g := holdBlobs(r)
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Auth: Auth{Username: "me", Password: "secret"}})
		done <- err
	}()
	<-g.asked
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Auth: Auth{Username: "you", Password: "guess"}}); err == nil {
		t.Error("wrong credentials shared the pull of right ones")
	}
	close(g.open)
	check(t, <-done)
}

func TestAbandonedPullStops(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	g := holdBlobs(r)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"})
		done <- err
	}()
	<-g.asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-g.gone // the connection was given up
	s.pulls.wait()
	if n := len(list(t, s)); n != 0 {
		t.Errorf("%d images after a cancelled pull", n)
	}
	r.set(func(r *fakeRegistry) { r.hold = nil })
	pull(t, s, r.host+"/a:1")
}

// What an abandoned pull has finished serves the next one.
func TestALaterPullReusesFinishedLayers(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base, top := layer(t, false, "base", "finished"), layer(t, false, "top", "unfinished")
	r.push(t, "a:1", picture(t, "a", base, top))
	held, err := top.Digest()
	check(t, err)
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, held.Hex) {
				<-req.Context().Done()
			}
			return false
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { // ends by cancel
		_, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"})
		done <- err
	}()
	waitFor(t, func() bool {
		layers, err := s.store.Layers()
		return err == nil && len(layers) == 1
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s.pulls.wait()
	r.set(func(r *fakeRegistry) { r.hold = nil })
	pull(t, s, r.host+"/a:1")
	finished, err := base.Digest()
	check(t, err)
	r.set(func(r *fakeRegistry) {
		if n := r.blobs[finished.Hex]; n != 1 {
			t.Errorf("the finished layer was fetched %d times", n)
		}
	})
}

func TestDeadline(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	g := holdBlobs(r)
	defer close(g.open)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	s.pulls.wait()
	if n := len(list(t, s)); n != 0 || s.waiting() != 0 {
		t.Errorf("%d images, %d waiters after the deadline", n, s.waiting())
	}
}

func TestCloseEndsPulls(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	g := holdBlobs(r)
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"})
		done <- err
	}()
	<-g.asked
	check(t, s.Close())
	if err := <-done; !errors.Is(err, errdef.Unavailable) {
		t.Errorf("the pull got %v", err)
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("a pull after Close got %v", err)
	}
}
