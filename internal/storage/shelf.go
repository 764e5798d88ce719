package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// library is a store that images are read from: crid's own, or a shelf.
type library interface {
	data(imageID, key string) ([]byte, error)
	layerMap() (map[string]*cstorage.Layer, error)
	layerDir(id string) string
}

// shelf is a store of somebody else beside crid's own, whose images crid uses and never changes. Its files are read as
// they are: containers/storage would fail with all stores when the disk of one is gone, and wants locks in each.
type shelf struct {
	root   string
	seen   fileMark // of its list of images, when that was read
	images []cstorage.Image
}

func (f *shelf) listPath() string { return filepath.Join(f.root, "overlay-images", "images.json") }

func (f *shelf) layerDir(id string) string { return filepath.Join(f.root, "overlay", id, "diff") }

func (f *shelf) data(imageID, key string) ([]byte, error) {
	return os.ReadFile(filepath.Join(f.root, "overlay-images", imageID, bigDataName(key)))
}

func (f *shelf) layerMap() (map[string]*cstorage.Layer, error) {
	all, err := readList(filepath.Join(f.root, "overlay-layers", "layers.json"), checkListedLayer)
	if err != nil {
		return nil, err
	}
	return layersByID(all), nil
}

// list reads the shelf's images, anew when the list has changed.
func (f *shelf) list() ([]cstorage.Image, error) {
	mark := markOf(f.listPath())
	if mark == f.seen && mark != (fileMark{}) {
		return f.images, nil
	}
	images, err := readList(f.listPath(), checkListedImage)
	if err != nil {
		f.seen, f.images = fileMark{}, nil
		return nil, err
	}
	f.seen, f.images = mark, images
	return images, nil
}

func readList[T any](path string, check func(T) error) ([]T, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all, err := parseList(raw, check)
	if err != nil {
		err = fmt.Errorf("read %s: %w", path, err)
	}
	return all, err
}

// moved tells whether the list is not the one that was read: it changed, or its disk came or went.
func (f *shelf) moved() bool { return markOf(f.listPath()) != f.seen }

// addShelves adds the images of the shelves. What lies in crid's own store, or on a shelf before, goes first: of the same
// image the names are joined, and a tag that is taken is left out. A shelf that cannot be read takes only its own images
// away. The caller holds catalog.mu.
func (s *Images) addShelves(next *index, pinned pins) {
	for _, f := range s.catalog.shelves {
		images, err := f.list()
		var layers map[string]*cstorage.Layer
		if err == nil {
			layers, err = f.layerMap()
		}
		for i := range images {
			if layers == nil {
				break
			}
			err = errors.Join(err, s.addFromShelf(next, f, &images[i], shelved{layers, pinned}))
		}
		if err != nil {
			err = fmt.Errorf("images of the additional store %s are not used: %w", f.root, err)
		}
		s.problems.set("store "+f.root, err)
	}
}

// shelved is what is the same for all images of a shelf.
type shelved struct {
	layers map[string]*cstorage.Layer
	pinned pins
}

func (s *Images) addFromShelf(next *index, f *shelf, img *cstorage.Image, of shelved) error {
	known, ok := s.catalog.known[f.root+img.ID]
	if !ok {
		var err error
		if known, err = s.readFacts(f, img, of.layers); err != nil {
			return fmt.Errorf("image %s: %w", img.ID, err)
		}
		known.shelf = f.root
		if why := foreignLayers(f.root); why != "" {
			known.foreign = why
		}
	}
	next.addShelved(img, known, of.pinned)
	return nil
}

// lookupOwn is lookup for those who change an image, or need all that the store has of it. WrongState: it lies on a shelf.
func (s *Images) lookupOwn(ref string) (*entry, error) {
	e, err := s.lookup(ref)
	if err == nil && e.shelf != "" {
		return nil, fmt.Errorf("image %s lies in the additional store %s, which crid only reads (do this there): %w", e.image.ID, e.shelf, errdef.WrongState)
	}
	return e, err
}
