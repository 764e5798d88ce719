package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// gates keep the making of containers and the removal of their image apart, for each image on its own.
type gates struct {
	mu      sync.Mutex // guards all and what it points to; nothing is waited for under it
	all     map[string]*gate
	removed int // how often an image or a layer was removed: a pull that sees it change may have lost what it reused
}

type gate struct {
	holds    int
	idle     chan struct{} // closed when holds falls to zero; nil when nobody waits for that
	removing chan struct{} // closed when the removal is over; nil when there is none
}

// at returns the gate of an image. The caller holds g.mu.
func (g *gates) at(id string) *gate {
	if g.all == nil {
		g.all = make(map[string]*gate)
	}
	if g.all[id] == nil {
		g.all[id] = &gate{}
	}
	return g.all[id]
}

// forget drops a gate that says nothing. The caller holds g.mu.
func (g *gates) forget(id string) {
	if t := g.all[id]; t != nil && t.holds == 0 && t.removing == nil {
		delete(g.all, id)
	}
}

func (g *gates) removals() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.removed
}

func (g *gates) countRemoval() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removed++
}

// Hold keeps Remove away from the image until release is called, which may be repeated. NotFound when the image
// is not stored. It waits for a removal that is already under way, as long as ctx allows.
func (s *Images) Hold(ctx context.Context, imageID string) (release func(), err error) {
	g := &s.gates
	for {
		g.mu.Lock()
		t := g.at(imageID)
		if t.removing == nil {
			break
		}
		over := t.removing
		g.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return nil, fmt.Errorf("image %s: wait for its removal to end: %w", imageID, context.Cause(ctx))
		}
	}
	defer g.mu.Unlock()
	if _, ok := s.index.Load().byID[imageID]; !ok {
		g.forget(imageID)
		return nil, fmt.Errorf("image %s: %w", imageID, errdef.NotFound)
	}
	g.at(imageID).holds++
	return sync.OnceFunc(func() { g.release(imageID) }), nil
}

func (g *gates) release(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.at(id)
	t.holds--
	if t.holds == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
	g.forget(id)
}

// exclude waits until nobody holds or removes the image and keeps everybody out until leave is called. Holds
// that come while it waits go first: a removal can be tried again, a pod should start.
func (g *gates) exclude(ctx context.Context, id string) (leave func(), err error) {
	for {
		g.mu.Lock()
		t := g.at(id)
		wait := t.removing
		if wait == nil && t.holds > 0 {
			if t.idle == nil {
				t.idle = make(chan struct{})
			}
			wait = t.idle
		}
		if wait == nil {
			t.removing = make(chan struct{})
			g.mu.Unlock()
			return func() { g.leave(id) }, nil
		}
		g.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("image %s: wait for a container that is being made from it: %w", id, ctx.Err())
		}
	}
}

func (g *gates) leave(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.at(id)
	close(t.removing)
	t.removing = nil
	g.forget(id)
}

// Remove removes the image that ref means, with all its tags and digests. An image that is not stored is fine.
// WrongState, and nothing changed, when containers use it, whom the error names, or when it lies on a shelf. While a container is being made
// from the image it waits, as long as ctx allows.
func (s *Images) Remove(ctx context.Context, ref string) error {
	e, err := s.lookupOwn(ref)
	if errors.Is(err, errdef.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.erase(ctx, e.image.ID)
}

func (s *Images) erase(ctx context.Context, id string) error {
	leave, err := s.gates.exclude(ctx, id)
	if err != nil {
		return err
	}
	defer leave()
	if users := s.usersOf(id); len(users) > 0 {
		return fmt.Errorf("image %s is used by containers %s: remove them first: %w", id, strings.Join(users, ", "), errdef.WrongState)
	}
	return s.makeRoom(func() error {
		if err := s.dropLease(id); err != nil {
			return err
		}
		// Counted on both sides: a pull that began before or in between tries again.
		s.gates.countRemoval()
		defer s.gates.countRemoval()
		return errors.Join(s.deleteImage(id), s.refresh())
	})
}

func (s *Images) deleteImage(id string) error {
	_, err := s.store.DeleteImage(id, true)
	failpoint.Hit("storage/remove/deleted")
	switch {
	case err == nil, errors.Is(err, cstorage.ErrNotAnImage), errors.Is(err, cstorage.ErrImageUnknown):
		return nil
	case errors.Is(err, cstorage.ErrLayerUnknown): // a damaged image: its record is gone, which is what counts
		return nil
	case errors.Is(err, cstorage.ErrImageUsedByContainer):
		return fmt.Errorf("image %s is used by another tool on the same store: %w: %w", id, err, errdef.WrongState)
	}
	return fmt.Errorf("remove image %s: %w", id, err)
}
