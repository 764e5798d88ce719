package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ggcrlog "log"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// fakeRegistry is a registry on loopback, plain HTTP, that counts what is asked of it.
type fakeRegistry struct {
	host string
	next http.Handler

	mu     sync.Mutex // guards what follows
	blobs  map[string]int
	user   string                                        // basic authentication, when not empty
	pass   string                                        // its password
	refuse func(*http.Request) int                       // answers with this status when not 0
	hold   func(http.ResponseWriter, *http.Request) bool // runs before a blob is answered; true when it answered itself
}

func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{next: registry.New(registry.Logger(silent())), blobs: map[string]int{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	user, pass, refuse, hold := r.user, r.pass, r.refuse, r.hold
	_, blob, isBlob := strings.Cut(req.URL.Path, "/blobs/sha256:")
	isBlob = isBlob && req.Method == http.MethodGet
	if isBlob {
		r.blobs[blob]++
	}
	r.mu.Unlock()
	if u, p, _ := req.BasicAuth(); user != "" && (u != user || p != pass) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		return
	}
	if refuse != nil {
		if status := refuse(req); status != 0 {
			http.Error(w, "<html>no</html>", status)
			return
		}
	}
	if isBlob && hold != nil && hold(w, req) {
		return
	}
	r.next.ServeHTTP(w, req)
}

// set changes how the registry answers from now on.
func (r *fakeRegistry) set(change func(r *fakeRegistry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// fetched returns how often blobs were asked for in all, and how often the most wanted one.
func (r *fakeRegistry) fetched() (all, most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.blobs {
		all, most = all+n, max(most, n)
	}
	return all, most
}

// count is how often the blob was asked for.
func (r *fakeRegistry) count(hex string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobs[hex]
}

// push stores an image or an index as repo, which has a tag, and returns its digest.
func (r *fakeRegistry) push(t *testing.T, repo string, what remote.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+repo, name.Insecure)
	check(t, err)
	auth := remote.WithAuth(&authn.Basic{Username: r.user, Password: r.pass})
	if r.user == "" {
		auth = remote.WithAuth(authn.Anonymous)
	}
	var digest v1.Hash
	switch what := what.(type) {
	case v1.ImageIndex:
		check(t, remote.WriteIndex(ref, what, auth))
		digest, err = what.Digest()
	case v1.Image:
		check(t, remote.Write(ref, what, auth))
		digest, err = what.Digest()
	default:
		t.Fatalf("push of a %T", what)
	}
	check(t, err)
	return digest.String()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// layer makes a layer of files, their paths and contents alternating.
func layer(t *testing.T, zstd bool, files ...string) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := 0; i < len(files); i += 2 {
		check(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(files[i+1]))
		check(t, err)
	}
	check(t, w.Close())
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	var opts []tarball.LayerOption
	if zstd {
		opts = append(opts, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	}
	l, err := tarball.LayerFromOpener(opener, opts...)
	check(t, err)
	return l
}

// picture makes an image of layers, for this platform, with a configuration to be recognised by.
func picture(t *testing.T, mark string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	check(t, err)
	return forPlatform(t, img, runtime.GOARCH, mark)
}

func forPlatform(t *testing.T, img v1.Image, arch, mark string) v1.Image {
	t.Helper()
	file, err := img.ConfigFile()
	check(t, err)
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", arch
	file.Config = v1.Config{
		User: "1003:1004", Cmd: []string{"sh", mark}, Env: []string{"PATH=/bin"},
		Labels: map[string]string{"mark": mark}, Volumes: map[string]struct{}{"/data": {}},
	}
	img, err = mutate.ConfigFile(img, file)
	check(t, err)
	return img
}

// simple is an image of two small layers; equal marks make equal images.
func simple(t *testing.T, mark string) v1.Image {
	t.Helper()
	return picture(t, mark, layer(t, false, "base", "base of "+mark), layer(t, false, "top", "top of "+mark))
}

func asOCI(img v1.Image) v1.Image {
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
}

// indexOf makes an index with img for this platform between decoys for others.
func indexOf(t *testing.T, kind types.MediaType, img v1.Image) v1.ImageIndex {
	t.Helper()
	decoy := func(arch string) mutate.IndexAddendum {
		d := forPlatform(t, picture(t, "decoy "+arch, layer(t, false, "decoy", arch)), arch, "decoy "+arch)
		return mutate.IndexAddendum{Add: d, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	own := mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}}
	return mutate.IndexMediaType(mutate.AppendManifests(empty.Index, decoy("s390x"), own, decoy("riscv64")), kind)
}

func idOf(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	check(t, err)
	return h.Hex
}

// world is a place for an image store and the files that rule its pulls.
type world struct {
	ImagesConfig
	dir string
}

func newWorld(t *testing.T, registries ...*fakeRegistry) *world {
	t.Helper()
	w := newDamagedWorld(t, registries...)
	t.Cleanup(func() { w.verify(t) })
	return w
}

// newDamagedWorld is one whose store need not be whole at the end.
func newDamagedWorld(t testing.TB, registries ...*fakeRegistry) *world {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	// In memory: each layer stored syncs the filesystem, and that of the machine may have more to write.
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { check(t, unmountIdle(dir)) })
	w := &world{dir: dir, ImagesConfig: ImagesConfig{
		Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"),
		Sources: Sources{
			RegistriesConf: filepath.Join(dir, "registries.conf"), RegistriesConfDir: filepath.Join(dir, "registries.conf.d"),
			CertsD: []string{filepath.Join(dir, "certs.d")}, AuthFile: filepath.Join(dir, "auth.json"), NamespacedAuthDir: filepath.Join(dir, "auth"),
		},
		Trust: Trust{PolicyDir: filepath.Join(dir, "policies"), RegistriesD: filepath.Join(dir, "registries.d"), DecryptionKeys: filepath.Join(dir, "keys")},
	}}
	var conf strings.Builder
	for _, r := range registries {
		fmt.Fprintf(&conf, "[[registry]]\nlocation = %q\ninsecure = true\n", r.host)
	}
	w.registries(t, conf.String())
	return w
}

// unmountIdle waits for programs that are being started beside it: until they are, they have copies of all files that were open
// when their start began.
func unmountIdle(dir string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		if err := unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		<-tick.C
	}
	return unix.Unmount(dir, 0)
}

func (w *world) registries(t testing.TB, conf string) {
	t.Helper()
	check(t, os.WriteFile(w.RegistriesConf, []byte(conf), 0o600))
}

func (w *world) open(t testing.TB) *Images {
	t.Helper()
	return w.openIdle(t, leaseIdle)
}

func (w *world) openIdle(t testing.TB, idle time.Duration) *Images {
	t.Helper()
	s, err := openImages(w.ImagesConfig, idle)
	check(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// verify asks containers/storage to check everything in the store, and looks for leftovers of pulls.
func (w *world) verify(t *testing.T) {
	t.Helper()
	store, err := openStore(w.ImagesConfig, filepath.Join(w.Root, "storage"))
	check(t, err)
	defer freeStore(store)
	most := cstorage.CheckMost()
	most.LayerUnreferencedMaximumAge = nil
	report, err := store.Check(most)
	check(t, err)
	if len(report.Layers)+len(report.Images)+len(report.Containers) > 0 {
		t.Errorf("store check: layers %v, images %v, containers %v", report.Layers, report.Images, report.Containers)
	}
	_, err = store.Shutdown(false)
	check(t, err)
	left, err := filepath.Glob(filepath.Join(w.Root, "storage", "crid-scratch", "*"))
	check(t, err)
	if len(left) > 0 {
		t.Errorf("pulls left %v", left)
	}
}

func pull(t *testing.T, s *Images, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	check(t, err)
	return img
}

func resolve(t *testing.T, s *Images, ref string) Image {
	t.Helper()
	img, err := s.Resolve(t.Context(), ref)
	check(t, err)
	return img
}

func list(t testing.TB, s *Images) []Image {
	t.Helper()
	all, err := s.List(context.Background())
	check(t, err)
	return all
}

func loopback() []net.IP { return []net.IP{net.IPv4(127, 0, 0, 1)} }

func silent() *ggcrlog.Logger { return ggcrlog.New(io.Discard, "", 0) }
