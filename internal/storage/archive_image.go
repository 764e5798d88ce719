package storage

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
)

// archivedImage is one image of an archive. To containers/image it is a reference and the source behind it, of the
// transport that its own tools have for such an archive: the signature policy has rules for that. Those of paths do not
// apply, since crid does not know where the archive comes from.
type archivedImage struct {
	transport  types.ImageTransport
	names      []reference.Named
	listed     digest.Digest                   // of the manifest, where the archive says it
	claims     []string                        // names with digests, to be proven
	open       func(ctx context.Context) error // to be called before anything is asked of the image
	board      *board                          // shows how far it is
	sys        *types.SystemContext            // which knows the platform's variant once that is chosen
	manifest   []byte
	signatures func(instance *digest.Digest) ([][]byte, error) // nil = it can have none
	blob       func(ctx context.Context, d digest.Digest) (io.ReadCloser, int64, error)
}

func (a *archivedImage) Transport() types.ImageTransport         { return a.transport }
func (a *archivedImage) StringWithinTransport() string           { return "archive" }
func (a *archivedImage) DockerReference() reference.Named        { return nil }
func (a *archivedImage) PolicyConfigurationIdentity() string     { return "" }
func (a *archivedImage) PolicyConfigurationNamespaces() []string { return nil }

// NewImage opens the image.
func (a *archivedImage) NewImage(ctx context.Context, sys *types.SystemContext) (types.ImageCloser, error) {
	return image.FromSource(ctx, sys, a)
}

// NewImageSource opens the image as what it consists of.
func (a *archivedImage) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return a, nil
}

// NewImageDestination refuses: an archive is only read.
func (a *archivedImage) NewImageDestination(context.Context, *types.SystemContext) (types.ImageDestination, error) {
	return nil, errReadOnly
}

// DeleteImage refuses: an archive is only read.
func (a *archivedImage) DeleteImage(context.Context, *types.SystemContext) error { return errReadOnly }

var errReadOnly = fmt.Errorf("an archive is only read: %w", errdef.Unsupported)

// Reference is the image.
func (a *archivedImage) Reference() types.ImageReference { return a }

// Close does nothing: the archive is its owner's.
func (a *archivedImage) Close() error { return nil }

// HasThreadSafeGetBlob is true: a member is read by its place.
func (a *archivedImage) HasThreadSafeGetBlob() bool { return true }

// LayerInfosForCopy is nil: the layers are as the manifest says.
func (a *archivedImage) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}

// GetSignatures gives those that lie beside the manifest.
func (a *archivedImage) GetSignatures(_ context.Context, instance *digest.Digest) ([][]byte, error) {
	if a.signatures == nil {
		return nil, nil
	}
	return a.signatures(instance)
}

// GetManifest gives the manifest, or the one of the list that has this digest.
func (a *archivedImage) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	raw := a.manifest
	if instance != nil {
		var err error
		if raw, err = a.small(ctx, *instance); err != nil {
			return nil, "", err
		}
	}
	return raw, manifest.GuessMIMEType(raw), nil
}

// small reads a blob that is held in memory, and compares it with its digest.
func (a *archivedImage) small(ctx context.Context, d digest.Digest) ([]byte, error) {
	from, size, err := a.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer from.Close() // of what was only read
	if size > maxArchiveJSON {
		return nil, fmt.Errorf("%s of the archive has %d bytes, %d are allowed: %w", d, size, maxArchiveJSON, errBounds)
	}
	raw, err := io.ReadAll(io.LimitReader(from, maxArchiveJSON))
	if err != nil {
		return nil, fmt.Errorf("read %s of the archive: %w", d, err)
	}
	if d.Algorithm().FromBytes(raw) != d {
		return nil, fmt.Errorf("%s of the archive does not match its digest: %w", d, errdef.Invalid)
	}
	return raw, nil
}

// GetBlob opens a layer or the configuration.
func (a *archivedImage) GetBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if err := info.Digest.Validate(); err != nil {
		return nil, 0, fmt.Errorf("%q: %w: %w", info.Digest, err, errdef.Invalid)
	}
	return a.blob(ctx, info.Digest)
}

// inMemory is a blob that is held in memory.
func inMemory(raw []byte) (io.ReadCloser, int64, error) {
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}
