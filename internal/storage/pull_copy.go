package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// fetch pulls the first of the names that its registry has.
func (s *Images) fetch(ctx context.Context, names []reference.Named, key flightKey, b *board) (_ Image, err error) {
	ctx, stop := withinMemory(ctx, s.pulls.memory)
	defer stop()
	policy, err := loadPolicy(key.policy)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", names[0], err)
	}
	defer func() { err = errors.Join(err, policy.Destroy()) }()
	keep, err := s.keepsSignatures()
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", names[0], err)
	}
	var own *os.File // what it lends is read until the pull is over
	if key.own != "" {
		if own, err = lend(key.own); err != nil {
			return Image{}, fmt.Errorf("pull image %s: %w", names[0], err)
		}
		defer own.Close() // nothing is lost with it
	}
	s.pulls.layers.RLock()
	defer s.pulls.layers.RUnlock()
	var failed error
	for _, name := range names {
		var img Image
		d := download{name: name, policy: policy, keep: keep, read: &s.pulls.bytes, board: b, wire: &s.pulls.wire}
		if d.sys, err = s.contextFor(name, key); err == nil {
			if own != nil {
				d.sys.AuthFilePath = own.Name()
			}
			img, err = s.fetchOne(ctx, d)
		}
		if err == nil {
			return img, nil
		}
		failed = errors.Join(failed, pullError(ctx, name.String(), err))
		if ctx.Err() != nil {
			break
		}
	}
	return Image{}, failed
}

// download is one name to be pulled, and what rules it.
type download struct {
	name   reference.Named
	sys    *types.SystemContext
	policy *signature.PolicyContext
	keep   bool           // signatures are stored
	read   *atomic.Uint64 // counts the bytes of its blobs
	board  *board         // shows how far it is
	wire   *wire
}

// tries is how often a pull is begun that removals beside it spoil.
const tries = 5

// fetchOne pulls one name. A removal beside it may take away what the pull meant to use again: then it is done once
// more, a few times.
func (s *Images) fetchOne(ctx context.Context, d download) (Image, error) {
	for left := tries - 1; ; left-- {
		before := s.gates.removals()
		img, err := s.copyImage(ctx, d)
		if err == nil || left == 0 || ctx.Err() != nil || s.gates.removals() == before {
			return img, err
		}
	}
}

// copyImage brings the image into the store and names it. The name with the digest comes with the image itself,
// the tag moves last: until then the pull has not happened.
func (s *Images) copyImage(ctx context.Context, d download) (_ Image, err error) {
	src, err := openRemote(ctx, d)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	var pulled reference.Named
	var meters []*meter
	err = d.wire.patiently(ctx, src.host(), func(ctx context.Context) (err error) {
		if pulled, err = src.canonicalName(ctx); err != nil {
			return err
		}
		if err = src.checkPolicy(ctx, d); err != nil { // of an image that is stored, too
			return err
		}
		if err = src.examine(ctx, d); err != nil {
			return err
		}
		meters, err = src.meters(ctx, d)
		return err
	})
	if err != nil {
		return Image{}, err
	}
	d.board.show(meters)
	x := s.index.Load()
	id := x.stored(pulled, d.name)
	if src.signed.lacks(x.byID[id]) || !src.isStoredAs(x.byID[id]) {
		id = ""
	}
	switch {
	case id != "":
		err = s.keepSignatures(id, src.signed)
	case src.artifact != nil:
		id, err = s.storeArtifact(ctx, rawSource{src.blobs()}, src.artifact, src.signed, pulled.String())
	default:
		id, err = s.copyOrMend(ctx, d, src, pulled)
	}
	if err != nil {
		return Image{}, err
	}
	d.board.settle()
	if err := s.nameImage(id, pulled, d.name); err != nil {
		return Image{}, err
	}
	if err := s.refresh(); err != nil {
		return Image{}, err
	}
	x = s.index.Load()
	if e, ok := x.byID[id]; ok {
		return e.image, nil
	}
	if err := x.damaged[id]; err != nil {
		return Image{}, fmt.Errorf("what is stored of it is damaged, and the pull did not mend it (remove the image, then pull it): %w: %w", err, errdef.Unavailable)
	}
	return Image{}, fmt.Errorf("it was removed while it was pulled: %w", errdef.Unavailable)
}

// record is what the store is to know of an image.
type record struct {
	img  types.Image
	name reference.Named // with its digest
}

// copyRecord makes the store's record of the image. Its layers are in the store, unless planLayers knows none.
func (s *Images) copyRecord(ctx context.Context, d download, src *remoteImage, r record) (_ string, err error) {
	options := &copy.Options{
		SourceCtx:        d.sys,
		DestinationCtx:   d.sys,
		RemoveSignatures: true, // signedStore brings them
	}
	id := ""
	if isEncrypted(r.img) {
		if options.OciDecryptConfig, err = s.decryption(); err != nil {
			return "", err
		}
		r.name, id = nil, r.img.ConfigInfo().Digest.Encoded() // its name follows: the library gives no manifest the name of another's digest
	}
	dst, err := istorage.Transport.NewStoreReference(s.signedBy(src.signed), r.name, id)
	if err != nil {
		return "", fmt.Errorf("name image in the store: %w", err)
	}
	checked, err := acceptAll()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, checked.Destroy()) }()
	var stored types.ImageReference
	options.ReportResolvedReference = &stored
	if _, err = copy.Image(ctx, checked, dst, src, options); err != nil {
		return "", err
	}
	failpoint.Hit("storage/pull/copied")
	_, img, err := istorage.ResolveReference(stored)
	if err != nil {
		return "", fmt.Errorf("find pulled image in the store: %w", err)
	}
	return img.ID, nil
}

// nameImage gives the image the names it was pulled by, taking the tag from the image that had it.
func (s *Images) nameImage(id string, names ...reference.Named) error {
	var add []string
	x := s.index.Load()
	for _, name := range names {
		e, ok := x.byID[id]
		if !ok || !slices.Contains(e.image.RepoTags, name.String()) && !slices.Contains(e.image.RepoDigests, name.String()) {
			add = append(add, name.String())
		}
	}
	if len(add) == 0 {
		return nil
	}
	if err := s.store.AddNames(id, add); err != nil {
		return fmt.Errorf("name image %s: %w", id, err)
	}
	failpoint.Hit("storage/pull/named")
	return nil
}

// remoteImage is an image in a registry, opened. It is a reference that copy.Image opens once more and gets what is
// open already, so that the manifest is fetched once, and the digest is of the very manifest that is copied.
type remoteImage struct {
	types.ImageReference
	name reference.Named
	d    download

	config        digest.Digest // of the configuration
	configuration []byte        // fetched already

	mu   sync.Mutex          // guards srcs; nothing is waited for under it
	srcs []types.ImageSource // the last is in use; what began by the others goes on

	signed   signatures // that are to be kept
	outline  outline    // of the manifest for this platform
	artifact *artifact  // nil = an image
}

func openRemote(ctx context.Context, d download) (*remoteImage, error) {
	ref, err := docker.NewReference(d.name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdef.Invalid)
	}
	r := &remoteImage{ImageReference: ref, name: d.name, d: d}
	if err := r.renew(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// renew begins a new session with the registry.
func (r *remoteImage) renew(ctx context.Context) error {
	var src types.ImageSource
	err := r.d.wire.patiently(ctx, r.host(), func(ctx context.Context) (err error) {
		src, err = r.ImageReference.NewImageSource(ctx, r.d.sys)
		return err
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.srcs = append(r.srcs, src)
	return nil
}

// source is what the image is read from.
func (r *remoteImage) source() types.ImageSource {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.srcs[len(r.srcs)-1]
}

// host is the registry, of which a mirror may have answered.
func (r *remoteImage) host() string { return reference.Domain(r.name) }

// NewImageSource hands over what is open, without what only the library's own sources have: signatures of all formats,
// which checkPolicy has looked at before, and layers in parts.
func (r *remoteImage) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return r.blobs(), nil
}

// blobs is the image as its blobs are read.
func (r *remoteImage) blobs() boundedSource {
	return boundedSource{wired{r.source(), r}, r.d.read, r.d.board}
}

func (r *remoteImage) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for _, src := range r.srcs {
		failed = errors.Join(failed, src.Close())
	}
	return failed
}

// open describes the image for this platform.
func (r *remoteImage) open(ctx context.Context) (img types.Image, err error) {
	return img, r.d.wire.patiently(ctx, r.host(), func(ctx context.Context) error {
		chosen, err := r.instance(ctx, r.d)
		if err != nil {
			return err
		}
		if img, err = image.FromUnparsedImage(ctx, r.d.sys, chosen); err != nil {
			return err
		}
		r.config = img.ConfigInfo().Digest
		r.configuration, err = img.ConfigBlob(ctx)
		return err
	})
}

// canonicalName is the repository with the digest of what the registry answered, a manifest or a list of them.
func (r *remoteImage) canonicalName(ctx context.Context) (reference.Named, error) {
	if _, ok := r.name.(reference.Digested); ok {
		return r.name, nil
	}
	data, _, err := r.source().GetManifest(ctx, nil)
	if err != nil {
		return nil, err
	}
	d, err := manifest.Digest(data)
	if err != nil {
		return nil, fmt.Errorf("digest manifest: %w", err)
	}
	return reference.WithDigest(reference.TrimNamed(r.name), d)
}

// checkPolicy asks the signature policy about the image for this platform, and takes the signatures that are to be kept.
func (r *remoteImage) checkPolicy(ctx context.Context, d download) error {
	chosen, err := r.instance(ctx, d)
	if err != nil {
		return err
	}
	if _, err = d.policy.IsRunningImageAllowed(ctx, chosen); err != nil || !d.keep {
		return err
	}
	r.signed, err = signaturesOf(ctx, chosen)
	return err
}

// isStoredAs tells whether the entry, if any, is of what the registry has. By the digest of a list another tool may have stored the
// image for another platform.
func (r *remoteImage) isStoredAs(e *entry) bool {
	if e == nil || r.artifact != nil {
		return e == nil || e.image.ID == r.artifact.digest.Encoded()
	}
	return e.outline.Config.Digest == "" || e.outline.Config.Digest == r.outline.Config.Digest
}

// meters are those of the image's layers.
func (r *remoteImage) meters(ctx context.Context, d download) ([]*meter, error) {
	chosen, err := r.instance(ctx, d)
	if err != nil {
		return nil, err
	}
	raw, kind, err := chosen.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	parsed, err := manifest.FromBlob(raw, manifest.NormalizedMIMEType(kind))
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	meters := []*meter{}
	for _, layer := range parsed.LayerInfos() {
		if !layer.EmptyLayer {
			meters = append(meters, newMeter(layer.Digest, layer.Size))
		}
	}
	return meters, nil
}

// instance is the image for this platform.
func (r *remoteImage) instance(ctx context.Context, d download) (*image.UnparsedImage, error) {
	return instanceOf(ctx, r.source(), d.sys)
}

// instanceOf is the image for this platform.
func instanceOf(ctx context.Context, src types.ImageSource, sys *types.SystemContext) (*image.UnparsedImage, error) {
	data, kind, err := src.GetManifest(ctx, nil)
	if err != nil {
		return nil, err
	}
	if !manifest.MIMETypeIsMultiImage(kind) {
		return image.UnparsedInstance(src, nil), nil
	}
	list, err := manifest.ListFromBlob(data, kind)
	if err != nil {
		return nil, fmt.Errorf("parse list of manifests: %w", err)
	}
	chosen, err := chooseInstance(list, sys)
	if err != nil {
		return nil, err
	}
	return image.UnparsedInstance(src, &chosen), nil
}
