package storage

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// Format is how an archive of images is laid out.
type Format string

// The formats. Docker's is what docker save writes since version 25: an OCI layout that docker load, of any version, and
// podman read by the list of images that lies beside.
const (
	DockerArchive Format = "docker-archive"
	OCIArchive    Format = "oci-archive"
)

// SaveRequest says what is saved.
type SaveRequest struct {
	Refs   []string
	Format Format

	// Progress is told how far the layers of all images are, by the goroutine that called Save: when something has changed, about
	// every 100 ms, and at the end. It may be nil.
	Progress func([]LayerProgress)
}

// saved is one image to be saved, and the tags that the archive gives it.
type saved struct {
	id     string
	tags   []string
	config []byte
	layers []*cstorage.Layer // the lowest first
	pulled []reference.Canonical
	proofs map[digest.Digest][]byte // manifests that prove pulled

	kind     string    // of an artifact; empty = an image
	artifact *artifact // nil = an image
}

// Save writes an archive of images to out: each with the name by which it is asked for, or else with all of its tags. Nothing is
// kept on the disk meanwhile; layers are put together again as they were pulled, uncompressed, and compared with their digests, so
// that after an error what was written is of no use. The images cannot be removed until it ends.
//
// Errors: NotFound, Invalid, Unsupported for an image whose layers did not come as archives, Unavailable for a damaged one.
func (s *Images) Save(ctx context.Context, r SaveRequest, out io.Writer) error {
	if r.Format != DockerArchive && r.Format != OCIArchive {
		return fmt.Errorf("format %q: choose %s or %s: %w", r.Format, DockerArchive, OCIArchive, errdef.Invalid)
	}
	images, err := s.toSave(r)
	if err != nil {
		return err
	}
	for i := range images {
		release, err := s.Hold(ctx, images[i].id)
		if err != nil {
			return err
		}
		defer release()
		if err := s.describe(&images[i]); err != nil {
			return fmt.Errorf("save image %s: %w", images[i].id, err)
		}
	}
	a := newArchiveWriter(out, images, r.Progress)
	for _, img := range images {
		if err := s.saveOne(ctx, a, img); err != nil {
			return fmt.Errorf("save image %s: %w", img.id, err)
		}
	}
	return a.finish(r.Format)
}

// toSave finds what is to be saved, each image once.
func (s *Images) toSave(r SaveRequest) ([]saved, error) {
	var all []saved
	for _, ref := range r.Refs {
		e, err := s.lookupOwn(ref)
		if err != nil {
			return nil, err
		}
		if kind := e.image.ArtifactType; kind != "" && r.Format == DockerArchive {
			return nil, fmt.Errorf("image %s is an artifact (%s), which no %s can hold (save it as %s): %w", ref, kind, DockerArchive, OCIArchive, errdef.Unsupported)
		}
		name, err := s.nameAmong(ref, e.image.RepoTags)
		if err != nil {
			return nil, err
		}
		tags := e.image.RepoTags
		if name != "" {
			tags = []string{name}
		}
		i := slices.IndexFunc(all, func(other saved) bool { return other.id == e.image.ID })
		if i < 0 {
			all = append(all, saved{id: e.image.ID, tags: slices.Clone(tags), kind: e.image.ArtifactType})
			continue
		}
		all[i].tags = sortedSet(slices.Concat(all[i].tags, tags))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no image is named: %w", errdef.Invalid)
	}
	return all, nil
}

// describe reads what the archive says of the image, and looks whether it can be saved.
func (s *Images) describe(img *saved) error {
	if img.kind != "" {
		return s.describeArtifact(img)
	}
	var err error
	if img.config, err = s.configOf(img.id); err != nil {
		return err
	}
	if img.layers, err = s.layersOf(img.id); err != nil {
		return err
	}
	if err := s.addPulled(img, s.digestsOf(img.id)); err != nil {
		return err
	}
	named, err := diffIDsOf(img.config)
	if err != nil {
		return err
	}
	var stored []digest.Digest
	for _, l := range img.layers {
		if why := s.incomparable(l); why != "" {
			return fmt.Errorf("layer %s: %s: %w", l.ID, why, errdef.Unsupported)
		}
		stored = append(stored, l.UncompressedDigest)
	}
	if !slices.Equal(stored, named) {
		return fmt.Errorf("its layers are not those that its configuration names: %w", errdef.Unsupported)
	}
	return nil
}

// digestsOf are the names with digests of an image.
func (s *Images) digestsOf(id string) []string {
	if e, ok := s.index.Load().byID[id]; ok {
		return e.image.RepoDigests
	}
	return nil // it is damaged since: its layers will say so
}

// configOf is the image's configuration, byte by byte: its digest is the image's id.
func (s *Images) configOf(id string) ([]byte, error) {
	key := digest.NewDigestFromEncoded(digest.SHA256, id)
	raw, err := s.store.ImageBigData(id, key.String())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("its id is not that of a configuration, as in Docker's schema 1 (pull it in another form): %w", errdef.Unsupported)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	case digest.FromBytes(raw) != key:
		return nil, fmt.Errorf("its configuration does not match its digest (pull it again): %w", errdef.Unavailable)
	}
	return raw, nil
}

// layersOf are the layers of an image, the lowest first.
func (s *Images) layersOf(id string) ([]*cstorage.Layer, error) {
	img, err := s.store.Image(id)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	layers, err := s.layerMap()
	if err != nil {
		return nil, err
	}
	var all []*cstorage.Layer
	for at := img.TopLayer; at != ""; at = layers[at].Parent {
		if layers[at] == nil {
			return nil, fmt.Errorf("layer %s is missing (pull the image again): %w", at, errdef.Unavailable)
		}
		all = append(all, layers[at])
	}
	slices.Reverse(all)
	return all, nil
}

// incomparable says why a layer's archive cannot be put together again; empty when it can.
func (s *Images) incomparable(l *cstorage.Layer) string {
	if l.ReadOnly {
		return "it lies in another store"
	}
	if l.UncompressedDigest.Validate() != nil || l.UncompressedSize < 0 {
		return "the store does not know its digest"
	}
	if _, err := os.Stat(s.recipePath(l.ID)); errors.Is(err, fs.ErrNotExist) {
		return "it did not come as an archive"
	}
	if why, err := inspectLayer(s.layerDir(l.ID)); err == nil && why != "" {
		return why
	}
	return ""
}

// archiveWriter is an OCI layout that grows; its index comes last.
type archiveWriter struct {
	tar     *tar.Writer
	written map[digest.Digest]bool
	index   []imgspec.Descriptor
	docker  []dockerImage

	meters map[digest.Digest]*meter // of layers
	board  board
	tell   func([]LayerProgress)
	told   time.Time
}

func newArchiveWriter(out io.Writer, images []saved, tell func([]LayerProgress)) *archiveWriter {
	a := &archiveWriter{tar: tar.NewWriter(out), written: map[digest.Digest]bool{}, meters: map[digest.Digest]*meter{}, tell: tell}
	var all []*meter
	for _, img := range images {
		for _, m := range img.meters() {
			if a.meters[m.digest] == nil {
				a.meters[m.digest], all = m, append(all, m)
			}
		}
	}
	a.board.show(all)
	return a
}

// meters are those of the image's layers, or of the artifact's files.
func (img *saved) meters() (all []*meter) {
	if img.artifact != nil {
		return img.artifact.meters()
	}
	for _, l := range img.layers {
		all = append(all, newMeter(l.UncompressedDigest, l.UncompressedSize))
	}
	return all
}

// report tells how far it is, unless that was told just now and nothing has come to its end.
func (a *archiveWriter) report(ended bool) {
	if a.tell != nil && (ended || time.Since(a.told) >= progressPeriod) {
		a.told = time.Now()
		a.tell(a.board.snapshot())
	}
}

// measured is where a layer is written.
type measured struct {
	*archiveWriter
	meter *meter
}

func (m measured) Write(p []byte) (int, error) {
	n, err := m.tar.Write(p)
	m.meter.done.Add(int64(n))
	m.report(false)
	return n, err
}

func blobPath(d digest.Digest) string {
	return path.Join(imgspec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (a *archiveWriter) file(name string, size int64, write func(io.Writer) error) error {
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: size, Format: tar.FormatPAX}); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := write(a.tar); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return a.tar.Flush()
}

// blob adds a blob, unless the archive has it.
func (a *archiveWriter) blob(d digest.Digest, size int64, write func(io.Writer) error) error {
	if a.written[d] {
		return nil
	}
	a.written[d] = true
	m := a.meters[d]
	if m == nil {
		return a.file(blobPath(d), size, write)
	}
	m.set(LayerSaving)
	err := a.file(blobPath(d), size, func(io.Writer) error { return write(measured{a, m}) })
	if err == nil {
		m.set(LayerSaved)
		a.report(true)
	}
	return err
}

func (a *archiveWriter) json(name string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return a.file(name, int64(len(raw)), bytesTo(raw))
}

func bytesTo(raw []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	}
}

// saveOne adds an image, or an artifact.
func (s *Images) saveOne(ctx context.Context, a *archiveWriter, img saved) error {
	save := s.saveImage
	if img.artifact != nil {
		save = s.saveArtifact
	}
	described, err := save(ctx, a, img)
	if err != nil {
		return err
	}
	for _, d := range slices.Sorted(maps.Keys(img.proofs)) {
		if err := a.blob(d, int64(len(img.proofs[d])), bytesTo(img.proofs[d])); err != nil {
			return err
		}
	}
	a.list(img, described)
	return nil
}

// saveImage adds the layers, the configuration, and a manifest of both.
func (s *Images) saveImage(ctx context.Context, a *archiveWriter, img saved) (imgspec.Descriptor, error) {
	id := digest.NewDigestFromEncoded(digest.SHA256, img.id)
	m := imgspec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest,
		Config: imgspec.Descriptor{MediaType: imgspec.MediaTypeImageConfig, Digest: id, Size: int64(len(img.config))}, Layers: []imgspec.Descriptor{}}
	listed := dockerImage{Config: blobPath(id), RepoTags: img.tags, Layers: []string{}}
	for _, l := range img.layers {
		d := l.UncompressedDigest
		if err := a.blob(d, l.UncompressedSize, func(w io.Writer) error { return s.copyLayer(ctx, l, w) }); err != nil {
			return imgspec.Descriptor{}, err
		}
		m.Layers = append(m.Layers, imgspec.Descriptor{MediaType: imgspec.MediaTypeImageLayer, Digest: d, Size: l.UncompressedSize})
		listed.Layers = append(listed.Layers, blobPath(d))
	}
	if err := a.blob(id, int64(len(img.config)), bytesTo(img.config)); err != nil {
		return imgspec.Descriptor{}, err
	}
	a.docker = append(a.docker, listed)
	raw, err := json.Marshal(m)
	if err != nil {
		return imgspec.Descriptor{}, fmt.Errorf("encode manifest: %w", err)
	}
	return a.manifest(raw, "")
}

// manifest adds a manifest, of an artifact if kind is not empty, and describes it.
func (a *archiveWriter) manifest(raw []byte, kind string) (imgspec.Descriptor, error) {
	d := imgspec.Descriptor{MediaType: imgspec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: kind}
	return d, a.blob(d.Digest, d.Size, bytesTo(raw))
}

// list adds the image to the index, once for each of its tags.
func (a *archiveWriter) list(img saved, described imgspec.Descriptor) {
	annotations := map[string]string{}
	if claim := img.claim(described.Digest); claim != "" {
		annotations[annotationPulled] = claim
	}
	if len(img.tags) == 0 {
		described.Annotations = annotations
		a.index = append(a.index, described)
	}
	for _, tag := range img.tags {
		named := described
		named.Annotations = maps.Clone(annotations)
		named.Annotations[annotationName], named.Annotations[imgspec.AnnotationRefName] = tag, tag
		a.index = append(a.index, named)
	}
}

// finish writes what lists the images.
func (a *archiveWriter) finish(format Format) error {
	lists := map[string]any{
		layoutMark:  imgspec.ImageLayout{Version: imgspec.ImageLayoutVersion},
		layoutIndex: imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex, Manifests: a.index},
	}
	if format == DockerArchive {
		lists[manifestFile] = a.docker
	}
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		if err := a.json(name, lists[name]); err != nil {
			return err
		}
	}
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}

// copyLayer puts the layer's archive together again, and compares it with its digest. The store's own way keeps others
// from its layers until all is read, and whoever reads may be slow.
func (s *Images) copyLayer(ctx context.Context, l *cstorage.Layer, out io.Writer) error {
	recipe, err := os.Open(s.recipePath(l.ID))
	if err != nil {
		return err
	}
	defer recipe.Close()
	root, err := os.Open(s.layerDir(l.ID))
	if err != nil {
		return err
	}
	defer root.Close()
	if err := reassemble(ctx, root, recipe, l, out); err != nil {
		return fmt.Errorf("layer %s differs from what was pulled, or cannot be read (see crid image verify): %w", l.ID, err)
	}
	return nil
}

// reassemble writes the layer's archive to out, and compares it with its digest.
func reassemble(ctx context.Context, root *os.File, recipe io.Reader, l *cstorage.Layer, out io.Writer) error {
	digester := l.UncompressedDigest.Algorithm().Digester()
	if err := rebuild(ctx, root, recipe, io.MultiWriter(digester.Hash(), out)); err != nil {
		return err
	}
	if got := digester.Digest(); got != l.UncompressedDigest {
		return fmt.Errorf("its digest is %s, not %s", got, l.UncompressedDigest)
	}
	return nil
}
