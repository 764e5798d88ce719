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
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"
	drivers "go.podman.io/storage/drivers"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// blobWindow is how many bytes of a blob are read at once.
const blobWindow = 512 << 10

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
	recipe, err := unnamedFile(d.dir)
	if err != nil {
		return out, err
	}
	packed := bufio.NewWriterSize(recipe, 64<<10)
	split := newSplitter(packed)
	contents := &tallied{hash: sha256.New()}
	belt := newBelt(d.pieces)
	defer belt.clear()
	if err := d.layer.unpack(d.ctx, belt, split, contents, func(r io.Reader) error { return unpackIn(dest, r, options) }); err != nil {
		return out, errors.Join(err, recipe.Close())
	}
	if err := packed.Flush(); err != nil {
		return out, errors.Join(fmt.Errorf("note what the layer's archive is like: %w", err), recipe.Close())
	}
	failpoint.Hit("storage/pull/unpacked")
	diffID := digest.NewDigest(digest.SHA256, contents.hash)
	if diffID != d.layer.diffID {
		err := fmt.Errorf("layer %s contains %s, not %s as the image's configuration says: %w", d.layer.info.Digest, diffID, d.layer.diffID, errdef.Invalid)
		return out, errors.Join(err, recipe.Close())
	}
	out = drivers.DriverWithDifferOutput{
		Size: contents.size, UncompressedDigest: diffID, CompressedDigest: d.layer.info.Digest,
		UIDs: sorted(split.uids), GIDs: sorted(split.gids), RootDirMode: split.rootMode, TarSplit: recipe,
	}
	return out, nil
}

// unnamedFile is gone when it is closed.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make a file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// unpack takes the blob to pieces: write is handed the archive.
func (l layerBlob) unpack(ctx context.Context, belt *belt, split *splitter, contents *tallied, write func(io.Reader) error) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return l.fetch(ctx, belt) })
	work.Go(func() error {
		r := &lookout{ctx: ctx, belt: belt, sum: contents}
		if err := split.run(r); err != nil {
			return err
		}
		r.end()
		return nil
	})
	work.Go(func() error {
		r := &unpacker{ctx: ctx, belt: belt}
		if err := write(r); err != nil {
			return unpackError{l.info.Digest, err}
		}
		_, err := io.Copy(io.Discard, struct{ io.Reader }{r}) // what follows the archive, too
		return err
	})
	return work.Wait()
}

// unpackError is what making files of a layer fails with. It is about files, though its system errors look like the network's.
type unpackError struct {
	layer digest.Digest
	err   error
}

func (e unpackError) Error() string { return fmt.Sprintf("unpack layer %s: %v", e.layer, e.err) }
func (e unpackError) Unwrap() error { return e.err }

// fetch puts what is in the blob on the belt, and verifies the blob.
func (l layerBlob) fetch(ctx context.Context, to *belt) (err error) {
	blob, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	sum := l.info.Digest.Verifier()
	whole := io.TeeReader(blob, sum)
	broken := l.inflate(ctx, whole, to)
	if broken != nil && ctx.Err() != nil {
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

// inflate puts what is in the compressed blob on the belt.
func (l layerBlob) inflate(ctx context.Context, blob io.Reader, to *belt) error {
	head := bufio.NewReaderSize(blob, blobWindow)
	plain, err := decompress(ctx, head)
	if err != nil {
		return err
	}
	defer plain.Close() // of what was only read
	inner := bufio.NewReaderSize(plain, 512)
	start, _ := inner.Peek(10) // less when there is no more; whoever reads meets the error again
	if archive.DetectCompression(start) != archive.Uncompressed {
		return errors.New("it is compressed twice")
	}
	return to.fill(ctx, inner)
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

// unpackIn makes files of an archive in dir, by the store's own code, on a thread for which dir is all there is: whatever
// an archive contains, it cannot lead out.
func unpackIn(dir string, from io.Reader, options *archive.TarOptions) error {
	done := make(chan error, 1)
	go func() { // ends with the archive, or with what reads it
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is the one that cannot die. While it is kept here, the work lands on another.
			done <- unpackIn(dir, from, options)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with the goroutine.
		done <- confined(dir, func() error { return archive.Unpack(from, "/", options) })
	}()
	return <-done
}

// confined calls work on the calling thread, with dir as its root directory and without a umask: a layer says what the modes of
// its files are. Afterwards the thread keeps dir no longer, but is not what it was.
func confined(dir string, work func() error) (err error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("get a root directory of one's own: %w", err)
	}
	home, err := os.Open("/")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, unix.Fchdir(int(home.Fd())), unix.Chroot("."), home.Close())
	}()
	if err := unix.Chroot(dir); err != nil {
		return &os.PathError{Op: "chroot", Path: dir, Err: err}
	}
	if err := unix.Chdir("/"); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	unix.Umask(0)
	return work()
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
