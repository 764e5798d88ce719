package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Pods may name an image by the digest of the manifest that a registry has of it, or of a list with that. An archive of crid's
// has another manifest, of layers that are not compressed; it brings those of the registry along. They prove the name: a manifest
// of that digest names the configuration that is the image's id, and so its layers.

// annotationPulled is where an archive of crid's says by which names with digests its image was pulled.
const annotationPulled = "crid.pulled"

// manifestKey is the store's name of a manifest of an image.
func manifestKey(d digest.Digest) string {
	return cstorage.ImageDigestManifestBigDataNamePrefix + "-" + d.String()
}

// linked is what a manifest, or a list of them, names.
type linked struct {
	Config    struct{ Digest digest.Digest }
	Manifests []struct{ Digest digest.Digest }
}

func parseLinked(raw []byte) (l linked) {
	if json.Unmarshal(raw, &l) != nil {
		return linked{}
	}
	return l
}

// proof are the manifests that show that the digest d means the image id: the one of that digest, and if that is a list, one
// of those that it names. It is nil when there are none. blob gives what has a digest; nil = it is not there.
func proof(d, id digest.Digest, blob func(digest.Digest) []byte) map[digest.Digest][]byte {
	raw := blob(d)
	if raw == nil {
		return nil
	}
	named := parseLinked(raw)
	if named.Config.Digest == id || d == id { // an image, or an artifact, which is its manifest
		return map[digest.Digest][]byte{d: raw}
	}
	for _, m := range named.Manifests {
		if one := blob(m.Digest); one != nil && parseLinked(one).Config.Digest == id {
			return map[digest.Digest][]byte{d: raw, m.Digest: one}
		}
	}
	return nil
}

// addPulled finds what the archive says of how the image was pulled, for the repositories that it is saved by.
func (s *Images) addPulled(img *saved, digests []string) error {
	stored, err := s.store.Image(img.id)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	read := func(d digest.Digest) []byte {
		if !slices.Contains(stored.BigDataNames, manifestKey(d)) {
			return nil
		}
		raw, failed := s.store.ImageBigData(img.id, manifestKey(d))
		err = errors.Join(err, failed)
		if digest.FromBytes(raw) != d {
			return nil // of Docker's schema 1, or damaged
		}
		return raw
	}
	img.proofs = map[digest.Digest][]byte{}
	for _, name := range digests {
		ref, ok := parsePulled(name)
		if !ok || !img.isOf(ref) {
			continue
		}
		if found := proof(ref.Digest(), digest.NewDigestFromEncoded(digest.SHA256, img.id), read); found != nil {
			img.pulled = append(img.pulled, ref)
			maps.Copy(img.proofs, found)
		}
	}
	return err
}

// isOf tells whether the image is saved by a tag of ref's repository, or without any tag.
func (img *saved) isOf(ref reference.Named) bool {
	return len(img.tags) == 0 || slices.ContainsFunc(img.tags, func(tag string) bool { return strings.HasPrefix(tag, ref.Name()+":") })
}

// claim is the annotation for an image whose manifest in the archive has the digest own, which says itself what goes with a tag.
func (img *saved) claim(own digest.Digest) string {
	var names []string
	for _, ref := range img.pulled {
		if ref.Digest() != own || len(img.tags) == 0 {
			names = append(names, ref.String())
		}
	}
	return strings.Join(names, " ")
}

func parsePulled(text string) (reference.Canonical, bool) {
	named, err := reference.ParseNamed(text)
	if err != nil {
		return nil, false
	}
	ref, ok := named.(reference.Canonical)
	return ref, ok && ref.Digest().Validate() == nil
}

// prove keeps with the stored image the manifests that prove the names which the archive claims, and returns these names.
// Invalid: it does not prove one.
func (s *Images) prove(ctx context.Context, img *archivedImage, id digest.Digest) ([]reference.Named, error) {
	if len(img.claims) == 0 {
		return nil, nil
	}
	stored, err := s.store.Image(id.Encoded())
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	read := func(d digest.Digest) []byte {
		raw, err := img.small(ctx, d)
		if err != nil {
			return nil
		}
		return raw
	}
	var names []reference.Named
	for _, claim := range img.claims {
		ref, ok := parsePulled(claim)
		if !ok {
			return nil, fmt.Errorf("the archive says that it was pulled as %q, which is no name: %w", claim, errdef.Invalid)
		}
		manifests := proof(ref.Digest(), id, read)
		if manifests == nil {
			return nil, fmt.Errorf("the archive says that it was pulled as %s, and does not prove it: %w", claim, errdef.Invalid)
		}
		for d, raw := range manifests {
			if slices.Contains(stored.BigDataNames, manifestKey(d)) {
				continue
			}
			if err := s.store.SetImageBigData(stored.ID, manifestKey(d), raw, manifest.Digest); err != nil {
				return nil, fmt.Errorf("keep manifest %s: %w", d, err)
			}
			failpoint.Hit("storage/load/proven")
		}
		names = append(names, ref)
	}
	return names, nil
}
