package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

const leasePrefix = "crid-lease-"

// leaseWait is how long a new lease waits for the removal of its image, after which there is nothing to lease.
const leaseWait = time.Minute

// leases are containers of the store, at most one for each image, which keep other tools on the same store from
// removing an image that crid mounts. crid's own removal drops them.
type leases struct {
	mu      sync.Mutex           // guards used and stopped; nothing is waited for under it
	used    map[string]time.Time // images with a lease, to when they were last wanted
	stopped bool                 // no more leases: the store is being closed
	idle    time.Duration        // after which a lease is dropped
}

func (l *leases) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
}

// takeLease notes that the image is wanted and makes its lease if there is none. It does not wait for that: the
// store may be busy with another image, and a lease guards against a rare thing.
func (s *Images) takeLease(id string) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	_, taken := s.leases.used[id]
	s.leases.used[id] = time.Now()
	if taken || s.leases.stopped {
		return
	}
	s.life.work.Go(func() { // ends when the store has answered
		err := s.makeLease(id)
		if err != nil {
			s.leases.forget(id)
		}
		if errors.Is(err, errdef.NotFound) {
			err = nil // removed meanwhile
		}
		s.problems.set("lease "+id, err)
	})
}

func (s *Images) makeLease(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), leaseWait) // nobody waits for a lease
	defer cancel()
	release, err := s.Hold(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	// It is never mounted: no SELinux label is to be reserved for it.
	options := &cstorage.ContainerOptions{LabelOpts: []string{"disable"}}
	_, err = s.store.CreateContainer("", []string{leasePrefix + id}, id, "", "", options)
	failpoint.Hit("storage/lease/made")
	if err != nil && !errors.Is(err, cstorage.ErrDuplicateName) {
		return fmt.Errorf("protect image %s from other tools: %w", id, err)
	}
	return nil
}

func (l *leases) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.used, id)
}

// dropLease removes the image's lease, if any. The caller keeps holds out.
func (s *Images) dropLease(id string) error {
	s.leases.forget(id)
	c, err := s.store.Container(leasePrefix + id)
	if errors.Is(err, cstorage.ErrContainerUnknown) {
		return nil
	}
	if err == nil {
		err = s.store.DeleteContainer(c.ID)
		failpoint.Hit("storage/lease/dropped")
	}
	if err != nil && !errors.Is(err, cstorage.ErrContainerUnknown) && !errors.Is(err, cstorage.ErrNotAContainer) {
		return fmt.Errorf("drop lease of image %s: %w", id, err)
	}
	return nil
}

// loadLeases finds the leases of an earlier life.
func (s *Images) loadLeases() error {
	s.leases.used = make(map[string]time.Time)
	containers, err := s.store.Containers()
	if err != nil {
		return fmt.Errorf("read leases of the image store: %w", err)
	}
	for _, c := range containers {
		for _, name := range c.Names {
			if id, ok := strings.CutPrefix(name, leasePrefix); ok {
				s.leases.used[id] = time.Now()
			}
		}
	}
	return nil
}

// collect drops what nobody wants any more, now and then: idle leases, and layers that a pull left behind. It looks, too,
// whether the disk of a shelf has come or gone, of which nothing tells.
func (s *Images) collect(ctx context.Context) {
	tick := time.NewTicker(max(s.leases.idle/4, time.Millisecond))
	defer tick.Stop()
	for {
		s.problems.set("collector", errors.Join(s.dropIdleLeases(ctx), s.dropOrphans(s.isOld), s.refreshIfChanged()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *leases) idleOnes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id, last := range l.used {
		if time.Since(last) > l.idle {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *Images) dropIdleLeases(ctx context.Context) error {
	var all error
	for _, id := range s.leases.idleOnes() {
		leave, err := s.gates.exclude(ctx, id)
		if err != nil {
			return nil // crid is shutting down
		}
		if len(s.usersOf(id)) == 0 {
			all = errors.Join(all, s.dropLease(id))
		}
		leave()
	}
	return all
}

// isOld tells of a layer made then whether it has waited for an image for the idle time, before the eyes of this crid.
func (s *Images) isOld(made time.Time) bool {
	return min(time.Since(made), time.Since(s.life.opened)) > s.leases.idle
}

// dropOrphans removes those layers that belong to no image and no container. A pull that failed leaves them, and for an
// idle time they may serve the next one. While anything is pulled, an orphan may be about to find its image: the
// next round will do. When a list of the store was lost, nobody knows until the next boot what containers stand on.
func (s *Images) dropOrphans(those func(made time.Time) bool) error {
	if s.repair.listLost.Load() {
		return nil
	}
	if !s.pulls.layers.TryLock() {
		return nil
	}
	defer s.pulls.layers.Unlock()
	orphans, err := s.orphans(those)
	if err != nil {
		return err
	}
	if len(orphans) == 0 {
		return nil
	}
	defer s.disk.kick()
	return s.makeRoom(func() error { return s.dropLayers(orphans) })
}

func (s *Images) dropLayers(ids []string) error {
	var all error
	for _, id := range ids {
		err := s.store.DeleteLayer(id)
		if err != nil && !isInUse(err) && !errors.Is(err, cstorage.ErrLayerUnknown) {
			all = errors.Join(all, fmt.Errorf("remove unused layer %s: %w", id, err))
		}
	}
	return all
}

// isInUse tells of a layer that found a use since it was looked at.
func isInUse(err error) bool {
	return errors.Is(err, cstorage.ErrLayerHasChildren) || errors.Is(err, cstorage.ErrLayerUsedByImage) ||
		errors.Is(err, cstorage.ErrLayerUsedByContainer)
}

// orphans returns those of the layers that nothing wants, children before parents.
func (s *Images) orphans(those func(made time.Time) bool) ([]string, error) {
	layers, err := s.layerMap() // before the images: a layer comes first
	if err != nil {
		return nil, err
	}
	tops, err := s.topLayers()
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool)
	for _, top := range tops {
		for id := top; id != "" && !wanted[id]; {
			wanted[id] = true
			if layers[id] == nil {
				break
			}
			id = layers[id].Parent
		}
	}
	var out []string
	for id, l := range layers {
		if !wanted[id] && !l.ReadOnly && those(l.Created) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return depth(layers, b) - depth(layers, a) })
	return out, nil
}

// topLayers returns the top layers of all images and containers.
func (s *Images) topLayers() ([]string, error) {
	images, err := s.store.Images()
	if err != nil {
		return nil, fmt.Errorf("read image store: %w", err)
	}
	containers, err := s.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("read containers of the image store: %w", err)
	}
	var tops []string
	for _, img := range images {
		tops = append(append(tops, img.TopLayer), img.MappedTopLayers...)
	}
	for _, c := range containers {
		tops = append(tops, c.LayerID)
	}
	return tops, nil
}
