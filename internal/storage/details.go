package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	cstorage "go.podman.io/storage"
)

// Details is all that the store knows of an image. What crid does not keep in mind of it is read when somebody asks.
type Details struct {
	Image    Image
	Digest   digest.Digest   // of the manifest for this platform
	Manifest json.RawMessage // as it was pulled; nil when another tool has left none
	Config   json.RawMessage // as its builder wrote it; nil for an artifact
	Layers   []LayerDetails  // the lowest first
	Share    Share           // zero until it was measured, and for an image of an additional store
}

// LayerDetails is one layer of an image.
type LayerDetails struct {
	DiffID string
	Size   uint64 // bytes, uncompressed
}

// Inspect tells all of one image.
func (s *Images) Inspect(_ context.Context, ref string) (Details, error) {
	e, err := s.lookup(ref)
	if err != nil {
		return Details{}, err
	}
	var from library = s
	if e.shelf != "" {
		from = &shelf{root: e.shelf}
	}
	d := Details{Image: e.image}
	d.Share, _ = s.Share(e.image.ID)
	if err := d.read(from, e); err != nil {
		return Details{}, fmt.Errorf("read image %s: %w", e.image.ID, err)
	}
	return d, nil
}

func (d *Details) read(from library, e *entry) error {
	id := e.image.ID
	manifest, err := readJSON(from, id, cstorage.ImageDigestBigDataKey)
	if manifest != nil {
		d.Manifest, d.Digest = manifest, digest.FromBytes(manifest)
	}
	if err == nil && e.image.ArtifactType == "" {
		d.Config, err = readJSON(from, id, digest.NewDigestFromEncoded(digest.SHA256, id).String())
		if d.Config == nil && err == nil && e.outline.Config.Digest != "" { // another tool has named the image
			d.Config, err = readJSON(from, id, e.outline.Config.Digest.String())
		}
	}
	if err != nil {
		return err
	}
	layers, err := from.layerMap()
	for _, dir := range slices.Backward(e.lower) {
		if l := layers[filepath.Base(filepath.Dir(dir))]; l != nil {
			d.Layers = append(d.Layers, LayerDetails{DiffID: l.UncompressedDigest.String(), Size: uint64(max(l.UncompressedSize, 0))})
		}
	}
	return err
}

// readJSON returns a piece of data that is JSON, or nil: there is none, or it is something else.
func readJSON(from library, imageID, key string) (json.RawMessage, error) {
	raw, err := from.data(imageID, key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !json.Valid(raw) {
		return nil, nil
	}
	return raw, err
}
