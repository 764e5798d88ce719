package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// tagName reads a name that somebody gives an image: full, or short where that means one name.
func (s *Images) tagName(text string) (reference.Named, error) {
	names, err := s.names(text)
	if err != nil {
		return nil, err
	}
	if len(names) > 1 {
		return nil, fmt.Errorf("image %s: the name is short, and registries.conf lists several registries for such: give it in full: %w", text, errdef.Invalid)
	}
	if _, digested := names[0].(reference.Digested); digested {
		return nil, fmt.Errorf("image %s: a name with a digest cannot be given, since the digest decides: %w", text, errdef.Invalid)
	}
	return names[0], nil
}

// Tag gives the image that ref means more names. An image that had one of them loses it at the same moment.
func (s *Images) Tag(ctx context.Context, ref string, names []string) (Image, error) {
	e, err := s.lookupOwn(ref)
	if err != nil {
		return Image{}, err
	}
	var add []reference.Named
	for _, text := range names {
		name, err := s.tagName(text)
		if err != nil {
			return Image{}, err
		}
		add = append(add, name)
	}
	if len(add) == 0 {
		return Image{}, fmt.Errorf("image %s: no name is given: %w", ref, errdef.Invalid)
	}
	release, err := s.Hold(ctx, e.image.ID)
	if err != nil {
		return Image{}, err
	}
	defer release()
	if err := s.nameImage(e.image.ID, add...); err != nil {
		return Image{}, errdef.Disk(err)
	}
	if err := s.refresh(); err != nil {
		return Image{}, err
	}
	return s.Resolve(ctx, e.image.ID)
}

// Removal is what became of an image that was to be removed.
type Removal struct {
	Image    Image    // as it was
	Untagged []string // names that it has lost
	Gone     bool     // the image itself
}

// Drop takes the name ref away, and the image with its last tag. An id stands for the image: one with several tags, and
// one that is pinned, goes only with force. NotFound when there is none; WrongState, and nothing changed, when containers
// use it, with force or without.
func (s *Images) Drop(ctx context.Context, ref string, force bool) (Removal, error) {
	e, err := s.lookupOwn(ref)
	if err != nil {
		return Removal{}, err
	}
	img := e.image
	name, err := s.nameAmong(ref, img.RepoTags)
	if err != nil {
		return Removal{}, err
	}
	switch {
	case name != "" && len(img.RepoTags) > 1 && !force:
		return Removal{Image: img, Untagged: []string{name}}, s.untag(ctx, img.ID, name)
	case name == "" && len(img.RepoTags) > 1 && !force:
		return Removal{}, fmt.Errorf("image %s has the names %s: give the one that is to go, or --force for all: %w",
			ref, strings.Join(img.RepoTags, ", "), errdef.WrongState)
	case img.Pinned && !force:
		return Removal{}, fmt.Errorf("image %s is pinned by the configuration (images.pinned): --force removes it nevertheless: %w", ref, errdef.WrongState)
	}
	return Removal{Image: img, Untagged: slices.Concat(img.RepoTags, img.RepoDigests), Gone: true}, s.erase(ctx, img.ID)
}

// nameAmong is the tag that ref means; empty when it means an image otherwise.
func (s *Images) nameAmong(ref string, tags []string) (string, error) {
	names, err := s.names(ref)
	if err != nil && !errors.Is(err, errdef.Invalid) {
		return "", err
	}
	for _, name := range names {
		if slices.Contains(tags, name.String()) {
			return name.String(), nil
		}
	}
	return "", nil
}

func (s *Images) untag(ctx context.Context, id, name string) error {
	release, err := s.Hold(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	return s.makeRoom(func() error {
		err := s.store.RemoveNames(id, []string{name})
		failpoint.Hit("storage/untag/unnamed")
		if err != nil {
			return fmt.Errorf("take the name %s from image %s: %w", name, id, err)
		}
		return s.refresh()
	})
}

// Prune removes the images that no container is made of or has as a volume, and tells of each: those without a tag, or with all
// every one. Pinned ones stay. dryRun only tells.
func (s *Images) Prune(ctx context.Context, all, dryRun bool, tell func(Removal) error) error {
	for _, img := range s.index.Load().images {
		if img.Pinned || !all && len(img.RepoTags) > 0 || len(s.usersOf(img.ID)) > 0 {
			continue
		}
		if !dryRun {
			err := s.erase(ctx, img.ID)
			if errors.Is(err, errdef.WrongState) {
				continue // it has found a use
			}
			if err != nil {
				return err
			}
		}
		if err := tell(Removal{Image: img, Untagged: slices.Concat(img.RepoTags, img.RepoDigests), Gone: true}); err != nil {
			return err
		}
	}
	return nil
}

// Users are the ids of the containers that the image cannot be removed because of.
func (s *Images) Users(id string) []string { return s.usersOf(id) }
