package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// An artifact is saved as its registry had it: the manifest that is its id, and the files, byte by byte, as its blobs.

// describeArtifact reads what the archive says of an artifact.
func (s *Images) describeArtifact(img *saved) error {
	id := digest.NewDigestFromEncoded(digest.SHA256, img.id)
	raw, err := s.store.ImageBigData(img.id, cstorage.ImageDigestBigDataKey)
	if err == nil && digest.FromBytes(raw) != id {
		err = fs.ErrNotExist
	}
	if err != nil {
		return fmt.Errorf("its manifest is missing or damaged (pull it again): %w: %w", err, errdef.Unavailable)
	}
	if img.artifact, err = examine(raw, imgspec.MediaTypeImageManifest); err != nil {
		return err
	}
	if img.config, err = s.artifactConfig(img); err != nil {
		return err
	}
	if img.layers, err = s.layersOf(img.id); err != nil {
		return err
	}
	if len(img.artifact.files) > 0 && len(img.layers) == 0 {
		return fmt.Errorf("its files are missing (pull it again): %w", errdef.Unavailable)
	}
	return s.addPulled(img, s.digestsOf(img.id))
}

// artifactConfig is the blob that stands where an image's configuration does. An empty one is not stored.
func (s *Images) artifactConfig(img *saved) ([]byte, error) {
	d := img.artifact.config.Digest
	if d == imgspec.DescriptorEmptyJSON.Digest {
		return imgspec.DescriptorEmptyJSON.Data, nil
	}
	raw, err := s.store.ImageBigData(img.id, d.String())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("its configuration %s was not pulled, since it is said to be empty: %w", d, errdef.Unsupported)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	case d.Algorithm().FromBytes(raw) != d:
		return nil, fmt.Errorf("its configuration does not match its digest (pull it again): %w", errdef.Unavailable)
	}
	return raw, nil
}

// saveArtifact adds the artifact's blobs and its manifest.
func (s *Images) saveArtifact(ctx context.Context, a *archiveWriter, img saved) (imgspec.Descriptor, error) {
	for _, f := range img.artifact.files {
		err := a.blob(f.blob.Digest, f.blob.Size, func(w io.Writer) error { return s.copyFile(ctx, img.layers[0].ID, f, w) })
		if err != nil {
			return imgspec.Descriptor{}, err
		}
	}
	config := img.artifact.config
	if err := a.blob(config.Digest, int64(len(img.config)), bytesTo(img.config)); err != nil {
		return imgspec.Descriptor{}, err
	}
	outline := parseOutline(img.artifact.manifest)
	return a.manifest(img.artifact.manifest, outline.artifactKind())
}

// copyFile copies a file of an artifact, and compares it with its digest.
func (s *Images) copyFile(ctx context.Context, layer string, f artifactFile, to io.Writer) error {
	root, err := os.Open(s.layerDir(layer))
	if err != nil {
		return err
	}
	defer root.Close()
	at, err := pathrs.OpenatInRoot(root, f.name)
	if err != nil {
		return fmt.Errorf("%s is missing (see crid image verify): %w", f.name, err)
	}
	defer at.Close()
	file, err := pathrs.Reopen(at, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	verifier := f.blob.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(to, verifier), within(ctx, io.LimitReader(file, f.blob.Size)))
	if err == nil && (n < f.blob.Size || !verifier.Verified()) {
		err = fmt.Errorf("%s differs from what was pulled (see crid image verify)", f.name)
	}
	return err
}
