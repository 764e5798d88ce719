package storage

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
)

// disk knows what the image store takes, and what it keeps for need. One goroutine measures, after every change; each layer once.
type disk struct {
	spares []spare
	wake   chan struct{} // holds one: the store has changed
	last   atomic.Pointer[measurement]
}

type measurement struct {
	usage Usage
	err   error
	next  chan struct{} // closed when a newer measurement is there
}

func (d *disk) init() {
	d.wake = make(chan struct{}, 1)
	d.last.Store(&measurement{next: make(chan struct{})})
}

// kick asks for a new measurement.
func (d *disk) kick() {
	select {
	case d.wake <- struct{}{}:
	default: // one is already due
	}
}

// Usage tells what the image store takes on its filesystem. It answers from memory with the last measurement,
// and waits for the first one after start.
func (s *Images) Usage(ctx context.Context) (Usage, error) {
	for {
		m := s.disk.last.Load()
		if m.err != nil || m.usage.Mountpoint != "" {
			return m.usage, m.err
		}
		select {
		case <-m.next:
		case <-ctx.Done():
			return Usage{}, fmt.Errorf("measure image store: %w", ctx.Err())
		}
	}
}

func (s *Images) measure(ctx context.Context) {
	layers := make(map[string]Usage) // what does not change is measured once
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.disk.wake:
		}
		usage, err := s.measureStore(ctx, layers)
		if ctx.Err() != nil {
			return
		}
		s.problems.set("usage", err)
		old := s.disk.last.Swap(&measurement{usage: usage, err: err, next: make(chan struct{})})
		close(old.next)
	}
}

func (s *Images) measureStore(ctx context.Context, known map[string]Usage) (Usage, error) {
	stored, err := s.layerMap()
	if err != nil {
		return Usage{}, err
	}
	for id := range known {
		if stored[id] == nil {
			delete(known, id)
		}
	}
	total := Usage{Mountpoint: s.root}
	for id, l := range stored {
		if l.ReadOnly {
			continue // another store's
		}
		if _, ok := known[id]; !ok {
			u, err := treeUsage(ctx, filepath.Join(s.root, "overlay", id))
			if err != nil {
				return Usage{}, fmt.Errorf("measure layer %s: %w", id, err)
			}
			known[id] = u
		}
		total.Bytes += known[id].Bytes
		total.Inodes += known[id].Inodes
	}
	for _, dir := range []string{"overlay-images", "overlay-layers", asideName, trashOfStore} {
		u, err := treeUsage(ctx, filepath.Join(s.root, dir))
		if err != nil {
			return Usage{}, fmt.Errorf("measure image store: %w", err)
		}
		total.Bytes += u.Bytes
		total.Inodes += u.Inodes
	}
	return total, nil
}
