package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vbatts/tar-split/archive/tar"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// What unpacking a layer may take of crid, besides the disk, which is the bound of its files. All that is below is many
// times what layers have, and orders below what a small one can ask for.
const (
	maxLayers    = 500       // one on the other: an overlay can have no more
	maxEntryName = 4096      // bytes of a path, and of what a link names: the kernel takes no more
	maxNames     = 256 << 20 // bytes of all names, which are held in memory together
	maxEntries   = 4 << 20   // files, each of which costs memory besides its name
	maxHeaders   = 8 << 20   // bytes between one file and the next: extended headers are held in memory
	maxWindow    = 128 << 20 // bytes that zstd may look back, as its command line has it; they are held in memory
	maxHoles     = 16 << 30  // bytes of files with holes, which are read in full though the layer does not have them
)

// boundedStore is a store that takes no layer beyond these bounds. The store itself has none, and a layer that it
// unpacks cannot be interrupted.
type boundedStore struct {
	cstorage.Store
	most  int            // layers on one another
	depth map[string]int // of the layers of this pull, by id
}

// bounded is the store for one pull, which puts its layers in their order.
func bounded(s cstorage.Store) *boundedStore {
	return &boundedStore{Store: s, most: maxLayers, depth: map[string]int{}}
}

// depthOf counts the layers from id to the lowest.
func (s *boundedStore) depthOf(id string) (int, error) {
	for n := 0; ; n++ {
		if below, known := s.depth[id]; known || id == "" {
			return below + n, nil
		}
		layer, err := s.Layer(id)
		if err != nil {
			return 0, err
		}
		id = layer.Parent
	}
}

// PutLayer unpacks the compression, so that the entries can be looked at, and hands on what it has looked at: the store
// finds nothing to decompress then.
func (s *boundedStore) PutLayer(id, parent string, names []string, label string, writeable bool, o *cstorage.LayerOptions, diff io.Reader) (*cstorage.Layer, int64, error) {
	below, err := s.depthOf(parent)
	if err == nil && below >= s.most {
		err = fmt.Errorf("more than %d layers: %w", s.most, errBounds)
	}
	if err != nil {
		return nil, -1, err
	}
	if id != "" { // else the store chooses one
		s.depth[id] = below + 1
	}
	put := func(diff io.Reader) (*cstorage.Layer, int64, error) {
		defer failpoint.Hit("storage/bounded/layer-put")
		return s.Store.PutLayer(id, parent, names, label, writeable, o, diff)
	}
	if diff == nil {
		return put(nil)
	}
	plain, err := archive.DecompressStream(diff)
	if err != nil {
		return nil, -1, fmt.Errorf("decompress layer: %w", err)
	}
	defer plain.Close() // of what was only read
	head := bufio.NewReader(plain)
	start, _ := head.Peek(10) // less when there is no more; the store meets the error again
	if archive.DetectCompression(start) != archive.Uncompressed {
		return nil, -1, fmt.Errorf("the layer is compressed twice: %w", errdef.Invalid)
	}
	b := newBounds(head)
	layer, size, err := put(b)
	b.close()
	if b.fault != nil { // which the store has passed through other programs
		err = b.fault
	}
	return layer, size, err
}

// boundedSource is an image whose blobs are not in xz: the library's readers, of which containers/image and containers/storage each
// begin one for a layer, allocate the dictionary that the layer names, of up to 4 GiB. The specification of images knows gzip
// and zstd, and no builder makes others. It counts the bytes that are read of them, and shows them on the board.
type boundedSource struct {
	types.ImageSource
	read  *atomic.Uint64
	board *board
}

func (s boundedSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	blob, size, err := rawSource{s}.GetBlob(ctx, info, cache)
	if err != nil {
		return nil, 0, err
	}
	head := bufio.NewReaderSize(blob, blobWindow)
	start, _ := head.Peek(10) // less when there is no more; whoever reads meets the error again
	if archive.DetectCompression(start) == archive.Xz {
		err := fmt.Errorf("layer %s is compressed with xz (build the image with gzip or zstd): %w", info.Digest, errdef.Invalid)
		return nil, 0, errors.Join(err, blob.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{head, blob}, size, nil
}

// rawSource is one whose blobs are files of an artifact, which nobody decompresses: they may be in xz.
type rawSource struct{ boundedSource }

// GetBlob opens a blob as it is.
func (s rawSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	blob, size, err := s.ImageSource.GetBlob(ctx, info, cache)
	if err != nil {
		return nil, 0, err
	}
	return counted{blob, s.read, s.board.begin(info.Digest)}, size, nil
}

// counted counts what is read.
type counted struct {
	io.ReadCloser
	read  *atomic.Uint64
	meter *meter
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.read.Add(uint64(n))
	c.meter.done.Add(int64(n))
	return n, err
}

// bounds reads an archive and hands it on as far as it has been looked at: whoever reads from it never sees what breaks
// a bound. The archive is read by the package that the store reads it by, so that both see the same.
type bounds struct {
	from  io.Reader
	input *feed
	fault error // why no more is handed on
	done  bool  // what follows is not looked at: it is no archive, or behind its end
}

func newBounds(from io.Reader) *bounds {
	b := &bounds{from: from, input: &feed{chunks: make(chan []byte), hungry: make(chan struct{}), verdict: make(chan error, 1)}}
	go func() { b.input.verdict <- inspect(b.input) }() // ends with the archive, or at close
	b.wait()
	return b
}

func (b *bounds) Read(p []byte) (int, error) {
	if b.fault != nil {
		return 0, b.fault
	}
	n, err := b.from.Read(p)
	if n > 0 && !b.done {
		b.input.chunks <- p[:n]
		b.wait()
	}
	if b.fault != nil {
		return 0, b.fault
	}
	return n, err
}

// wait returns when all that was handed in has been looked at.
func (b *bounds) wait() {
	select {
	case <-b.input.hungry:
	case err := <-b.input.verdict:
		b.done = true
		if errors.Is(err, errBounds) {
			b.fault = err
		}
	}
}

// close ends the looking. Nothing may be read afterwards.
func (b *bounds) close() {
	if !b.done {
		close(b.input.chunks)
		<-b.input.verdict
		b.done = true
	}
}

// feed is a reader that says when it wants more: by then all that it had has been used.
type feed struct {
	chunks  chan []byte
	hungry  chan struct{}
	verdict chan error
	left    []byte
}

func (f *feed) Read(p []byte) (int, error) {
	for len(f.left) == 0 {
		f.hungry <- struct{}{}
		chunk, more := <-f.chunks
		if !more {
			return 0, io.EOF
		}
		f.left = chunk
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

// inspect reads an archive to its end, or to what breaks a bound. What is wrong with it otherwise is the store's to say.
func inspect(f *feed) error {
	g := &headroom{from: f}
	g.begin(0)
	r := tar.NewReader(g)
	var all tally
	for {
		h, err := r.Next()
		if err != nil {
			return err
		}
		if err := all.add(h); err != nil {
			return err
		}
		g.begin(h.Size)
	}
}
