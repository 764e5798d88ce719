package storage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// maxMemory is what a pull may need at any one time, whatever it is fed: a layer's window, buffers, a few manifests.
const maxMemory = 256 << 20

// newSmallWorld is a world on a disk of so many bytes.
func newSmallWorld(t *testing.T, l *liar, size string) *world {
	t.Helper()
	w := newWorld(t, &fakeRegistry{host: l.host})
	check(t, os.MkdirAll(w.Root, 0o700))
	check(t, unix.Mount("none", w.Root, "tmpfs", 0, "mode=0700,size="+size))
	t.Cleanup(func() { check(t, unix.Unmount(w.Root, unix.MNT_DETACH)) })
	t.Cleanup(func() { w.verify(t) })
	return w
}

// used is how many bytes of the disk are taken.
func used(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	return (st.Blocks - st.Bfree) * uint64(st.Bsize)
}

// bomb is a gzip file of a layer with one file of so many MiB of zeros. It is made of members, of which all but the
// first are the same.
func bomb(t *testing.T, mib int) []byte {
	t.Helper()
	const chunk = 16 << 20
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	check(t, w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(mib) << 20}))
	return append(gzipped(t, head.Bytes()), bytes.Repeat(gzipped(t, make([]byte, chunk)), (mib<<20+chunk-1)/chunk)...)
}

// sparse is a layer with a file of 4 EiB that is all hole, as GNU tar writes it: one block of a header, and none of data.
func sparse() []byte {
	h := make([]byte, 512)
	copy(h, "hole")
	copy(h[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00        S")
	copy(h[257:], "ustar  \x00")
	size := []byte{0x80, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0} // base 256
	copy(h[386:], size)                                      // one fragment at the end, empty
	copy(h[398:], "00000000000\x00")
	copy(h[483:], size)
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	return append(h, make([]byte, 1024)...)
}

func absurdHeader(size int64, records map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	_ = w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, PAXRecords: records})
	return buf.Bytes()
}

// Without the program that it else uses, the store decompresses in crid itself.
func TestAWindowWithoutHelpers(t *testing.T) {
	t.Setenv("PATH", "")
	drop(t, zstdWindow(26), nil)
}

// A small layer can be large once it is unpacked: the disk is its bound. The pull fails with what is full, nothing of it
// is left, and crid's memory does not grow with it.
func TestBombs(t *testing.T) {
	for name, c := range map[string]struct {
		layer []byte
		kind  error // nil = any error
	}{
		"160 MiB of zeros":              {bomb(t, 160), errdef.Exhausted},
		"a hole of 4 EiB":               {gzipped(t, sparse()), errdef.Invalid},
		"a size of 8 EiB":               {gzipped(t, absurdHeader(1<<63-1, nil)), nil},
		"zstd with a window of 64 GiB":  {zstdWindow(26), errdef.Invalid},
		"zstd with a window of 256 MiB": {zstdWindow(18), errdef.Invalid},
		"zstd with a window of 128 MiB": {zstdWindow(17), errdef.Invalid},
		"xz with a dictionary of 4 GiB": {xzDictionary(t), errdef.Invalid},
		"gzip that is cut off":          {bomb(t, 128)[:50<<10], nil},
		"gzip that ends in it":          {append(gzipped(t, absurdHeader(1<<20, nil)), "trailer"...), nil},
		"a name of 900 KiB":             {gzipped(t, packed(t, file(strings.Repeat("n", 900<<10), "x"))), errdef.Invalid},
		"headers without a file":        {gzipped(t, endlessHeaders(t)), errdef.Invalid},
		"compressed twice":              {gzipped(t, gzipped(t, packed(t, file("a", "b")))), errdef.Invalid},
		"no archive":                    {[]byte("hello"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			drop(t, c.layer, c.kind)
		})
	}
}

// drop pulls an image of the layer onto a small disk, which is to fail with an error of the kind and leave nothing.
func drop(t *testing.T, content []byte, kind error) {
	t.Helper()
	l := newLiar(t)
	w := newSmallWorld(t, l, "96m")
	s := w.open(t)
	before := used(t, w.Root)
	layer := l.blob(imgspec.MediaTypeImageLayerGzip, content)
	ref := l.tag(t, l.config(t, []digest.Digest{unpacked(content)}, nil), layer)
	var err error
	grown := peak(t, func() { _, err = s.Pull(t.Context(), PullRequest{Ref: ref}) })
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Errorf("pull: %v, want %v", err, kind)
	}
	t.Logf("%d MiB more at most, %.400v", grown>>20, err)
	if grown > maxMemory {
		t.Errorf("the pull needed %d MiB", grown>>20)
	}
	if after := used(t, w.Root); after > before+1<<20 {
		t.Errorf("%d bytes are left", after-before)
	}
	if left, _ := filepath.Glob(filepath.Join(w.Root, "storage", "overlay", "*", "diff")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// endlessHeaders is 64 MiB of extended headers, one after the other, and no file that they belong to.
func endlessHeaders(t *testing.T) []byte {
	t.Helper()
	one := packed(t, entryOf{tar.Header{Name: "a", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"CRID.a": strings.Repeat("a", 900<<10)}}, ""})
	file := bytes.Index(one[1024:], []byte("ustar")) + 1024 - 257 // where the header of the file itself begins
	return bytes.Repeat(one[:file], 64<<20/file)
}

// unpacked is the digest of what a gzip file holds, or of something else.
func unpacked(raw []byte) digest.Digest {
	hash := digest.Canonical.Digester()
	if r, err := gzip.NewReader(bytes.NewReader(raw)); err == nil {
		_, _ = io.Copy(hash.Hash(), r)
	}
	return hash.Digest()
}

// zstdWindow is a frame that says that its window has 2^(10+exponent) bytes.
func zstdWindow(exponent byte) []byte {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3} // no content size
	raw := archiveOf("a", "x")
	frame = append(frame, byte(len(raw)<<3|1), byte(len(raw)>>5), byte(len(raw)>>13)) // one last block, raw
	return append(frame, raw...)
}

// xzDictionary is a layer as xz packs it, which says that its dictionary is as large as can be.
func xzDictionary(t *testing.T) []byte {
	t.Helper()
	raw, err := hex.DecodeString("fd377a585a0000016922de36020021011c00000010cf58cce009ff003b5d00308033501868898301dce26e210546577cd872fefd8ad3c076cb8c01" +
		"fcba260b65881331956d278e1a4b6d23475072c6978f213557e291c81fd700000028b7f3190001538014000000deded2273e300d8b020000000001595a")
	check(t, err)
	block := raw[12:24] // the header of the first block, a checksum at its end
	block[4] = 40       // 4 GiB less a byte
	binary.LittleEndian.PutUint32(block[8:], crc32.ChecksumIEEE(block[:8]))
	return raw
}

func archiveOf(name, content string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	_ = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	return buf.Bytes()
}
