package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// LoadRequest is an archive of images, and who is told of them.
type LoadRequest struct {
	Archive io.Reader // a tar: of docker save, of an OCI layout, or of a directory that containers/image wrote
	Name    string    // for the one image of the archive; empty = the names that the archive gives
	Loaded  func(img Image, existed bool) error

	// Progress is told how far the layers of an image are, by the goroutine that called Load, as PullRequest's is. It may be nil.
	Progress func(image string, layers []LayerProgress)
}

// Load stores the images of an archive and tells of each. The archive is kept on the store's disk until the end. What rules
// pulls rules this, too: the signature policy, by the archive's transport, and the bounds of layers. Images before one
// that fails stay.
//
// Errors: Invalid for what is no archive of images, or asks for too much, SignatureInvalid, Exhausted for a full disk.
func (s *Images) Load(ctx context.Context, r LoadRequest) (err error) {
	done, err := s.pulls.enter()
	if err != nil {
		return err
	}
	defer done()
	var given []reference.Named
	if r.Name != "" {
		name, err := s.tagName(r.Name)
		if err != nil {
			return err
		}
		given = []reference.Named{name}
	}
	file, err := s.spool(ctx, r.Archive)
	if err != nil {
		return s.loadError(ctx, err)
	}
	defer func() { err = errors.Join(err, file.close()) }()
	images, err := file.images()
	if err != nil {
		return s.loadError(ctx, err)
	}
	if len(images) > 1 && given != nil {
		return fmt.Errorf("the archive holds %d images, which cannot have the one name %s: %w", len(images), r.Name, errdef.Invalid)
	}
	if len(images) > maxImages {
		return fmt.Errorf("the archive holds %d images, %d are allowed: %w", len(images), maxImages, errBounds)
	}
	began := time.Now()
	for i, img := range images {
		if images[i] = nil; given != nil { // what was read of it goes with it
			img.names = given
		}
		stored, existed, err := s.watchLoad(ctx, img, r.Progress)
		if err != nil {
			err = s.loadError(ctx, fmt.Errorf("image %s: %w", img.title(), err))
			if errors.Is(err, errdef.Exhausted) {
				s.problems.set("layers of a failed load", s.dropOrphans(began.Before))
			}
			return err
		}
		if err := r.Loaded(stored, existed); err != nil {
			return err
		}
	}
	return nil
}

// loadError says what became of a load.
func (s *Images) loadError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("load images: %w", context.Cause(ctx))
	case isSignature(err):
		return fmt.Errorf("%w: load images: %w", errdef.SignatureInvalid, err)
	}
	return fmt.Errorf("load images: %w", errdef.Told(err))
}

// title names an image that may have no name.
func (a *archivedImage) title() string {
	switch {
	case len(a.names) > 0:
		return a.names[0].String()
	case a.listed != "":
		return a.listed.String()
	}
	return "without a name"
}

// watchLoad stores one image, and tells of it meanwhile.
func (s *Images) watchLoad(ctx context.Context, img *archivedImage, tell func(string, []LayerProgress)) (stored Image, existed bool, err error) {
	img.board = new(board)
	if tell == nil {
		return s.loadImage(ctx, img)
	}
	done := make(chan struct{})
	go func() { // ends with the image, or soon after ctx
		defer close(done)
		stored, existed, err = s.loadImage(ctx, img)
	}()
	_ = img.board.watch(context.WithoutCancel(ctx), done, func(layers []LayerProgress) { tell(img.title(), layers) }) // to the end
	return stored, existed, err
}

// loadImage stores one image. A removal beside it may take away what was to be used again: then it is done once more.
func (s *Images) loadImage(ctx context.Context, img *archivedImage) (stored Image, existed bool, err error) {
	policy, err := loadPolicy(s.policyPath())
	if err != nil {
		return Image{}, false, err
	}
	defer func() { err = errors.Join(err, policy.Destroy()) }()
	s.pulls.layers.RLock()
	defer s.pulls.layers.RUnlock()
	for left := tries - 1; ; left-- {
		before := s.gates.removals()
		stored, existed, err = s.storeArchived(ctx, img, policy)
		if err == nil || left == 0 || ctx.Err() != nil || s.gates.removals() == before {
			return stored, existed, err
		}
	}
}

func (s *Images) storeArchived(ctx context.Context, img *archivedImage, policy *signature.PolicyContext) (_ Image, existed bool, err error) {
	if err := img.open(ctx); err != nil {
		return Image{}, false, err
	}
	img.sys = s.systemContext(Auth{})
	chosen, err := instanceOf(ctx, img, img.sys)
	if err != nil {
		return Image{}, false, err
	}
	if _, err := policy.IsRunningImageAllowed(ctx, chosen); err != nil {
		return Image{}, false, err
	}
	content, err := s.contentOf(ctx, img, chosen)
	if err != nil {
		return Image{}, false, err
	}
	signed, err := signaturesOf(ctx, chosen)
	if err != nil {
		return Image{}, false, err
	}
	if len(signed.blobs) == 0 {
		signed = signatures{} // there is nothing to be stored
	}
	id := content.id
	there, known := s.index.Load().byID[id.Encoded()]
	existed = known && there.shelf == "" // what is loaded must not go with another store
	if !existed {
		if err := content.bring(signed); err != nil {
			return Image{}, false, err
		}
		img.board.settle()
	}
	if err := s.keepSignatures(id.Encoded(), signed); err != nil {
		return Image{}, false, err
	}
	if err := s.noteLoaded(id.Encoded(), img.transport); err != nil {
		return Image{}, false, err
	}
	proven, err := s.prove(ctx, img, id)
	if err != nil {
		return Image{}, false, err
	}
	if err := s.nameImage(id.Encoded(), append(proven, img.allNames()...)...); err != nil {
		return Image{}, false, err
	}
	if err := s.refresh(); err != nil {
		return Image{}, false, err
	}
	e, ok := s.index.Load().byID[id.Encoded()]
	if !ok {
		return Image{}, false, fmt.Errorf("it was removed while it was loaded, or is damaged (load it again): %w: %w", errors.Join(s.index.Load().damaged[id.Encoded()]), errdef.Unavailable)
	}
	return e.image, existed, nil
}

// archived is what an archive holds for this platform, an image or an artifact.
type archived struct {
	id    digest.Digest
	bring func(signed signatures) error // into the store, without a name
}

// contentOf refuses what crid does not take.
func (s *Images) contentOf(ctx context.Context, img *archivedImage, chosen *image.UnparsedImage) (archived, error) {
	raw, kind, err := chosen.Manifest(ctx)
	if err != nil {
		return archived{}, fmt.Errorf("%w: %w", err, errdef.Invalid)
	}
	a, err := examine(raw, kind)
	if err != nil {
		return archived{}, err
	}
	if a != nil {
		return archived{a.digest, func(signed signatures) error {
			img.board.show(a.meters())
			_, err := s.storeArtifact(ctx, rawSource{img.bounded()}, a, signed)
			return err
		}}, nil
	}
	described, err := image.FromUnparsedImage(ctx, img.sys, chosen)
	if err != nil {
		return archived{}, fmt.Errorf("%w: %w", err, errdef.Invalid)
	}
	id := described.ConfigInfo().Digest
	if id.Validate() != nil {
		return archived{}, fmt.Errorf("its configuration is named %q, which is no digest: %w", id, errdef.Invalid)
	}
	return archived{id, func(signed signatures) error { return s.copyArchived(ctx, img, described, signed) }}, nil
}

// loadedBy begins the names of what says in the store by which transports an image was loaded: the signature policy is asked
// about it by the same when it is used.
const loadedBy = "crid-loaded-"

func (s *Images) noteLoaded(id string, by types.ImageTransport) error {
	noted, err := s.store.ListImageBigData(id)
	if err != nil {
		return fmt.Errorf("note that image %s was loaded: %w", id, err)
	}
	key := loadedBy + by.Name()
	if slices.Contains(noted, key) {
		return nil
	}
	if err := s.store.SetImageBigData(id, key, []byte(by.Name()), nil); err != nil {
		return fmt.Errorf("note that image %s was loaded: %w", id, err)
	}
	failpoint.Hit("storage/load/noted")
	return nil
}

// archivesOf are the image as the archives that it was loaded from.
func (s *Images) archivesOf(id string) ([]types.ImageReference, error) {
	noted, err := s.store.ListImageBigData(id)
	var all []types.ImageReference
	for _, by := range []types.ImageTransport{ociarchive.Transport, dockerarchive.Transport, directory.Transport} {
		if slices.Contains(noted, loadedBy+by.Name()) {
			all = append(all, &archivedImage{transport: by})
		}
	}
	return all, err
}

// allNames are those of the archive, and with the digest of the manifest, where the archive says it: a pod may ask for
// either, as after a pull.
func (a *archivedImage) allNames() []reference.Named {
	var all []reference.Named
	for _, name := range a.names {
		if named, err := reference.WithDigest(reference.TrimNamed(name), a.listed); err == nil {
			all = append(all, named)
		}
	}
	return append(all, a.names...)
}

// copyArchived brings the image into the store without a name.
func (s *Images) copyArchived(ctx context.Context, img *archivedImage, described types.Image, signed signatures) (err error) {
	id, bounds := described.ConfigInfo().Digest.Encoded(), img.bounded()
	options := &copy.Options{SourceCtx: img.sys, DestinationCtx: img.sys, RemoveSignatures: true}
	if isEncrypted(described) {
		if options.OciDecryptConfig, err = s.decryption(); err != nil {
			return err
		}
	} else if err := s.mendLayers(ctx, bounds, described); err != nil {
		return err
	}
	meters := []*meter{}
	for _, layer := range described.LayerInfos() {
		meters = append(meters, newMeter(layer.Digest, layer.Size))
	}
	img.board.show(meters)
	plan, err := planLayers(ctx, described, meters)
	if err == nil {
		err = s.bringLayers(ctx, bounds, plan)
	}
	if err != nil {
		return err
	}
	if s.index.Load().damaged[id] != nil {
		if err := s.erase(ctx, id); err != nil { // its record may name other layers
			return err
		}
	}
	dst, err := istorage.Transport.NewStoreReference(s.signedBy(signed), nil, id)
	if err != nil {
		return fmt.Errorf("name image in the store: %w", err)
	}
	checked, err := acceptAll()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, checked.Destroy()) }()
	_, err = copy.Image(ctx, checked, dst, boundedImage{img, bounds}, options)
	failpoint.Hit("storage/load/copied")
	return err
}

// bounded is the image as its blobs are read.
func (a *archivedImage) bounded() boundedSource { return boundedSource{a, new(atomic.Uint64), a.board} }

// boundedImage is an image whose source has bounds.
type boundedImage struct {
	types.ImageReference
	source types.ImageSource
}

// NewImageSource gives the source that has bounds.
func (b boundedImage) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return b.source, nil
}
