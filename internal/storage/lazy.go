package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	drivers "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/chunked/toc"
)

// An additional layer store is a directory in which a program shows layers whose content it fetches when it is read. The
// store then has a link where the layer's files are.

// layerStoreOptions tells containers/storage of the additional layer stores that are there; with one that is not it would
// not open at all.
func (c *ImagesConfig) layerStoreOptions() []string {
	var there []string
	for _, spec := range c.LayerStores {
		if checkLayerStore(spec) == nil {
			there = append(there, spec)
		}
	}
	if len(there) == 0 {
		return nil
	}
	return []string{"overlay.additionallayerstore=" + strings.Join(there, ",")}
}

// checkLayerStore tells why the directory of an additional layer store cannot be used; nil when it can.
func checkLayerStore(spec string) error {
	dir, _, _ := strings.Cut(spec, ":")
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", dir)
	}
	return err
}

// warnOfLayerStores tells which additional layer stores are not used.
func (s *Images) warnOfLayerStores() {
	for _, spec := range s.cfg.LayerStores {
		err := checkLayerStore(spec)
		if err != nil {
			err = fmt.Errorf("the additional layer store %s is not used, its layers are pulled (start what serves it, then restart crid): %w", spec, err)
		}
		s.problems.set("layer store "+spec, err)
	}
}

// isServed tells whether an additional layer store has a layer of the image. Then the library brings the image into the
// store: it knows how to take such a layer, and fetches the others.
func (s *Images) isServed(img types.Image, name reference.Named) bool {
	if len(s.cfg.LayerStores) == 0 {
		return false
	}
	for _, info := range img.LayerInfos() {
		digest, err := toc.GetTOCDigest(info.Annotations)
		if err != nil || digest == nil {
			continue
		}
		if layer, err := s.store.LookupAdditionalLayer(*digest, name.String()); err == nil {
			layer.Release()
			return true
		}
	}
	return false
}

// resolved is where a layer's files are: an overlay is given no link, whose target could be mapped by nobody.
func resolved(dir string) string {
	if target, err := os.Readlink(dir); err == nil {
		return target
	}
	return dir
}

// recordStore is the store in which the library makes the record of an image.
func (s *Images) recordStore() cstorage.Store {
	if len(s.cfg.LayerStores) == 0 {
		return bounded(s.store)
	}
	return servedStore{bounded(s.store), s.cfg.LayerStores}
}

// servedStore puts layers of additional layer stores into its list of layers, which the store itself forgets to write: it
// knows them until crid ends.
type servedStore struct {
	cstorage.Store
	specs []string
}

func (s servedStore) LookupAdditionalLayer(toc digest.Digest, image string) (cstorage.AdditionalLayer, error) {
	layer, err := s.Store.LookupAdditionalLayer(toc, image)
	if err != nil {
		return nil, err
	}
	for _, spec := range s.specs {
		dir, _, byName := strings.Cut(spec, ":")
		if byName {
			dir = filepath.Join(dir, base64.StdEncoding.EncodeToString([]byte(image)))
		}
		dir = filepath.Join(dir, toc.String())
		if _, err := os.Stat(filepath.Join(dir, "diff")); err == nil {
			return servedLayer{layer, s.Store, dir}, nil
		}
	}
	layer.Release()
	return nil, cstorage.ErrLayerUnknown
}

// servedLayer is a layer at dir of an additional layer store.
type servedLayer struct {
	cstorage.AdditionalLayer
	store cstorage.Store
	dir   string
}

// PutAs makes the layer id of the link. Beside it lies where it leads, by which the store tells the layer store when the
// layer is removed.
func (l servedLayer) PutAs(id, parent string, names []string) (*cstorage.Layer, error) {
	staged, err := l.store.PrepareStagedLayer(nil, linking{l})
	if err != nil {
		return nil, err
	}
	layer, err := l.store.ApplyStagedLayer(cstorage.ApplyStagedLayerOptions{
		ID: id, ParentLayer: parent, Names: names, DiffOutput: staged, DiffOptions: &drivers.ApplyDiffWithDifferOpts{},
	})
	if err != nil {
		return layer, errors.Join(err, l.store.CleanupStagedLayer(staged))
	}
	overlay := filepath.Dir(filepath.Dir(filepath.Dir(staged.Target))) // staged at overlay/staging/<place>/dir
	err = errors.Join(os.Remove(filepath.Dir(staged.Target)),
		os.WriteFile(filepath.Join(overlay, id, "additionallayer"), []byte(l.dir), 0o644))
	return layer, err
}

// linking makes a link of the directory that is to become a layer's.
type linking struct{ layer servedLayer }

func (linking) Close() error { return nil }

func (l linking) ApplyDiff(dest string, _ *archive.TarOptions, _ *drivers.DifferOptions) (out drivers.DriverWithDifferOutput, err error) {
	mode := os.FileMode(0o755) // said, so that nobody gives the target its parent's
	out = drivers.DriverWithDifferOutput{TOCDigest: l.layer.TOCDigest(), Size: l.layer.CompressedSize(), RootDirMode: &mode}
	if err := os.Remove(dest); err != nil {
		return out, err
	}
	return out, os.Symlink(filepath.Join(l.layer.dir, "diff"), dest)
}
