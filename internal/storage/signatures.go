package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/failpoint"
)

// Signatures of a stored image lie where containers/image keeps them, so that it reads them itself, and those of images that other
// tools have pulled as well: one after the other in an item of the image's data, their lengths in its metadata.

// sizesKey is where the metadata of an image has the lengths of signatures, by the digest of the manifest that they are of.
const sizesKey = "signatures-sizes"

// signatures are those of one manifest, as the library stores them. The zero value is nothing to be stored.
type signatures struct {
	of       digest.Digest
	manifest []byte // which the store need not have: it gets another one of an image that was encrypted
	blobs    [][]byte
}

const signatureKey = "signature-"

func (s signatures) key() string { return signatureKey + s.of.Encoded() }

func (s signatures) manifestKey() string { return "manifest-" + s.of.String() }

func (s signatures) data() []byte { return slices.Concat(s.blobs...) }

func (s signatures) sizes() []int {
	sizes := []int{}
	for _, blob := range s.blobs {
		sizes = append(sizes, len(blob))
	}
	return sizes
}

// signaturesOf fetches all signatures of an image.
func signaturesOf(ctx context.Context, img *image.UnparsedImage) (signatures, error) {
	raw, _, err := img.Manifest(ctx)
	if err != nil {
		return signatures{}, err
	}
	found, err := img.UntrustedSignatures(ctx)
	if err != nil {
		return signatures{}, fmt.Errorf("fetch signatures: %w", err)
	}
	s := signatures{manifest: raw}
	if s.of, err = manifest.Digest(raw); err != nil {
		return signatures{}, fmt.Errorf("digest manifest: %w", err)
	}
	for _, sig := range found {
		blob, err := signatureBlob(sig)
		if err != nil {
			return signatures{}, err
		}
		s.blobs = append(s.blobs, blob)
	}
	return s, nil
}

// signatureBlob is a signature as the library stores it. Its types for them are internal, their methods are not.
func signatureBlob(sig any) ([]byte, error) {
	switch sig := sig.(type) {
	case interface{ UntrustedSignature() []byte }: // GPG
		return sig.UntrustedSignature(), nil
	case interface {
		UntrustedMIMEType() string
		UntrustedPayload() []byte
		UntrustedAnnotations() map[string]string
	}:
		raw, err := json.Marshal(map[string]any{
			"mimeType": sig.UntrustedMIMEType(), "payload": sig.UntrustedPayload(), "annotations": sig.UntrustedAnnotations(),
		})
		return append([]byte("\x00sigstore-json\n"), raw...), err
	}
	return nil, fmt.Errorf("store signature: crid does not know its format (%T)", sig)
}

// signedStore is the store for one pull, which gets the signatures together with the image, or before an image that is stored
// gets a name more: without them it could not be used where a policy asks for them.
type signedStore struct {
	cstorage.Store
	signatures
	keep func(id string, sig signatures) error // of an image that is stored
}

// signedBy is the store for the pull of an image with these signatures.
func (s *Images) signedBy(sig signatures) signedStore {
	return signedStore{s.recordStore(), sig, s.keepSignatures}
}

func (s signedStore) CreateImage(id string, names []string, layer, metadata string, o *cstorage.ImageOptions) (*cstorage.Image, error) {
	img, err := s.create(id, names, layer, metadata, o)
	failpoint.Hit("storage/pull/image-made")
	if errors.Is(err, cstorage.ErrDuplicateID) {
		if kept := s.keep(id, s.signatures); kept != nil {
			return nil, kept
		}
	}
	return img, err
}

func (s signedStore) create(id string, names []string, layer, metadata string, o *cstorage.ImageOptions) (*cstorage.Image, error) {
	if s.of == "" || o == nil { // the library never leaves them out
		return s.Store.CreateImage(id, names, layer, metadata, o)
	}
	with := *o
	var err error
	if with.Metadata, err = withSizes(with.Metadata, map[digest.Digest][]int{s.of: s.sizes()}); err != nil {
		return nil, err
	}
	data := s.data()
	with.BigData = append(slices.Clone(with.BigData), cstorage.ImageBigDataOption{Key: s.key(), Data: data, Digest: digest.FromBytes(data)})
	if !slices.ContainsFunc(with.BigData, func(d cstorage.ImageBigDataOption) bool { return d.Key == s.manifestKey() }) {
		with.BigData = append(with.BigData, cstorage.ImageBigDataOption{Key: s.manifestKey(), Data: s.manifest, Digest: s.of})
	}
	return s.Store.CreateImage(id, names, layer, metadata, &with)
}

// SetMetadata is called by the library for an image that is stored already, with metadata that knows nothing of the signatures that
// it has.
func (s signedStore) SetMetadata(id, metadata string) error {
	img, err := s.Store.Image(id)
	if err != nil {
		return err
	}
	_, sizes, err := parseSizes(img.Metadata)
	if err != nil {
		return err
	}
	if metadata, err = withSizes(metadata, sizes); err != nil {
		return err
	}
	defer failpoint.Hit("storage/pull/image-told")
	return s.Store.SetMetadata(id, metadata)
}

// beside are the signatures that others do not have.
func (s signatures) beside(others signatures) (more [][]byte) {
	for _, blob := range s.blobs {
		if !slices.ContainsFunc(others.blobs, func(b []byte) bool { return bytes.Equal(b, blob) }) {
			more = append(more, blob)
		}
	}
	return more
}

// lacks tells whether signatures cannot be added to the image, since it lies in a store that is only read. It is stored once more then.
func (s signatures) lacks(e *entry) bool { return e != nil && e.shelf != "" && len(s.blobs) > 0 }

// maxSignatures is how many signatures are kept of a manifest; nobody needs more than a few.
const maxSignatures = 128

// keepSignatures adds to the signatures of a stored image those that its registry has now. None is taken away: the same image may
// come from elsewhere, where nobody has signed it.
func (s *Images) keepSignatures(id string, sig signatures) error {
	if len(sig.blobs) == 0 {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("keep signatures of image %s: %w", id, err) }
	img, err := s.store.Image(id)
	if err != nil {
		return fail(err)
	}
	stored, err := s.storedSignatures(img, sig.of)
	if err != nil {
		return fail(err)
	}
	if sig.blobs = sig.beside(stored); len(sig.blobs) == 0 {
		return nil
	}
	sig.blobs = slices.Concat(sig.blobs, stored.blobs) // in this order: see told
	if len(sig.blobs) > maxSignatures {                // forgotten first, since those that stay are not at the end
		if err := s.tellSizes(id, img.Metadata, signatures{of: sig.of}); err != nil {
			return fail(err)
		}
		sig.blobs = sig.blobs[:maxSignatures]
	}
	items := []cstorage.ImageBigDataOption{{Key: sig.manifestKey(), Data: sig.manifest}, {Key: sig.key(), Data: sig.data()}}
	if slices.Contains(img.BigDataNames, sig.manifestKey()) {
		items = items[1:]
	}
	for _, item := range items {
		if err := s.store.SetImageBigData(id, item.Key, item.Data, manifest.Digest); err != nil {
			return fail(err)
		}
		failpoint.Hit("storage/signatures/stored")
	}
	if err := s.tellSizes(id, img.Metadata, sig); err != nil {
		return fail(err)
	}
	return nil
}

// tellSizes notes the lengths of signatures in the image's metadata.
func (s *Images) tellSizes(id, metadata string, sig signatures) error {
	metadata, err := withSizes(metadata, map[digest.Digest][]int{sig.of: sig.sizes()})
	if err == nil {
		err = s.store.SetMetadata(id, metadata)
		failpoint.Hit("storage/signatures/told")
	}
	return err
}

// told are the signatures whose lengths the metadata tells. In front of them may be more, when crid died before it told those; the
// next pull brings them again.
func told(data []byte, sizes []int) []byte {
	sum := 0
	for _, size := range sizes {
		sum += size
	}
	if sum < 0 || sum > len(data) {
		return data
	}
	return data[len(data)-sum:]
}

// toldStore lets the library read what is told of signatures.
type toldStore struct{ cstorage.Store }

func (s toldStore) ImageBigData(id, key string) ([]byte, error) {
	data, err := s.Store.ImageBigData(id, key)
	of, is := strings.CutPrefix(key, signatureKey)
	if err != nil || !is {
		return data, err
	}
	img, err := s.Image(id)
	if err != nil {
		return nil, err
	}
	_, sizes, err := parseSizes(img.Metadata)
	return told(data, sizes[digest.NewDigestFromEncoded(digest.Canonical, of)]), err
}

// storedSignatures are those of one manifest of an image; none when they are damaged, since the next pull brings them.
func (s *Images) storedSignatures(img *cstorage.Image, of digest.Digest) (signatures, error) {
	sig := signatures{of: of}
	_, all, err := parseSizes(img.Metadata)
	if err != nil || len(all[of]) == 0 {
		return sig, err
	}
	data, err := s.store.ImageBigData(img.ID, sig.key())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sig, err
	}
	data = told(data, all[of])
	for _, size := range all[of] {
		if size < 0 || size > len(data) {
			return signatures{of: of}, nil
		}
		sig.blobs, data = append(sig.blobs, data[:size]), data[size:]
	}
	if len(data) > 0 {
		return signatures{of: of}, nil
	}
	return sig, nil
}

// withSizes puts lengths of signatures into an image's metadata and leaves what else there is. What is there already stays as it
// is written.
func withSizes(metadata string, more map[digest.Digest][]int) (string, error) {
	all, sizes, err := parseSizes(metadata)
	if err != nil {
		return "", err
	}
	had := maps.Clone(sizes)
	if sizes == nil {
		sizes = map[digest.Digest][]int{}
	}
	maps.Copy(sizes, more)
	if maps.EqualFunc(had, sizes, slices.Equal) {
		return metadata, nil
	}
	if all[sizesKey], err = json.Marshal(sizes); err != nil {
		return "", err
	}
	out, err := json.Marshal(all)
	return string(out), err
}

// parseSizes reads an image's metadata, and in it the lengths of signatures.
func parseSizes(metadata string) (all map[string]json.RawMessage, sizes map[digest.Digest][]int, err error) {
	all = map[string]json.RawMessage{}
	if metadata == "" {
		return all, nil, nil
	}
	if err := json.Unmarshal([]byte(metadata), &all); err != nil || all == nil {
		return nil, nil, fmt.Errorf("the image's metadata is not containers/image's: %w", err)
	}
	if raw, ok := all[sizesKey]; ok {
		if err := json.Unmarshal(raw, &sizes); err != nil {
			return nil, nil, fmt.Errorf("the image's metadata is not containers/image's: %w", err)
		}
	}
	return all, sizes, nil
}

// signedManifests are the manifests of an image of which signatures are stored apart.
func signedManifests(img *cstorage.Image) ([]digest.Digest, error) {
	_, sizes, err := parseSizes(img.Metadata)
	return slices.Sorted(maps.Keys(sizes)), err
}
