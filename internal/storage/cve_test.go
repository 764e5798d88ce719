package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
)

// The tests of this file replay attacks by registries and images that were published about the libraries that pull and
// unpack them, and about crid's peers. docs/security.md says what each was.

// scripted is a registry that answers with what it is told, whatever that is: bodies by the end of the path.
func scripted(t *testing.T, answers map[string]http.HandlerFunc) *fakeRegistry {
	t.Helper()
	r := newRegistry(t)
	r.next = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for end, answer := range answers {
			if strings.HasSuffix(req.URL.Path, end) {
				answer(w, req)
				return
			}
		}
		if req.URL.Path != "/v2/" {
			http.NotFound(w, req)
		}
	})
	return r
}

func says(kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = io.WriteString(w, body) // a client may leave
	}
}

const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	emptyConfig    = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}`
)

// refusedPull pulls what must not be had, within a bound, and answers why it is not.
func refusedPull(t *testing.T, what string, s *Images, ref string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	img, err := s.Pull(ctx, PullRequest{Ref: ref, Auth: Auth{Username: "user", Password: "secret"}})
	if err == nil {
		t.Fatalf("%s: pulled as %s", what, img.ID)
	}
	if ctx.Err() != nil {
		t.Errorf("%s: it took all its time: %v", what, err)
	}
	if n := len(list(t, s)); n != 0 {
		t.Errorf("%s: %d images are left", what, n)
	}
	return err.Error()
}

// A manifest says that a layer is to be fetched elsewhere, where the registry's credentials would be told.
func TestCVE_2020_15157_CredentialsStayWithTheirRegistry(t *testing.T) {
	var told atomic.Value
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if auth := req.Header.Get("Authorization"); auth != "" {
			told.Store(auth)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="thief"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(thief.Close)
	for _, kind := range []string{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"} {
		body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.docker.container.image.v1+json","size":%d,"digest":%q},`+
			`"layers":[{"mediaType":%q,"size":10,"digest":%q,"urls":["%s/layer"]}]}`,
			dockerManifest, len(emptyConfig), digest.FromString(emptyConfig), kind, dig, thief.URL)
		r := scripted(t, map[string]http.HandlerFunc{"/manifests/1": says(dockerManifest, body), "/blobs/" + digest.FromString(emptyConfig).String(): says("application/json", emptyConfig)})
		r.user, r.pass = "user", "secret"
		refusedPull(t, kind, newWorld(t, r).open(t), r.host+"/a:1")
	}
	if auth := told.Load(); auth != nil {
		t.Errorf("another host was told %q", auth)
	}
}

// A registry answers without end.
func TestCVE_2020_1702_AnswersWithoutEnd(t *testing.T) {
	var written atomic.Int64
	endless := func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", ociManifest)
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for req.Context().Err() == nil {
			n, err := w.Write(chunk)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
	config := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":9000000000,"digest":%q},"layers":[]}`, ociManifest, dig)
	for what, answers := range map[string]map[string]http.HandlerFunc{
		"manifest":      {"/manifests/1": endless},
		"configuration": {"/manifests/1": says(ociManifest, config), "/blobs/" + dig: endless},
	} {
		written.Store(0)
		r := scripted(t, answers)
		refusedPull(t, what, newWorld(t, r).open(t), r.host+"/a:1")
		if n := written.Load(); n > 64<<20 {
			t.Errorf("%s: %d bytes were taken", what, n)
		}
	}
}

// A manifest that is an index as well means one image to those who sign it and another to those who pull it.
func TestCVE_2021_41190_AmbiguousManifests(t *testing.T) {
	config, other := digest.FromString(emptyConfig), fmt.Sprintf(`{"mediaType":%q,"size":2,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}`, ociManifest, dig)
	both := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":%q},"layers":[],"manifests":[%s]}`, len(emptyConfig), config, other)
	for _, kind := range []string{ociManifest, ociIndex, dockerManifest} {
		r := scripted(t, map[string]http.HandlerFunc{"/manifests/1": says(kind, both), "/blobs/" + config.String(): says("application/json", emptyConfig)})
		if why := refusedPull(t, kind, newWorld(t, r).open(t), r.host+"/a:1"); !strings.Contains(why, "ambiguous") {
			t.Errorf("%s: refused for another reason: %s", kind, why)
		}
	}
}

// Digests that are none would be parts of paths on the disk and at the registry.
func TestCVE_2024_3727_DigestsThatAreNone(t *testing.T) {
	config := digest.FromString(emptyConfig)
	answers := map[string]http.HandlerFunc{"/blobs/" + config.String(): says("application/json", emptyConfig)}
	var cases []string
	for _, bad := range []string{"", "sha256:", "sha256:../../../../../../../tmp/x", "sha256:../v2/other/blobs/x", "../../x", "sha256:" + strings.Repeat("z", 64), "md5:0123", "sha256:" + strings.Repeat("0", 1<<16), ":", "sha512:00"} {
		for where, body := range map[string]string{
			"configuration": fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":%q},"layers":[]}`, ociManifest, bad),
			"layer": fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":%q},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":2,"digest":%q}]}`,
				ociManifest, len(emptyConfig), config, bad),
			"index, CVE-2026-95839": fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"size":2,"digest":%q,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"io.containerd.manifest.subject":%q}}]}`,
				ociIndex, ociManifest, bad, bad),
		} {
			kind := ociManifest
			if strings.HasPrefix(where, "index") {
				kind = ociIndex
			}
			answers[fmt.Sprintf("/manifests/case%d", len(cases))] = says(kind, body)
			cases = append(cases, fmt.Sprintf("digest %.80q of the %s", bad, where))
		}
	}
	r := scripted(t, answers)
	s := newWorld(t, r).open(t)
	for i, what := range cases {
		refusedPull(t, what, s, fmt.Sprintf("%s/a:case%d", r.host, i))
	}
}

// Indexes of indexes, each naming the next many times, grow with every level for whoever follows them all.
func TestCVE_2026_53493_IndexesOfIndexes(t *testing.T) {
	answers := map[string]http.HandlerFunc{}
	var asked atomic.Int64
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, ociIndex)
	for range 8 {
		last := body
		id := digest.FromString(last)
		answers["/manifests/"+id.String()] = func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			says(ociIndex, last)(w, req)
		}
		entry := fmt.Sprintf(`{"mediaType":%q,"size":%d,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}`, ociIndex, len(last), id)
		body = fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(slicesOf(entry, 50), ","))
	}
	answers["/manifests/1"] = says(ociIndex, body)
	r := scripted(t, answers)
	refusedPull(t, "8 levels", newWorld(t, r).open(t), r.host+"/a:1")
	if n := asked.Load(); n > 50 {
		t.Errorf("the registry was asked for %d manifests", n)
	}
}

func slicesOf(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}

// rawLayer is a layer of entries as they are.
func rawLayer(t *testing.T, entries ...tar.Header) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		content := []byte("evil")
		if h.Typeflag != tar.TypeReg {
			content = nil
		}
		h.Size = int64(len(content))
		check(t, w.WriteHeader(&h))
		_, err := w.Write(content)
		check(t, err)
	}
	check(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	check(t, err)
	return l
}

// Layers with names and links that reach out of the directory that they are unpacked in.
func TestCVE_2021_32760_LayersThatReachOutside(t *testing.T) {
	bait := t.TempDir()
	check(t, os.WriteFile(filepath.Join(bait, "file"), []byte("good"), 0o600))
	up := strings.Repeat("../", 24) + strings.TrimPrefix(bait, "/")
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}
	}
	hard := func(name, to string, mode int64) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: mode}
	}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o777} }
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	for what, layers := range map[string][][]tar.Header{
		"a name that climbs":                      {{file(up + "/new")}},
		"an absolute name":                        {{file(bait + "/new"), file("/" + up + "/file")}},
		"through a link CVE-2025-11395":           {{link("out", bait), file("out/new"), file("out/file")}},
		"through a link of the layer below":       {{link("out", "/"+up)}, {file("out/new"), file("out/file")}},
		"through a chain of links CVE-2026-17106": {{link("a", up), link("b", "a"), hard("c", "b", 0o777), file("c/new"), file("b/file")}},
		"a hard link outside":                     {{hard("mine", up+"/file", 0o777), file("mine")}},
		"chmod by a hard link to a link":          {{link("out", bait+"/file"), hard("out2", "out", 0o777), hard("out", "out", 0o777)}},
		"a whiteout outside":                      {{link("out", bait)}, {file("out/.wh.file"), file(up + "/.wh.file"), file(".wh." + up + "/file"), file("out/.wh..wh..opq")}},
		"a device and a pipe where files come":    {{{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o666}, file("p")}},
	} {
		t.Run(what, func(t *testing.T) {
			var pushed []v1.Layer
			for _, entries := range layers {
				pushed = append(pushed, rawLayer(t, entries...))
			}
			r.push(t, "a:1", picture(t, "evil", pushed...))
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			img, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"})
			if ctx.Err() != nil {
				t.Errorf("it took all its time: %v", err)
			}
			if err == nil { // its names do not pass the store's own check
				check(t, s.Remove(t.Context(), img.ID))
			}
			info, err := os.Stat(filepath.Join(bait, "file"))
			check(t, err)
			content, err := os.ReadFile(filepath.Join(bait, "file"))
			check(t, err)
			entries, err := os.ReadDir(bait)
			check(t, err)
			if string(content) != "good" || info.Mode().Perm() != 0o600 || len(entries) != 1 {
				t.Errorf("outside there is %q, %v, %d entries", content, info.Mode(), len(entries))
			}
		})
	}
}

// A layer that only begins like an xz stream kept its reader waiting for ever; one with thousands of opaque whiteouts was
// walked again for each.
func TestCVE_2021_20291_LayersThatTakeForever(t *testing.T) {
	broken := func(content string) v1.Layer { return static.NewLayer([]byte(content), types.DockerLayer) }
	var opaque []tar.Header
	for i := range 2000 {
		opaque = append(opaque, tar.Header{Name: fmt.Sprintf("dir/%d", i), Typeflag: tar.TypeReg, Mode: 0o644})
	}
	for range 5000 {
		opaque = append(opaque, tar.Header{Name: "dir/.wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o644})
	}
	for what, layer := range map[string]v1.Layer{
		"xz that ends at once":                         broken("\xfd7zXZ\x00"),
		"xz of nothing":                                broken("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46" + strings.Repeat("\x00", 1<<16)),
		"zstd that ends at once":                       broken("\x28\xb5\x2f\xfd\x04"),
		"bzip2 that ends at once":                      broken("BZh9"),
		"opaque whiteouts without end, CVE-2026-95838": rawLayer(t, opaque...),
	} {
		r := newRegistry(t)
		r.push(t, "a:1", picture(t, "slow", layer))
		s := newWorld(t, r).open(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := s.Pull(ctx, PullRequest{Ref: r.host + "/a:1"})
		if ctx.Err() != nil {
			t.Errorf("%s: it took all its time: %v", what, err)
		}
		cancel()
		check(t, s.Close()) // and nobody hangs in it
	}
}
