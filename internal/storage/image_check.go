package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// ViewImages opens the store to be checked and nothing else: nothing goes on behind it. A store that does not exist is
// errdef.NotFound.
func ViewImages(cfg ImagesConfig) (*Images, error) {
	if err := cfg.checkPlace(); err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(orElse(cfg.Store, filepath.Join(cfg.Root, "storage")))
	if err != nil {
		return nil, fmt.Errorf("look at image store: %w", absentKind(err))
	}
	store, err := openStore(cfg, root)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	s := &Images{cfg: cfg, root: root, store: store, foreign: foreignLayers(root)}
	s.initDisk()
	s.close = s.letGo // nothing goes on behind a view
	s.leases.idle = leaseIdle
	return s, nil
}

// FaultKind is what a Fault is about.
type FaultKind string

// The kinds of faults.
const (
	LayerUnused   FaultKind = "layer unused"     // no image and no container has it, nor did for an hour: nothing is lost with it
	LayerDamaged  FaultKind = "layer damaged"    // of no image that is stored
	ImageDamaged  FaultKind = "image damaged"    // it, or one of its layers
	LeaseUnneeded FaultKind = "lease unneeded"   // its image is not stored
	NotOurs       FaultKind = "container's data" // of a container in the store that another tool made
)

// Fault is something that is wrong in the image store.
type Fault struct {
	Kind  FaultKind
	ID    string   // of the layer, the image (also a lease's), the container
	Names []string // of the image
	Path  string   // what it takes on disk; empty where that is not one directory
	Err   error    // what is wrong
}

// Check compares the store with itself. contents: the layers' files with their digests, too; that reads all of them, and
// changes of the store wait for it. While images are pulled, layers are not looked at that none has: an image may be
// about to.
func (s *Images) Check(ctx context.Context, contents bool) ([]Fault, error) {
	quiet := s.noPulls()
	report, err := s.storeCheck(contents)
	if err != nil {
		return nil, err
	}
	quiet = quiet && s.noPulls()
	stored, err := s.store.Images()
	if err != nil {
		return nil, fmt.Errorf("read image store: %w", err)
	}
	s.catalog.mu.Lock()
	index, err := s.readIndex(stored)
	s.catalog.mu.Unlock()
	if err != nil {
		return nil, err
	}
	faults := s.layerFaults(report, quiet)
	names := map[string][]string{}
	for _, img := range stored {
		names[img.ID] = img.Names
	}
	damaged := maps.Clone(index.damaged)
	for id, errs := range report.Images {
		damaged[id] = errors.Join(errs...)
	}
	for id, err := range damaged {
		faults = append(faults, Fault{Kind: ImageDamaged, ID: id, Names: names[id], Err: err})
	}
	leases, err := s.leaseFaults(report, names)
	return append(faults, leases...), err
}

// noPulls tells whether no image is being pulled at this moment.
func (s *Images) noPulls() bool {
	if !s.pulls.layers.TryLock() {
		return false
	}
	s.pulls.layers.Unlock()
	return true
}

func (s *Images) storeCheck(contents bool) (cstorage.CheckReport, error) {
	report, err := s.store.Check(&cstorage.CheckOptions{
		LayerUnreferencedMaximumAge: &s.leases.idle,
		LayerDigests:                contents,
		LayerData:                   true, ImageData: true, ContainerData: true,
	})
	if err != nil {
		return report, fmt.Errorf("check image store: %w", err)
	}
	return report, nil
}

// unwanted tells whether nothing refers to the layer that has these errors.
func unwanted(errs []error) bool {
	return slices.ContainsFunc(errs, func(err error) bool {
		return errors.Is(err, cstorage.ErrLayerUnreferenced) || errors.Is(err, cstorage.ErrLayerUnaccounted)
	})
}

func (s *Images) layerFaults(report cstorage.CheckReport, quiet bool) []Fault {
	inImages := map[error]bool{} // an image repeats the errors of its layers
	for _, errs := range report.Images {
		for _, err := range errs {
			inImages[err] = true
		}
	}
	var faults []Fault
	for id, errs := range report.Layers {
		f := Fault{Kind: LayerDamaged, ID: id, Path: filepath.Join(s.root, "overlay", id), Err: errors.Join(errs...)}
		switch {
		case unwanted(errs) && !quiet:
			continue
		case unwanted(errs):
			f.Kind = LayerUnused
		case slices.ContainsFunc(errs, func(err error) bool { return inImages[err] }):
			continue
		}
		faults = append(faults, f)
	}
	return faults
}

// leaseFaults looks at the containers of the store, which are crid's leases and other tools'.
func (s *Images) leaseFaults(report cstorage.CheckReport, stored map[string][]string) ([]Fault, error) {
	containers, err := s.store.Containers()
	if err != nil {
		return nil, fmt.Errorf("read containers of the image store: %w", err)
	}
	var faults []Fault
	for _, c := range containers {
		lease := ""
		for _, name := range c.Names {
			if id, ok := strings.CutPrefix(name, leasePrefix); ok {
				lease = id
			}
		}
		_, there := stored[lease]
		switch {
		case lease != "" && !there:
			faults = append(faults, Fault{Kind: LeaseUnneeded, ID: lease, Path: filepath.Join(s.root, "overlay", c.LayerID),
				Err: fmt.Errorf("image %s is not stored: %w", lease, errdef.NotFound)})
		case lease == "" && len(report.Containers[c.ID]) > 0:
			faults = append(faults, Fault{Kind: NotOurs, ID: c.ID, Names: c.Names, Err: errors.Join(report.Containers[c.ID]...)})
		}
	}
	return faults, nil
}

// Mend does away with a fault that Check has found: with an unused layer, a lease, or a damaged image, which is then to be
// pulled again. It looks again before. WrongState: containers use the image; Unavailable: images are being pulled, so
// that no layer can be told to be unused.
func (s *Images) Mend(ctx context.Context, f Fault) error {
	switch f.Kind {
	case LayerUnused, LayerDamaged:
		return s.dropLayer(f.ID)
	case ImageDamaged:
		return s.erase(ctx, f.ID)
	case LeaseUnneeded:
		leave, err := s.gates.exclude(ctx, f.ID)
		if err != nil {
			return err
		}
		defer leave()
		return s.dropLease(f.ID)
	}
	return fmt.Errorf("%s %s: %w", f.Kind, f.ID, errdef.Unsupported)
}

func (s *Images) dropLayer(id string) error {
	if !s.pulls.layers.TryLock() {
		return fmt.Errorf("layer %s: images are being pulled, try again later: %w", id, errdef.Unavailable)
	}
	defer s.pulls.layers.Unlock()
	report, err := s.storeCheck(false)
	if err != nil {
		return err
	}
	if !unwanted(report.Layers[id]) {
		return nil // it has found a use
	}
	only := cstorage.CheckReport{Layers: map[string][]error{id: report.Layers[id]}}
	if err := errors.Join(s.store.Repair(only, &cstorage.RepairOptions{})...); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	s.disk.kick()
	return nil
}
