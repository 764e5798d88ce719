package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/step"
)

// errAbandoned is why a pull was ended that nobody waits for.
var errAbandoned = errors.New("nobody waits for this pull any more")

// pulls are the downloads under way. Whoever asks for what is already on its way shares it; a download lives as
// long as somebody waits for it.
type pulls struct {
	mu      sync.Mutex // guards the fields below and flight.waiters; nothing is waited for under it
	flights map[flightKey]*flight
	stopped bool
	work    sync.WaitGroup
	memory  uint64        // pullMemory
	bytes   atomic.Uint64 // of blobs read so far

	wire   wire
	places *semaphore.Weighted // for the layers that are fetched at a time
	claims claims
	pieces sync.Pool // of belts

	layers sync.RWMutex // shared by all downloads; the collector has it alone while it removes layers without image
}

func (p *pulls) init(limits PullLimits) {
	p.memory = pullMemory
	layers := limits.Layers
	if layers == 0 {
		layers = parallelLayers
	}
	p.places = semaphore.NewWeighted(int64(layers))
	p.wire.patience = limits.Patience
	if limits.Bandwidth > 0 {
		p.wire.rate = rate.NewLimiter(rate.Limit(limits.Bandwidth), blobWindow)
	}
}

// flightKey is what makes two requests for a pull the same. It holds credentials only while their pull is under way.
type flightKey struct {
	ref    string
	auth   Auth
	own    string // credentials that were left for the namespace, in place of the auth file
	policy string // the file with the policy that holds for the namespace
}

type flight struct {
	waiters int
	cancel  context.CancelCauseFunc
	board   board
	done    chan struct{} // closed when image and err are set
	image   Image
	err     error
}

// PullRequest is what is pulled, and for whom.
type PullRequest struct {
	Ref       string
	Auth      Auth   // zero = those left for the namespace, else of the host's auth file, if any
	Namespace string // of the pod; empty = none, as of an administrator's pull

	// Progress is told how far the layers are, by the goroutine that called Pull: when something has changed, at most every
	// 100 ms, and at the end. It may be nil.
	Progress func([]LayerProgress)
}

// Pull fetches the image that r names from its registry. The registry is asked
// even when the image is stored. Identical pulls share one download. When ctx ends Pull returns at once; the
// download ends too, unless others wait for it.
//
// Errors: Invalid for a bad reference, NotFound for an image that the registry does not know,
// RegistryUnavailable, SignatureInvalid, Exhausted for a full disk, else none of the kinds.
func (s *Images) Pull(ctx context.Context, r PullRequest) (Image, error) {
	ref := r.Ref
	if id := strings.TrimPrefix(ref, "sha256:"); len(id) == 64 && isHex(id) {
		return Image{}, fmt.Errorf("pull image %s: an image is pulled by its name, not by its id: %w", ref, errdef.Invalid)
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	if err := s.reloadRegistries(); err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	names, err := s.names(ref)
	if err != nil {
		return Image{}, fmt.Errorf("pull %w", err)
	}
	key, err := s.flightKey(r)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	f, err := s.join(ctx, key, names)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	defer s.pulls.leave(f)
	if err := f.board.watch(ctx, f.done, r.Progress); err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", ref, err)
	}
	return f.image, f.err
}

func (s *Images) flightKey(r PullRequest) (key flightKey, err error) {
	key = flightKey{ref: r.Ref, auth: r.Auth}
	if key.policy, err = s.policyFor(r.Namespace); err != nil {
		return flightKey{}, err
	}
	key.own, err = s.takeAuth(r.Namespace, r.Ref)
	return key, err
}

// join finds the flight for key or starts one. It counts the caller in, who must leave.
func (s *Images) join(ctx context.Context, key flightKey, names []reference.Named) (*flight, error) {
	p := &s.pulls
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, errStopping
	}
	before := p.flights[key]
	if before != nil && before.waiters > 0 {
		before.waiters++
		return before, nil
	}
	// The values of the first request, not its end: others may wait longer.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight{waiters: 1, cancel: cancel, done: make(chan struct{})}
	if p.flights == nil {
		p.flights = make(map[flightKey]*flight)
	}
	p.flights[key] = f
	p.work.Go(func() { // ends with the download, at the latest soon after cancel
		defer cancel(nil)
		if before != nil {
			<-before.done // it was cancelled: let it go first
		}
		began := time.Now()
		ctx, end := s.cfg.Steps.Begin(ctx, step.Step{Kind: step.Pull, ID: key.ref})
		f.image, f.err = s.fetch(ctx, names, key, &f.board)
		end(f.err)
		if errors.Is(f.err, errdef.Exhausted) {
			// What a later pull could use would keep a full disk full.
			s.problems.set("layers of a failed pull", s.dropOrphans(began.Before))
		}
		p.land(key, f)
	})
	return f, nil
}

// land publishes the result of f.
func (p *pulls) land(key flightKey, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flights[key] == f {
		delete(p.flights, key)
	}
	close(f.done)
}

// PulledBytes is how many bytes of images have come from registries since crid started, as they were sent.
func (s *Images) PulledBytes() uint64 { return s.pulls.bytes.Load() }

// leave counts a waiter out; the last one ends the download.
func (p *pulls) leave(f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.waiters--
	if f.waiters == 0 {
		f.cancel(errAbandoned)
	}
}

// enter lets in what stores images without a flight of its own; done must be called.
func (p *pulls) enter() (done func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, errStopping
	}
	p.work.Add(1)
	return p.work.Done, nil
}

// errStopping is why nothing is stored any more.
var errStopping = fmt.Errorf("crid is shutting down: %w", errdef.Unavailable)

// stop ends all downloads and lets none start.
func (p *pulls) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for _, f := range p.flights {
		f.cancel(errStopping)
	}
}

func (p *pulls) wait() { p.work.Wait() }
