package storage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
)

// liar is a registry that serves what it was given, whatever sense that makes.
type liar struct {
	host      string
	manifests map[string]answer // by tag or digest
	blobs     map[string]answer // by digest
}

// answer is what the liar sends: body, or what write writes.
type answer struct {
	kind   string // media type
	body   []byte
	write  func(w io.Writer)
	status int // 0 = 200
}

func newLiar(t testing.TB) *liar {
	t.Helper()
	l := &liar{manifests: map[string]answer{}, blobs: map[string]answer{}}
	server := httptest.NewServer(l)
	t.Cleanup(server.Close)
	l.host = strings.TrimPrefix(server.URL, "http://")
	return l
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := l.blobs
	if strings.Contains(r.URL.Path, "/manifests/") {
		from = l.manifests
	}
	a, ok := from[path.Base(r.URL.Path)]
	switch {
	case r.URL.Path == "/v2/":
		return
	case !ok:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	if a.write == nil {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	if a.write != nil {
		a.write(w)
		return
	}
	_, _ = w.Write(a.body) // the client may have enough of it
}

// blob serves content under its digest.
func (l *liar) blob(kind string, content []byte) imgspec.Descriptor {
	d := imgspec.Descriptor{MediaType: kind, Digest: digest.FromBytes(content), Size: int64(len(content))}
	l.blobs[d.Digest.String()] = answer{kind: kind, body: content}
	return d
}

// layer serves a layer of what entries writes.
func (l *liar) layer(t testing.TB, entries ...entryOf) (imgspec.Descriptor, digest.Digest) {
	t.Helper()
	raw := packed(t, entries...)
	return l.blob(imgspec.MediaTypeImageLayerGzip, gzipped(t, raw)), digest.FromBytes(raw)
}

// config serves a configuration for layers of these contents, changed by edit.
func (l *liar) config(t testing.TB, diffs []digest.Digest, edit func(*imgspec.Image)) imgspec.Descriptor {
	t.Helper()
	image := imgspec.Image{
		Platform: imgspec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   imgspec.ImageConfig{Cmd: []string{"true"}},
		RootFS:   imgspec.RootFS{Type: "layers", DiffIDs: diffs},
	}
	if edit != nil {
		edit(&image)
	}
	return l.blob(imgspec.MediaTypeImageConfig, encode(t, image))
}

// tag serves a manifest as "x:1" and returns the reference.
func (l *liar) tag(t testing.TB, config imgspec.Descriptor, layers ...imgspec.Descriptor) string {
	t.Helper()
	m := imgspec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageManifest, Config: config, Layers: layers,
	}
	return l.serve(imgspec.MediaTypeImageManifest, encode(t, m))
}

// serve serves any bytes as the manifest "x:1", and under their digest.
func (l *liar) serve(kind string, manifest []byte) string {
	a := answer{kind: kind, body: manifest}
	l.manifests["1"], l.manifests[digest.FromBytes(manifest).String()] = a, a
	return l.host + "/x:1"
}

// imageOf serves an image of one layer.
func (l *liar) imageOf(t testing.TB, entries ...entryOf) string {
	t.Helper()
	layer, diff := l.layer(t, entries...)
	return l.tag(t, l.config(t, []digest.Digest{diff}, nil), layer)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	check(t, err)
	return raw
}

// entryOf is an entry of a layer.
type entryOf struct {
	tar.Header
	content string
}

func file(name, content string) entryOf {
	return entryOf{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content}
}

func special(kind byte, name, target string) entryOf {
	return entryOf{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o644, Devmajor: 8, Devminor: 0}, ""}
}

func packed(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		check(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.content)
		check(t, err)
	}
	check(t, w.Close())
	return buf.Bytes()
}

func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(raw)
	check(t, err)
	check(t, w.Close())
	return buf.Bytes()
}

// peak returns how much more memory than before the process has needed at any one time while f ran, in bytes.
func peak(t testing.TB, f func()) int64 {
	t.Helper()
	runtime.GC()
	check(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // begins the measurement anew
	before := memory(t, "VmRSS:")
	f()
	return memory(t, "VmHWM:") - before
}

func memory(t testing.TB, line string) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	check(t, err)
	_, rest, _ := strings.Cut(string(status), line)
	var kib int64
	_, err = fmt.Sscan(rest, &kib)
	check(t, err)
	return kib << 10
}
