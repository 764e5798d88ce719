package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/failpoint"
)

// copyOrMend brings an image into the store that is not there, or not whole. A layer is stored when it is on the store's
// list: those that are damaged are brought first.
func (s *Images) copyOrMend(ctx context.Context, d download, src *remoteImage, pulled reference.Named) (string, error) {
	img, err := src.open(ctx)
	if err != nil {
		return "", err
	}
	broken, err := s.brokenLayers()
	if err != nil {
		return "", err
	}
	if len(broken) > 0 && !isEncrypted(img) {
		if err := s.mendLayers(ctx, src.blobs(), img); err != nil {
			return "", err
		}
	}
	var plan []*layerPlan
	if !s.isServed(img, d.name) {
		plan, err = planLayers(ctx, img, d.board.meters())
	}
	if err != nil {
		return "", err
	}
	failpoint.Hit("storage/pull/resolved")
	if err := s.bringLayers(ctx, src.blobs(), plan); err != nil {
		return "", err
	}
	id, err := s.copyRecord(ctx, d, src, record{img, pulled})
	if was := img.ConfigInfo().Digest.Encoded(); errors.Is(err, cstorage.ErrDuplicateID) && s.index.Load().damaged[was] != nil {
		err = errors.Join(err, s.erase(ctx, was)) // its record names other layers; without it the pull is tried again
	}
	return id, err
}

// mendLayers fetches those of the image's layers that are damaged, one pull at a time.
func (s *Images) mendLayers(ctx context.Context, src types.ImageSource, img types.Image) error {
	select {
	case s.repair.turn <- struct{}{}:
		defer func() { <-s.repair.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	broken, err := s.brokenLayers()
	if err != nil || len(broken) == 0 {
		return err
	}
	blobs, err := layerBlobs(ctx, img)
	if err != nil {
		return fmt.Errorf("find out which layers it has: %w", err)
	}
	for _, l := range broken {
		blob, ok := blobs[l.UncompressedDigest]
		if !ok {
			continue // another image's
		}
		if err := s.mendLayer(ctx, src, blob, l); err != nil {
			return fmt.Errorf("mend layer %s: %w", l.ID, err)
		}
		slog.Info("a damaged layer was pulled again", "layer", l.ID)
	}
	return nil
}

// brokenLayers are the layers that are on the store's list but not on the disk, parents before children.
func (s *Images) brokenLayers() ([]*cstorage.Layer, error) {
	layers, err := s.layerMap()
	if err != nil {
		return nil, err
	}
	var broken []*cstorage.Layer
	for id, l := range layers {
		if !l.ReadOnly && errors.Is(checkLayer(s.layerDir(id)), errDamaged) {
			broken = append(broken, l)
		}
	}
	slices.SortFunc(broken, func(a, b *cstorage.Layer) int { return depth(layers, a.ID) - depth(layers, b.ID) })
	return broken, nil
}

// depth is how many layers the layer id is the topmost of.
func depth(layers map[string]*cstorage.Layer, id string) (n int) {
	for ; layers[id] != nil; id = layers[id].Parent {
		n++
	}
	return n
}

// layerBlobs are the blobs of the image's layers, by the digest of what is in them.
func layerBlobs(ctx context.Context, img types.Image) (map[digest.Digest]types.BlobInfo, error) {
	config, err := img.OCIConfig(ctx)
	if err != nil {
		return nil, err
	}
	infos := img.LayerInfos()
	if len(infos) != len(config.RootFS.DiffIDs) {
		return nil, nil // of Docker's schema 1, which does not tell
	}
	blobs := make(map[digest.Digest]types.BlobInfo, len(infos))
	for i, diffID := range config.RootFS.DiffIDs {
		blobs[diffID] = infos[i]
	}
	return blobs, nil
}

// mendLayer stores the blob as a layer of its own first: so it is verified and on the disk before it takes its place.
func (s *Images) mendLayer(ctx context.Context, src types.ImageSource, blob types.BlobInfo, l *cstorage.Layer) error {
	staged, err := s.stage(ctx, layerFrom(src, blob, l.UncompressedDigest))
	if err != nil {
		return err
	}
	fresh, err := s.applyStaged("", l.Parent, staged)
	if err != nil {
		return errors.Join(err, s.dropStaged(staged))
	}
	err = s.replaceLayer(l.ID, fresh.ID)
	err = errors.Join(err, s.store.DeleteLayer(fresh.ID))
	failpoint.Hit("storage/mend/fresh-dropped")
	return err
}

// replaceLayer moves what the layer fresh consists of to where the layer id should be. The files come last: they are
// what the layer is missed by.
func (s *Images) replaceLayer(id, fresh string) error {
	if err := os.Rename(s.recipePath(fresh), s.recipePath(id)); err != nil {
		return err
	}
	failpoint.Hit("storage/mend/recipe-renamed")
	dir, freshDir := filepath.Dir(s.layerDir(id)), filepath.Dir(s.layerDir(fresh))
	if st, err := os.Lstat(filepath.Join(dir, "link")); err == nil && st.Size() > 0 {
		err := os.Rename(s.layerDir(fresh), s.layerDir(id))
		failpoint.Hit("storage/mend/files-renamed")
		return err
	}
	if err := s.setAside(dir); err != nil {
		return err
	}
	short, err := os.ReadFile(filepath.Join(freshDir, "link"))
	if err != nil {
		return err
	}
	link := filepath.Join(s.root, "overlay", "l", string(short))
	if err := os.Remove(link); err != nil {
		return err
	}
	failpoint.Hit("storage/mend/unlinked")
	if err := os.Symlink(filepath.Join("..", id, "diff"), link); err != nil {
		return err
	}
	failpoint.Hit("storage/mend/linked")
	err = os.Rename(freshDir, dir)
	failpoint.Hit("storage/mend/dir-renamed")
	return err
}

// within ends the reading when ctx ends.
func within(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
