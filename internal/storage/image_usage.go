package storage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	cstorage "go.podman.io/storage"
)

// disk knows what the image store takes, and what it keeps for need.
type disk struct {
	spares []spare
	*gauge
	layers map[string]layerSize // only the measurement itself looks at them
	shares atomic.Pointer[map[string]Share]
}

// layerSize is what a layer takes, measured once for as long as its directory is what it was.
type layerSize struct {
	seen fileMark
	treeSize
}

// Share is how an image's bytes on the disk divide.
type Share struct {
	Exclusive uint64 // of it alone: what removing it gives back
	Shared    uint64 // of layers that other images have as well
}

func (s *Images) initDisk() {
	s.disk.gauge = newGauge(s.measureStore)
	s.disk.layers = map[string]layerSize{}
	s.disk.shares.Store(&map[string]Share{})
}

// Usage tells what the image store takes on its filesystem, all that lies in it: layers, records, unfinished pulls,
// what was set aside. It answers from memory, and waits for the first measurement after start.
func (s *Images) Usage(ctx context.Context) (Usage, error) { return s.disk.read(ctx) }

// Share tells how the bytes of an image divide, by the last measurement; false: that did not know the image yet.
func (s *Images) Share(imageID string) (Share, bool) {
	share, known := (*s.disk.shares.Load())[imageID]
	return share, known
}

func (s *Images) measureStore(ctx context.Context) (Usage, error) {
	settled, err := s.settledLayers()
	if err != nil {
		return Usage{}, err
	}
	for id := range s.disk.layers {
		if settled[id] == nil {
			delete(s.disk.layers, id)
		}
	}
	skip := make(map[string]bool, 2*len(settled))
	for id := range settled {
		skip[filepath.Dir(s.layerDir(id))], skip[s.recipePath(id)] = true, true
	}
	total, err := measureTree(ctx, s.root, skip)
	for id := range settled {
		if err == nil {
			err = s.measureLayer(ctx, id)
		}
		total.add(s.disk.layers[id].treeSize)
	}
	if err == nil {
		err = s.divide(ctx, settled)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("measure image store: %w", err)
	}
	total.Mountpoint = s.root
	return total.Usage, nil
}

// settledLayers are those that change no more: complete ones of this store, and of no container.
func (s *Images) settledLayers() (map[string]*cstorage.Layer, error) {
	layers, err := s.layerMap()
	if err != nil {
		return nil, err
	}
	containers, err := s.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("read containers of the image store: %w", err)
	}
	for _, c := range containers {
		delete(layers, c.LayerID)
	}
	for id, l := range layers {
		if _, incomplete := l.Flags["incomplete"]; incomplete || l.ReadOnly {
			delete(layers, id)
		}
	}
	return layers, nil
}

// measureLayer measures a layer and its recipe, unless that was done. What is set aside of a layer, or mended, leaves the
// mark of its directory changed.
func (s *Images) measureLayer(ctx context.Context, id string) error {
	dir := filepath.Dir(s.layerDir(id))
	mark := markOf(dir)
	if s.disk.layers[id].seen == mark {
		return nil
	}
	size, err := measureTree(ctx, dir, nil)
	if err != nil {
		return err
	}
	if info, err := os.Lstat(s.recipePath(id)); err == nil {
		size.Bytes += allocated(info.Sys().(*syscall.Stat_t))
		size.Inodes++
	}
	s.disk.layers[id] = layerSize{mark, size}
	return nil
}

// divide tells of each image which bytes are its alone.
func (s *Images) divide(ctx context.Context, layers map[string]*cstorage.Layer) error {
	images, err := s.store.Images()
	if err != nil {
		return fmt.Errorf("read image store: %w", err)
	}
	users := make(map[string]int, len(layers)) // of each layer, how many images
	for i := range images {
		for id := images[i].TopLayer; layers[id] != nil; id = layers[id].Parent {
			users[id]++
		}
	}
	shares := make(map[string]Share, len(images))
	for i := range images {
		var share Share
		for id := images[i].TopLayer; layers[id] != nil; id = layers[id].Parent {
			if users[id] == 1 {
				share.Exclusive += s.disk.layers[id].Bytes
			} else {
				share.Shared += s.disk.layers[id].Bytes
			}
		}
		own, err := treeUsage(ctx, filepath.Join(s.listDir(), images[i].ID))
		if err != nil {
			return err
		}
		share.Exclusive += own.Bytes
		shares[images[i].ID] = share
	}
	s.disk.shares.Store(&shares)
	return nil
}
