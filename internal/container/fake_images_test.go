package container

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/storage"
)

// imageState is what a host has of images.
type imageState struct {
	holds   int
	mounted map[string]bool // as volumes
}

type fakeImages struct{ session }

func (f fakeImages) Hold(_ context.Context, imageID string) (func(), error) {
	if imageID != testImage().ID && imageID != dataImage().ID {
		return nil, fmt.Errorf("image %s: %w", imageID, errdef.NotFound)
	}
	if err := f.do("image hold", func() error { return nil }); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images.holds++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.images.holds--
	}, nil
}

// Permit lets no image be used in the namespace "strict".
func (f fakeImages) Permit(_ context.Context, u storage.Use) error {
	return f.do("image permit", func() error {
		if u.Namespace == "strict" {
			return fmt.Errorf("%w: image %s", errdef.SignatureInvalid, u.ImageID)
		}
		return nil
	})
}

type fakeVolumes struct{ session }

func (f fakeVolumes) Mount(_ context.Context, imageID string) (string, error) {
	dir := filepath.Join(f.dir, "images", imageID)
	return dir, f.do("image mount", func() error {
		if f.images.holds == 0 {
			f.observed = append(f.observed, "an image is mounted that nobody holds")
		}
		f.images.mounted[imageID] = true
		return os.MkdirAll(filepath.Join(dir, "sub"), 0o755)
	})
}

func (f fakeVolumes) Unmount(_ context.Context, imageID string, used func() bool) error {
	return f.do("image unmount", func() error {
		if !used() {
			delete(f.images.mounted, imageID)
		}
		return nil
	})
}

func (f fakeVolumes) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.images.mounted)), nil
}
