package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/vbatts/tar-split/archive/tar"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"go.podman.io/storage/pkg/archive"

	"github.com/crid/crid/internal/errdef"
)

// errBounds is why a layer is not unpacked.
var errBounds = fmt.Errorf("the image asks for more than crid gives: %w", errdef.Invalid)

// headroom counts what is read of an archive and keeps headers from being endless: they are held in memory.
type headroom struct {
	from  io.Reader
	taken int64 // bytes read
	next  int64 // how many may have been read when the next file begins
}

func (r *headroom) Read(p []byte) (int, error) {
	if r.taken > r.next {
		return 0, fmt.Errorf("more than %d bytes of headers for one file: %w", maxHeaders, errBounds)
	}
	n, err := r.from.Read(p)
	r.taken += int64(n)
	return n, err
}

// begin allows headers to follow content of so many bytes.
func (r *headroom) begin(content int64) {
	r.next = r.taken + min(content, math.MaxInt64/2) + maxHeaders
}

// tally is what an archive has asked for so far.
type tally struct {
	entries      int
	names, holes int64
}

// add tells whether h breaks a bound.
func (t *tally) add(h *tar.Header) error {
	if len(h.Name) > maxEntryName || len(h.Linkname) > maxEntryName {
		return fmt.Errorf("a path of %d bytes: %w", max(len(h.Name), len(h.Linkname)), errBounds)
	}
	if isSparse(h) {
		if h.Size > maxHoles-t.holes {
			return fmt.Errorf("files with holes of more than %d bytes: %w", int64(maxHoles), errBounds)
		}
		t.holes += h.Size
	}
	t.entries++
	t.names += int64(len(h.Name))
	if t.entries > maxEntries || t.names > maxNames {
		return fmt.Errorf("more than %d files, or names of more than %d bytes: %w", maxEntries, maxNames, errBounds)
	}
	return nil
}

// isSparse knows both ways of writing a file with holes.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// splitter reads a layer's archive to its end, or to what breaks a bound. It writes the recipe, from which and from the
// layer's files the archive can be put together again, and remembers what the store's record of the layer says.
type splitter struct {
	recipe tarsplit.Packer
	tally  tally
	buffer []byte
	each   func(h *tar.Header, content *content) error // is shown each file; what it does not read is dropped

	uids, gids map[uint32]struct{}
	rootMode   *fs.FileMode // nil: the layer says nothing about its root directory
}

func newSplitter(recipe io.Writer, each func(*tar.Header, *content) error) *splitter {
	return &splitter{
		each: each, recipe: tarsplit.NewJSONPacker(recipe), buffer: make([]byte, 64<<10),
		uids: map[uint32]struct{}{}, gids: map[uint32]struct{}{},
	}
}

func (s *splitter) run(from io.Reader) error {
	g := &headroom{from: from}
	g.begin(0)
	r := tar.NewReader(g)
	r.RawAccounting = true
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer's archive: %w", err)
		}
		if err := s.tally.add(h); err != nil {
			return err
		}
		g.begin(h.Size)
		if err := s.entry(r, h); err != nil {
			return err
		}
	}
	if err := s.segment(r.RawBytes()); err != nil {
		return err
	}
	return s.padding(from)
}

// entry puts one file and the headers before it into the recipe.
func (s *splitter) entry(r *tar.Reader, h *tar.Header) error {
	s.note(h)
	if err := s.segment(r.RawBytes()); err != nil {
		return err
	}
	e := tarsplit.Entry{Type: tarsplit.FileType, Size: h.Size}
	e.SetName(h.Name)
	c := &content{from: r}
	if err := s.each(h, c); err != nil {
		return err
	}
	for c.err == nil {
		_, _ = c.Read(s.buffer) // c.err has it
	}
	if !errors.Is(c.err, io.EOF) {
		return c.err
	}
	if h.Size > 0 {
		e.Payload = binary.BigEndian.AppendUint64(nil, c.crc)
	}
	if _, err := s.recipe.AddEntry(e); err != nil {
		return fmt.Errorf("note %q of the layer: %w", h.Name, err)
	}
	return s.segment(r.RawBytes())
}

// content is what a file of an archive contains.
type content struct {
	from io.Reader
	crc  uint64 // of what was read
	err  error  // why there is no more: io.EOF, or what is wrong with the archive
}

func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.from.Read(p)
	c.crc = crcISO(c.crc, p[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read layer's archive: %w", err)
	}
	c.err = err
	return n, err
}

// note remembers whom the files belong to.
func (s *splitter) note(h *tar.Header) {
	if !strings.HasPrefix(path.Base(h.Name), archive.WhiteoutPrefix) {
		s.uids[uint32(h.Uid)] = struct{}{}
		s.gids[uint32(h.Gid)] = struct{}{}
	}
	if h.Typeflag == tar.TypeDir && path.Clean("/"+h.Name) == "/" {
		mode := h.FileInfo().Mode()
		s.rootMode = &mode
	}
}

func (s *splitter) segment(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	if _, err := s.recipe.AddEntry(tarsplit.Entry{Type: tarsplit.SegmentType, Payload: raw}); err != nil {
		return fmt.Errorf("note what is between the files of the layer: %w", err)
	}
	return nil
}

// padding reads what follows the archive.
func (s *splitter) padding(from io.Reader) error {
	for {
		n, err := from.Read(s.buffer)
		if err := s.segment(s.buffer[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sorted(ids map[uint32]struct{}) []uint32 { return slices.Sorted(maps.Keys(ids)) }
