package storage

import (
	"context"
	"errors"
	"fmt"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// Verification is what an image was found to be.
type Verification struct {
	Image   Image    // of a damaged one no more than its id and names
	Layers  int      // that match their digests
	Faults  []string // what does not
	Unknown []string // what cannot be compared, and why
}

// Verify compares images with their digests, manifests, configuration and every layer, and tells of each: those that refs mean,
// or all, damaged ones too. A layer that several have is read once. It changes nothing.
func (s *Images) Verify(ctx context.Context, refs []string, tell func(Verification) error) error {
	ids, err := s.toVerify(refs)
	if err != nil {
		return err
	}
	layers := map[string]layerVerdict{}
	for _, id := range ids {
		v, err := s.verifyImage(ctx, id, layers)
		if errors.Is(err, cstorage.ErrImageUnknown) && len(refs) == 0 {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("verify image %s: %w", id, err)
		}
		if err := tell(v); err != nil {
			return err
		}
	}
	return nil
}

// toVerify are the ids that refs mean, each once; without any, all that are stored.
func (s *Images) toVerify(refs []string) ([]string, error) {
	var ids []string
	if len(refs) == 0 {
		stored, err := s.store.Images()
		if err != nil {
			return nil, fmt.Errorf("read image store: %w", err)
		}
		for _, img := range stored {
			ids = append(ids, img.ID)
		}
		return sortedSet(ids), nil
	}
	for _, ref := range refs {
		e, err := s.lookupOwn(ref)
		if err == nil {
			ids = append(ids, e.image.ID)
			continue
		}
		id, broken := s.damagedID(ref)
		if !broken {
			return nil, err
		}
		ids = append(ids, id)
	}
	return sortedSet(ids), nil
}

// damagedID finds an image that is stored but not used.
func (s *Images) damagedID(ref string) (string, bool) {
	names, _ := s.names(ref) // what is no name may be an id
	for id := range s.index.Load().damaged {
		img, err := s.store.Image(id)
		if err != nil {
			continue
		}
		tags, digests := references(img)
		for _, name := range names {
			for _, own := range append(tags, digests...) {
				if name.String() == own {
					return id, true
				}
			}
		}
		if ref == id || ref == "sha256:"+id {
			return id, true
		}
	}
	return "", false
}

// layerVerdict is what a layer was found to be: well, not as it should be, or not to be told.
type layerVerdict struct{ fault, unknown string }

func (s *Images) verifyImage(ctx context.Context, id string, known map[string]layerVerdict) (Verification, error) {
	img, err := s.store.Image(id)
	if err != nil {
		return Verification{}, err
	}
	v := Verification{Image: Image{ID: id}}
	v.Image.RepoTags, v.Image.RepoDigests = references(img)
	if _, err := readData(s, img); err != nil {
		v.Faults = append(v.Faults, err.Error())
	}
	layers, err := s.layersOf(id)
	if errors.Is(err, errdef.Unavailable) {
		v.Faults = append(v.Faults, err.Error())
		return v, nil
	}
	if err != nil {
		return Verification{}, err
	}
	for _, l := range layers {
		verdict, read := known[l.ID]
		if !read {
			if verdict, err = s.judge(ctx, l); err != nil {
				return Verification{}, err
			}
			known[l.ID] = verdict
		}
		switch {
		case verdict.fault != "":
			v.Faults = append(v.Faults, verdict.fault)
		case verdict.unknown != "":
			v.Unknown = append(v.Unknown, verdict.unknown)
		default:
			v.Layers++
		}
	}
	return v, nil
}

func (s *Images) judge(ctx context.Context, l *cstorage.Layer) (layerVerdict, error) {
	if err := checkLayer(s.layerDir(l.ID)); err != nil && !l.ReadOnly {
		return layerVerdict{fault: err.Error()}, nil
	}
	if why := s.incomparable(l); why != "" {
		return layerVerdict{unknown: fmt.Sprintf("layer %s: %s", l.ID, why)}, nil
	}
	err := s.verifyLayer(ctx, l)
	if errors.Is(err, errDamaged) {
		return layerVerdict{fault: err.Error()}, nil
	}
	return layerVerdict{}, err
}
