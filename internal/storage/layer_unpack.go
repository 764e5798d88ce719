package storage

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/archive/tar"
	"go.podman.io/image/v5/types"
	drivers "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

const (
	blobWindow    = 512 << 10 // bytes of a blob that are read at once
	archiveWindow = 64 << 10  // bytes of an archive that are read at once where a file is not larger
)

// layerBlob is one layer as it comes: all of it passes once, and on the way it is verified, unpacked from its compression,
// looked at, hashed and made into files.
type layerBlob struct {
	info   types.BlobInfo // its digest and size are verified
	diffID digest.Digest  // what is in it; verified
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// differ unpacks a layer into the directory that the store gives it.
type differ struct {
	ctx    context.Context // the store's interface passes none on
	layer  layerBlob
	dir    string // for the recipe while it is written
	pieces *sync.Pool
}

func (d differ) Close() error { return nil }

// ApplyDiff is called by the store once, with a directory that is the layer's own.
func (d differ) ApplyDiff(dest string, options *archive.TarOptions, _ *drivers.DifferOptions) (out drivers.DriverWithDifferOutput, err error) {
	if err := plainFiles(options); err != nil {
		return out, err
	}
	recipe, err := unnamedFile(d.dir)
	if err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, recipe.Close())
		}
	}()
	packed := bufio.NewWriterSize(recipe, 64<<10)
	contents := &tallied{hash: sha256.New()}
	split, err := d.unpackTo(dest, packed, contents)
	if err != nil {
		return out, err
	}
	if err := packed.Flush(); err != nil {
		return out, fmt.Errorf("note what the layer's archive is like: %w", err)
	}
	failpoint.Hit("storage/pull/unpacked")
	diffID := digest.NewDigest(digest.SHA256, contents.hash)
	if diffID != d.layer.diffID {
		return out, fmt.Errorf("layer %s contains %s, not %s as the image's configuration says: %w", d.layer.info.Digest, diffID, d.layer.diffID, errdef.Invalid)
	}
	return drivers.DriverWithDifferOutput{
		Size: contents.size, UncompressedDigest: diffID, CompressedDigest: d.layer.info.Digest,
		UIDs: sorted(split.uids), GIDs: sorted(split.gids), RootDirMode: split.rootMode, TarSplit: recipe,
	}, nil
}

// plainFiles refuses to make files otherwise than they are in the archive.
func plainFiles(o *archive.TarOptions) error {
	if o.WhiteoutFormat != archive.OverlayWhiteoutFormat || o.ForceMask != nil || len(o.UIDMaps)+len(o.GIDMaps) > 0 || o.IgnoreChownErrors || o.InUserNS {
		return fmt.Errorf("the image store asks for layers whose files have other owners or modes, or whiteouts that no overlay knows: %+v: %w", *o, errdef.Unsupported)
	}
	return nil
}

// unpackTo makes files of the layer in dest and writes its recipe.
func (d differ) unpackTo(dest string, recipe io.Writer, contents *tallied) (*splitter, error) {
	files, err := openLayerFiles(dest)
	if err != nil {
		return nil, err
	}
	defer files.close()
	layer := d.layer.info.Digest
	split := newSplitter(recipe, func(h *tar.Header, c *content) error {
		err := files.add(h, c)
		if err != nil && (c.err == nil || errors.Is(c.err, io.EOF)) {
			return unpackError{layer, err}
		}
		return err
	})
	if err := d.layer.unpack(d.ctx, d.pieces, func(r io.Reader) error { return split.run(io.TeeReader(r, contents)) }); err != nil {
		return nil, err
	}
	if err := files.finish(); err != nil {
		return nil, unpackError{layer, err}
	}
	return split, nil
}

// unnamedFile is gone when it is closed.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// unpackError is what making files of a layer fails with. It is about files, though its system errors look like the network's.
type unpackError struct {
	layer digest.Digest
	err   error
}

func (e unpackError) Error() string { return fmt.Sprintf("unpack layer %s: %v", e.layer, e.err) }
func (e unpackError) Unwrap() error { return e.err }

// unpack has read look at the archive in the blob, all of it, and verifies the blob.
func (l layerBlob) unpack(ctx context.Context, pieces *sync.Pool, read func(io.Reader) error) (err error) {
	within, giveUp := context.WithCancel(ctx)
	defer giveUp()
	blob, err := l.open(within)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	sum := l.info.Digest.Verifier()
	whole := io.TeeReader(blob, sum)
	broken := inflate(within, whole, pieces, func(r io.Reader) error {
		err := read(r)
		if _, ours := errors.AsType[unpackError](err); ours || errors.Is(err, errBounds) {
			giveUp() // of the blob, of which no more is wanted
		}
		return err
	})
	switch {
	case broken == nil:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case within.Err() != nil:
		return broken
	}
	// What follows the compressed data belongs to the blob. Where that is broken, the digest tells whether it was meant so.
	if _, err := io.Copy(io.Discard, whole); err != nil {
		return err
	}
	if !sum.Verified() {
		return fmt.Errorf("what the registry sent as layer %s does not have that digest: %w", l.info.Digest, errdef.Invalid)
	}
	if broken != nil { // whose text alone counts: it may look like a lost connection
		return fmt.Errorf("unpack layer %s, which is as it was pushed: %v: %w", l.info.Digest, broken, errdef.Invalid)
	}
	return nil
}

// inflate has read look at what is in the compressed blob.
func inflate(ctx context.Context, blob io.Reader, pieces *sync.Pool, read func(io.Reader) error) (err error) {
	plain, err := decompress(ctx, bufio.NewReaderSize(blob, blobWindow))
	if err != nil {
		return err
	}
	if _, elsewhere := plain.(*gunzipped); !elsewhere {
		plain = readAhead(plain, pieces)
	}
	defer plain.Close() // of what was only read
	inner := bufio.NewReaderSize(plain, archiveWindow)
	start, _ := inner.Peek(10) // less when there is no more; whoever reads meets the error again
	if archive.DetectCompression(start) != archive.Uncompressed {
		return errors.New("it is compressed twice")
	}
	return read(inner)
}

// decompress reads what was compressed in a way that the specification of images knows, or in an old one. Not xz: see
// boundedSource.
func decompress(ctx context.Context, blob *bufio.Reader) (io.ReadCloser, error) {
	start, err := blob.Peek(10) // less when there is no more
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch kind := archive.DetectCompression(start); kind {
	case archive.Uncompressed:
		return io.NopCloser(blob), nil
	case archive.Gzip:
		return gunzip(ctx, blob)
	case archive.Zstd:
		r, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	case archive.Xz:
		return nil, errors.New("it is compressed with xz (build the image with gzip or zstd)")
	default:
		return archive.DecompressStream(blob)
	}
}

// tallied hashes and counts what is written to it.
type tallied struct {
	hash hash.Hash
	size int64
}

func (t *tallied) Write(p []byte) (int, error) {
	t.size += int64(len(p))
	return t.hash.Write(p)
}
