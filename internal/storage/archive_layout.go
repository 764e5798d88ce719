package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// The names of members that tell what an archive is.
const (
	layoutMark   = imgspec.ImageLayoutFile
	layoutIndex  = imgspec.ImageIndexFile
	manifestFile = "manifest.json" // of docker save a list of images, of containers/image's directory a manifest
	dirMark      = "version"
)

// annotationName is where docker, buildkit and containerd write an image's full name.
const annotationName = "io.containerd.image.name"

// images finds what the archive holds, and reads nothing of an image yet: many may name the same large member. One that is both an OCI layout and an archive of docker save, as Docker makes them
// since version 25, counts as the first: its manifests are the registry's own.
func (a *archiveFile) images() ([]*archivedImage, error) {
	switch {
	case a.has(layoutMark) && a.has(layoutIndex):
		return a.ociImages()
	case a.has(dirMark) && a.has(manifestFile):
		return a.dirImage()
	case a.has(manifestFile):
		return a.dockerImages()
	case a.has("repositories"):
		return nil, fmt.Errorf("the archive is of a Docker before version 1.10, which names no image by its content: save it anew: %w", errdef.Invalid)
	}
	return nil, fmt.Errorf("the tar is no archive of images: it has neither %s and %s (OCI) nor %s (docker save) at its top: %w",
		layoutMark, layoutIndex, manifestFile, errdef.Invalid)
}

// blobAt opens a member as it is.
func (a *archiveFile) blobAt(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(within(ctx, r)), r.Size(), nil
}

// ociBlob opens a blob of an OCI layout.
func (a *archiveFile) ociBlob(ctx context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, 0, fmt.Errorf("%q of the archive: %w: %w", d, err, errdef.Invalid)
	}
	return a.blobAt(ctx, path.Join(imgspec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
}

// ociImages finds the images of an OCI layout: each manifest that its index has for this platform, once.
func (a *archiveFile) ociImages() ([]*archivedImage, error) {
	var index imgspec.Index
	if err := a.decode(layoutIndex, &index); err != nil {
		return nil, err
	}
	var all []*archivedImage
	var others []string
	known := map[digest.Digest]*archivedImage{}
	for _, d := range index.Manifests {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			others = append(others, p.OS+"/"+p.Architecture)
			continue
		}
		names := ociNames(d.Annotations)
		if img := known[d.Digest]; img != nil {
			img.names = append(img.names, names...)
			continue
		}
		img := &archivedImage{transport: ociarchive.Transport, blob: a.ociBlob, listed: d.Digest, names: names, claims: strings.Fields(d.Annotations[annotationPulled])}
		img.open = func(ctx context.Context) (err error) {
			img.manifest, err = img.small(ctx, img.listed)
			return err
		}
		known[d.Digest] = img
		all = append(all, img)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the archive has no image for linux/%s, but %d for others (%s): %w",
			runtime.GOARCH, len(others), strings.Join(sortedSet(others), ", "), errdef.NotFound)
	}
	return all, nil
}

// ociNames are the full names that an OCI layout gives an image. A bare tag, which many tools write, is none.
func ociNames(annotations map[string]string) []reference.Named {
	for _, key := range []string{annotationName, imgspec.AnnotationRefName} {
		text := annotations[key]
		if !strings.ContainsAny(text, ":/") {
			continue
		}
		if named, err := reference.ParseNormalizedNamed(text); err == nil {
			return []reference.Named{canonical(named)}
		}
	}
	return nil
}

// dirImage is the one image of a directory as containers/image writes it.
func (a *archiveFile) dirImage() ([]*archivedImage, error) {
	raw, err := a.read(manifestFile)
	if err != nil {
		return nil, err
	}
	img := &archivedImage{transport: directory.Transport, manifest: raw, open: func(context.Context) error { return nil }}
	img.blob = func(ctx context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
		if err := d.Validate(); err != nil {
			return nil, 0, fmt.Errorf("%q of the archive: %w: %w", d, err, errdef.Invalid)
		}
		if name := d.Encoded() + ".manifest.json"; a.has(name) {
			return a.blobAt(ctx, name)
		}
		return a.blobAt(ctx, d.Encoded())
	}
	if img.listed, err = manifest.Digest(raw); err != nil {
		return nil, fmt.Errorf("digest manifest: %w", err)
	}
	img.signatures = a.dirSignatures
	return []*archivedImage{img}, nil
}

// dirSignatures are those of such a directory: of its manifest, or of one that this lists. There may be as many, and all of them
// as large, as crid keeps.
func (a *archiveFile) dirSignatures(instance *digest.Digest) (all [][]byte, err error) {
	prefix := "signature-"
	if instance != nil {
		if err := instance.Validate(); err != nil {
			return nil, fmt.Errorf("%q of the archive: %w: %w", *instance, err, errdef.Invalid)
		}
		prefix = instance.Encoded() + "." + prefix
	}
	for n, size := 1, 0; a.has(prefix + strconv.Itoa(n)); n++ {
		signature, err := a.read(prefix + strconv.Itoa(n))
		if err != nil {
			return nil, err
		}
		if size += len(signature); n > maxSignatures || size > maxArchiveJSON {
			return nil, fmt.Errorf("the archive has more than %d signatures of an image, or more than %d bytes of them: %w", maxSignatures, maxArchiveJSON, errBounds)
		}
		all = append(all, signature)
	}
	return all, nil
}

// dockerImage is an image as docker save lists it.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archiveFile) dockerImages() ([]*archivedImage, error) {
	var listed []dockerImage
	if err := a.decode(manifestFile, &listed); err != nil {
		return nil, err
	}
	var all []*archivedImage
	for i, d := range listed {
		img := &archivedImage{transport: dockerarchive.Transport}
		for _, tag := range d.RepoTags {
			named, err := reference.ParseNormalizedNamed(tag)
			if err != nil {
				return nil, fmt.Errorf("image %d of the archive: its tag %q: %w: %w", i+1, tag, err, errdef.Invalid)
			}
			img.names = append(img.names, canonical(named))
		}
		img.open = func(ctx context.Context) error { return a.openDocker(ctx, img, d) }
		all = append(all, img)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the archive holds no image: %w", errdef.NotFound)
	}
	return all, nil
}

// openDocker makes an image of what docker save has written of it, with the manifest that podman and skopeo make of it, too.
func (a *archiveFile) openDocker(ctx context.Context, img *archivedImage, d dockerImage) error {
	config, err := a.read(d.Config)
	if err != nil {
		return err
	}
	diffIDs, err := diffIDsOf(config)
	if err != nil {
		return fmt.Errorf("%s of the archive: %w", d.Config, err)
	}
	if len(diffIDs) != len(d.Layers) {
		return fmt.Errorf("it has %d layers, and its configuration %d: %w", len(d.Layers), len(diffIDs), errdef.Invalid)
	}
	id, layers := digest.FromBytes(config), map[digest.Digest]string{}
	for i, diffID := range diffIDs {
		layers[diffID] = d.Layers[i]
	}
	img.blob = func(ctx context.Context, d digest.Digest) (io.ReadCloser, int64, error) {
		if d == id {
			return inMemory(config)
		}
		return a.plainLayer(ctx, layers[d])
	}
	img.manifest, err = a.dockerManifest(ctx, imgspec.Descriptor{Digest: id, Size: int64(len(config))}, diffIDs, layers)
	return err
}

// diffIDsOf are the layers that a configuration names, the lowest first.
func diffIDsOf(config []byte) ([]digest.Digest, error) {
	var parsed struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, fmt.Errorf("parse configuration: %w: %w", err, errdef.Invalid)
	}
	return parsed.RootFS.DiffIDs, nil
}

func (a *archiveFile) dockerManifest(ctx context.Context, config imgspec.Descriptor, diffIDs []digest.Digest, layers map[digest.Digest]string) ([]byte, error) {
	described := []manifest.Schema2Descriptor{}
	for _, diffID := range diffIDs {
		if err := diffID.Validate(); err != nil {
			return nil, fmt.Errorf("layer %q: %w: %w", diffID, err, errdef.Invalid)
		}
		size, err := a.plainSize(ctx, layers[diffID])
		if err != nil {
			return nil, err
		}
		described = append(described, manifest.Schema2Descriptor{MediaType: manifest.DockerV2Schema2LayerMediaType, Size: size, Digest: diffID})
	}
	m := manifest.Schema2FromComponents(manifest.Schema2Descriptor{
		MediaType: manifest.DockerV2Schema2ConfigMediaType, Size: config.Size, Digest: config.Digest,
	}, described)
	return m.Serialize()
}

// plainLayer opens a layer of docker save. Its digest is of what is in it; some tools compress it nevertheless.
func (a *archiveFile) plainLayer(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, 0, err
	}
	start := make([]byte, 10)
	n, err := r.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("read %s of the archive: %w", name, err)
	}
	switch archive.DetectCompression(start[:n]) {
	case archive.Uncompressed:
		return io.NopCloser(within(ctx, r)), r.Size(), nil
	case archive.Xz: // boundedSource says why
		return nil, 0, fmt.Errorf("%s of the archive is compressed with xz (build the image with gzip or zstd): %w", name, errdef.Invalid)
	}
	plain, err := archive.DecompressStream(within(ctx, r))
	if err != nil {
		return nil, 0, fmt.Errorf("decompress %s of the archive: %w: %w", name, err, errdef.Invalid)
	}
	return plain, -1, nil
}

// plainSize is how large a layer of docker save is, uncompressed. One that is compressed has to be read for that: a layer that
// is larger than what its disk has left could not be stored.
func (a *archiveFile) plainSize(ctx context.Context, name string) (int64, error) {
	if size, known := a.sizes[name]; known {
		return size, nil
	}
	plain, size, err := a.plainLayer(ctx, name)
	if err != nil || size >= 0 {
		return size, err
	}
	defer plain.Close() // of what was only read
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(a.file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("ask for the room on the disk: %w", err)
	}
	room := int64(st.Bavail) * st.Bsize
	size, err = io.Copy(io.Discard, io.LimitReader(plain, room+1))
	if err != nil {
		return 0, fmt.Errorf("decompress %s of the archive: %w: %w", name, err, errdef.Invalid)
	}
	if size > room {
		return 0, fmt.Errorf("%s of the archive is larger than the %d bytes that the disk of the image store has left: %w", name, room, errdef.Exhausted)
	}
	a.sizes[name] = size
	return size, nil
}
