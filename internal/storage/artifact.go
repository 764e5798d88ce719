package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// An artifact is stored as an image of one layer, in which each of its blobs is a file: so all that is true of images is
// true of it, that it can be mounted, leased, measured, verified and removed. Its id is the digest of its manifest, since
// many artifacts have one and the same empty configuration.

const (
	maxArtifactConfig = 4 << 20 // bytes, which are held in memory
	maxArtifactFiles  = 10000
)

// artifact is what a pull has found instead of an image.
type artifact struct {
	manifest []byte
	digest   digest.Digest
	config   imgspec.Descriptor
	files    []artifactFile
}

// artifactFile is one blob, and the file that it becomes.
type artifactFile struct {
	name string // a clean relative path
	blob imgspec.Descriptor
}

// newArtifact reads the manifest of an artifact. Invalid: a file of it has a name that is no path inside a directory.
func newArtifact(raw []byte, m *imgspec.Manifest) (*artifact, error) {
	a := &artifact{manifest: raw, digest: digest.FromBytes(raw), config: m.Config}
	if len(m.Layers) > maxArtifactFiles {
		return nil, fmt.Errorf("an artifact of more than %d files: %w", maxArtifactFiles, errBounds)
	}
	taken := map[string]bool{} // true: a file, false: a directory above one
	for _, blob := range m.Layers {
		if err := blob.Digest.Validate(); err != nil || blob.Size < 0 {
			return nil, fmt.Errorf("artifact: %q of %d bytes is no blob: %w", blob.Digest, blob.Size, errdef.Invalid)
		}
		name := blob.Annotations[imgspec.AnnotationTitle]
		if name == "" {
			name = blob.Digest.Algorithm().String() + "-" + blob.Digest.Encoded()
		}
		if why := badName(name); why != "" {
			return nil, fmt.Errorf("artifact: a file's name %q %s: %w", name, why, errdef.Invalid)
		}
		if _, there := taken[name]; there {
			return nil, fmt.Errorf("artifact: two of its files are named %q: %w", name, errdef.Invalid)
		}
		taken[name] = true
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if taken[dir] {
				return nil, fmt.Errorf("artifact: %q is a file and a directory: %w", dir, errdef.Invalid)
			}
			taken[dir] = false
		}
		a.files = append(a.files, artifactFile{name: name, blob: blob})
	}
	return a, nil
}

// badName tells why a file may not be named so; empty when it may. Names with .wh. would remove files of the layer.
func badName(name string) string {
	switch {
	case len(name) > maxEntryName || !cleanPath(name):
		return "is no clean relative path"
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "holds a control character"
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".wh.") {
			return "begins as those that stand for removed files"
		}
		if len(part) > 255 {
			return "is longer than a file's can be"
		}
	}
	return ""
}

func cleanPath(name string) bool {
	return name != "." && name != ".." && !path.IsAbs(name) && path.Clean(name) == name && !strings.HasPrefix(name, "../")
}

// storeArtifact brings the artifact into the store and returns its id. Who brings the same by another name waits. What is
// stored of it when that fails is an orphan, and collected.
func (s *Images) storeArtifact(ctx context.Context, src types.ImageSource, a *artifact, signed signatures, names ...string) (string, error) {
	id := a.digest.Encoded()
	if s.index.Load().damaged[id] != nil { // its layer cannot be mended, as an image's can
		if err := s.erase(ctx, id); err != nil {
			return "", err
		}
	}
	leave, err := s.gates.exclude(ctx, id)
	if err != nil {
		return "", err
	}
	defer leave()
	if s.store.Exists(id) {
		return id, s.keepSignatures(id, signed)
	}
	data := []cstorage.ImageBigDataOption{
		{Key: cstorage.ImageDigestBigDataKey, Data: a.manifest, Digest: a.digest},
		{Key: cstorage.ImageDigestManifestBigDataNamePrefix + "-" + a.digest.String(), Data: a.manifest, Digest: a.digest},
	}
	config, err := a.readConfig(ctx, src)
	if err != nil {
		return "", err
	}
	if config != nil {
		data = append(data, cstorage.ImageBigDataOption{Key: a.config.Digest.String(), Data: config, Digest: a.config.Digest})
	}
	top, err := s.putFiles(ctx, src, a.files)
	if err != nil {
		return "", err
	}
	_, err = s.signedBy(signed).CreateImage(id, names, top, "", &cstorage.ImageOptions{Digest: a.digest, BigData: data})
	return id, err
}

// meters are those of the files.
func (a *artifact) meters() []*meter {
	meters := []*meter{}
	for _, f := range a.files {
		meters = append(meters, newMeter(f.blob.Digest, f.blob.Size))
	}
	return meters
}

// readConfig reads the blob that stands where an image's configuration does; nil when there is none to be had, which the
// type of an empty one says.
func (a *artifact) readConfig(ctx context.Context, src types.ImageSource) ([]byte, error) {
	if a.config.MediaType == imgspec.MediaTypeEmptyJSON {
		return nil, nil
	}
	if a.config.Size > maxArtifactConfig {
		return nil, fmt.Errorf("artifact: a configuration of %d bytes: %w", a.config.Size, errBounds)
	}
	var config bytes.Buffer
	err := copyBlob(ctx, &config, src, a.config)
	return config.Bytes(), err
}

// putFiles stores the files as a layer and returns its id, empty when there are none.
func (s *Images) putFiles(ctx context.Context, src types.ImageSource, files []artifactFile) (string, error) {
	if len(files) == 0 {
		return "", nil
	}
	archive, feed := io.Pipe()
	written := make(chan struct{})
	go func() { // ends with the archive, or when it is closed
		defer close(written)
		feed.CloseWithError(writeFiles(ctx, feed, src, files))
	}()
	layer, _, err := bounded(s.store).PutLayer("", "", nil, "", false, &cstorage.LayerOptions{}, archive)
	archive.CloseWithError(errPutEnded)
	<-written
	if err != nil {
		return "", err
	}
	return layer.ID, nil
}

var errPutEnded = errors.New("the store takes no more of the layer")

// writeFiles writes an archive of the files. It begins with the directory that they are in, so that no name stands where
// compressed archives are told by their first bytes.
func writeFiles(ctx context.Context, to io.Writer, src types.ImageSource, files []artifactFile) error {
	archive := tar.NewWriter(to)
	made := map[string]bool{}
	mkdir := func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		return archive.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
	}
	err := mkdir(".")
	for _, f := range files {
		var above []string
		for dir := path.Dir(f.name); dir != "."; dir = path.Dir(dir) {
			above = append(above, dir)
		}
		for _, dir := range slices.Backward(above) {
			err = errors.Join(err, mkdir(dir))
		}
		if err == nil {
			err = archive.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: f.blob.Size})
		}
		if err == nil {
			err = copyBlob(ctx, archive, src, f.blob)
		}
		if err != nil {
			return err
		}
	}
	return archive.Close()
}

// copyBlob copies a blob that is what its descriptor says, to the last byte, or fails.
func copyBlob(ctx context.Context, to io.Writer, src types.ImageSource, d imgspec.Descriptor) (err error) {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("artifact: %w: %w", err, errdef.Invalid)
	}
	blob, _, err := src.GetBlob(ctx, types.BlobInfo{Digest: d.Digest, Size: d.Size, URLs: nil, MediaType: d.MediaType}, none.NoCache)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	verifier := d.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(to, verifier), within(ctx, io.LimitReader(blob, d.Size)))
	if err != nil {
		return fmt.Errorf("fetch blob %s: %w", d.Digest, err)
	}
	more, err := io.Copy(io.Discard, io.LimitReader(blob, 1))
	switch {
	case err != nil:
		return fmt.Errorf("fetch blob %s: %w", d.Digest, err)
	case n < d.Size:
		return fmt.Errorf("blob %s ends after %d of %d bytes: %w", d.Digest, n, d.Size, io.ErrUnexpectedEOF)
	case more > 0:
		return fmt.Errorf("blob %s has more than the %d bytes of its manifest", d.Digest, d.Size)
	case !verifier.Verified():
		return fmt.Errorf("what came as blob %s has another digest", d.Digest)
	}
	return nil
}
