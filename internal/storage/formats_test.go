package storage

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.podman.io/storage/pkg/chunked/compressor"

	"github.com/crid/crid/internal/errdef"
)

// recompressed is a layer whose blob make has made of the archive.
func recompressed(t *testing.T, l v1.Layer, kind types.MediaType, make func(to io.Writer) (io.WriteCloser, error)) v1.Layer {
	t.Helper()
	archive, err := l.Uncompressed()
	check(t, err)
	var blob bytes.Buffer
	w, err := make(&blob)
	check(t, err)
	_, err = io.Copy(w, archive)
	check(t, errors.Join(err, w.Close()))
	diff, err := l.DiffID()
	check(t, err)
	return blobLayer{static.NewLayer(blob.Bytes(), kind), diff}
}

// blobLayer is a layer as its blob is, with what is in it known.
type blobLayer struct {
	v1.Layer
	diff v1.Hash
}

func (l blobLayer) DiffID() (v1.Hash, error) { return l.diff, nil }

func plain(to io.Writer) (io.WriteCloser, error) { return nopWriter{to}, nil }

type nopWriter struct{ io.Writer }

func (nopWriter) Close() error { return nil }

func zstdChunked(to io.Writer) (io.WriteCloser, error) {
	return compressor.ZstdCompressor(to, map[string]string{}, nil)
}

func TestCompressions(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	for mark, c := range map[string]struct {
		kind types.MediaType
		make func(io.Writer) (io.WriteCloser, error)
	}{
		"uncompressed":        {types.OCIUncompressedLayer, plain},
		"docker-uncompressed": {types.DockerUncompressedLayer, plain},
		"zstd-chunked":        {types.OCILayerZStd, zstdChunked},
	} {
		t.Run(mark, func(t *testing.T) {
			img := picture(t, mark,
				recompressed(t, layer(t, false, "base", "base of "+mark), c.kind, c.make),
				recompressed(t, layer(t, false, "top", "top of "+mark), c.kind, c.make))
			if !strings.HasPrefix(mark, "docker") {
				img = asOCI(img)
			}
			r.push(t, mark+":1", img)
			checkLayers(t, s, pull(t, s, r.host+"/"+mark+":1").ID, mark)
		})
	}
}

// TestAttestationsAreNoPlatforms: BuildKit puts a manifest of platform unknown/unknown beside each image.
func TestAttestationsAreNoPlatforms(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	own := asOCI(simple(t, "own"))
	statement := mutate.ConfigMediaType(mutate.MediaType(picture(t, "attestation", static.NewLayer([]byte("{}"), "application/vnd.in-toto+json")), types.OCIManifestSchema1), types.OCIConfigJSON)
	unknown := v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}
	index := mutate.IndexMediaType(mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: statement, Descriptor: unknown},
		mutate.IndexAddendum{Add: own, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	), types.OCIImageIndex)
	r.push(t, "attested:1", index)
	img := pull(t, s, r.host+"/attested:1")
	if img.ID != idOf(t, own) || img.ArtifactType != "" {
		t.Errorf("got %+v", img)
	}
	r.push(t, "only:1", mutate.IndexMediaType(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: statement, Descriptor: unknown}), types.OCIImageIndex))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/only:1"}); err == nil || !strings.Contains(err.Error(), runtime.GOARCH) {
		t.Errorf("an index with nothing for this platform: %v", err)
	}
}

// TestVariants: of an index with variants of amd64 alone, the highest that the processor has is taken.
func TestVariants(t *testing.T) {
	variants := amd64Variants()
	if (runtime.GOARCH == "amd64") != (len(variants) > 0) {
		t.Fatalf("variants %v on %s", variants, runtime.GOARCH)
	}
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	index := func(names ...string) v1.ImageIndex {
		var all []mutate.IndexAddendum
		for _, v := range names {
			all = append(all, mutate.IndexAddendum{Add: asOCI(simple(t, "variant "+v)), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: v}}})
		}
		return mutate.IndexMediaType(mutate.AppendManifests(empty.Index, all...), types.OCIImageIndex)
	}
	r.push(t, "both:1", index("v9", "", "v1"))
	if img := pull(t, s, r.host+"/both:1"); img.Labels["mark"] != "variant " {
		t.Errorf("of one without variant and others %s was taken", img.Labels["mark"])
	}
	r.push(t, "foreign:1", index("v9"))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/foreign:1"}); err == nil {
		t.Error("an image for a processor that does not exist was pulled")
	}
	if len(variants) > 0 {
		r.push(t, "some:1", index("v9", variants[len(variants)-1], variants[0]))
		if img := pull(t, s, r.host+"/some:1"); img.Labels["mark"] != "variant "+variants[0] {
			t.Errorf("%s was taken, the processor has %v", img.Labels["mark"], variants)
		}
		archive := ociLayout(t, false, map[string]string{annotationName: fullName}, index("v9", variants[len(variants)-1], variants[0]))
		if img := load(t, newWorld(t).open(t), archive, "")[0]; img.Labels["mark"] != "variant "+variants[0] {
			t.Errorf("of an archive %s was taken", img.Labels["mark"])
		}
	}
}

func TestForeignLayersAreRefused(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	for _, kind := range []types.MediaType{types.DockerForeignLayer, types.OCIRestrictedLayer} {
		img := picture(t, "foreign", recompressed(t, layer(t, false, "f", "f"), kind, plain))
		if kind == types.OCIRestrictedLayer {
			img = asOCI(img)
		}
		r.push(t, "foreign:1", img)
		before, _ := r.fetched()
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/foreign:1"})
		if after, _ := r.fetched(); !errors.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), "foreign") || after != before {
			t.Errorf("%s: %v; %d blobs fetched", kind, err, after-before)
		}
	}
	if left := list(t, s); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestManifestsThatAreNoImages(t *testing.T) {
	for kind, raw := range map[string]string{
		"application/vnd.docker.distribution.manifest.v1+prettyjws": `{"schemaVersion":1,"name":"a","tag":"1"}`,
		"application/vnd.docker.distribution.manifest.v1+json":      `{"schemaVersion":1}`,
		"application/vnd.oci.artifact.manifest.v1+json":             `{"blobs":[]}`,
	} {
		r := newRegistry(t)
		s := newWorld(t, r).open(t)
		r.set(func(r *fakeRegistry) {
			r.next = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, "/manifests/") {
					w.Header().Set("Content-Type", kind)
					_, _ = io.WriteString(w, raw)
				}
			})
		})
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"})
		if !errors.Is(err, errdef.Unsupported) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// parcel makes an artifact of files, their titles and contents alternating; an empty title is left out.
func parcel(t *testing.T, kind string, files ...string) rawManifest {
	t.Helper()
	p := rawManifest{blobs: map[string][]byte{}}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": kind,
		"annotations": map[string]string{"made-by": "test"},
		"config":      p.blob("application/vnd.oci.empty.v1+json", "{}", ""),
	}
	layers := []any{}
	for i := 0; i < len(files); i += 2 {
		layers = append(layers, p.blob("application/octet-stream", files[i+1], files[i]))
	}
	m["layers"] = layers
	raw, err := json.Marshal(m)
	check(t, err)
	p.raw = raw
	return p
}

// rawManifest is a manifest as it is, with the blobs that it names.
type rawManifest struct {
	raw   []byte
	blobs map[string][]byte
}

func (p rawManifest) blob(kind, content, title string) map[string]any {
	d := digest.FromString(content)
	p.blobs[d.String()] = []byte(content)
	out := map[string]any{"mediaType": kind, "digest": d, "size": len(content)}
	if title != "" {
		out["annotations"] = map[string]string{"org.opencontainers.image.title": title}
	}
	return out
}

// put stores the artifact in the registry as name, which has a tag.
func (r *fakeRegistry) put(t *testing.T, name string, p rawManifest) {
	t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	send := func(method, path, kind string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.host+"/v2/"+repo+path, bytes.NewReader(body))
		check(t, err)
		req.Header.Set("Content-Type", kind)
		resp, err := http.DefaultClient.Do(req)
		check(t, err)
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	for d, content := range p.blobs {
		send(http.MethodPost, "/blobs/uploads/?digest="+d, "application/octet-stream", content)
	}
	send(http.MethodPut, "/manifests/"+tag, string(types.OCIManifestSchema1), p.raw)
}

func TestArtifact(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	big := strings.Repeat("model", 100_000)
	p := parcel(t, "application/vnd.example.model", "weights.bin", big, "sub/dir/readme.md", "read me", "", "nameless", "BZh9 is no bzip2", "x", "empty", "")
	r.put(t, "model:1", p)
	r.put(t, "model:2", p)
	img := pull(t, s, r.host+"/model:1")
	id := digest.FromBytes(p.raw)
	if img.ID != id.Encoded() || img.ArtifactType != "application/vnd.example.model" || img.Size < uint64(len(big)) ||
		!slices.Equal(img.RepoDigests, []string{r.host + "/model@" + id.String()}) || img.Annotations["made-by"] != "test" || img.Config.Cmd != nil {
		t.Errorf("got %+v", img)
	}
	if again := pull(t, s, r.host+"/model:2"); again.ID != img.ID || len(again.RepoTags) != 2 || len(list(t, s)) != 1 {
		t.Errorf("by another tag: %+v", again)
	}
	checkParcel := func(s *Images) {
		t.Helper()
		dirs, err := s.Layers(t.Context(), img.ID)
		check(t, err)
		for name, content := range map[string]string{
			"weights.bin": big, "sub/dir/readme.md": "read me", "BZh9 is no bzip2": "x", "empty": "",
			"sha256-" + digest.FromString("nameless").Encoded(): "nameless",
		} {
			data, err := os.ReadFile(filepath.Join(dirs[0], name))
			if err != nil || string(data) != content {
				t.Errorf("%s has %d bytes, %v", name, len(data), err)
			}
		}
		if st, err := os.Stat(filepath.Join(dirs[0], "sub/dir")); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("directory: %v, %v", st, err)
		}
	}
	checkParcel(s)
	if d, err := s.Inspect(t.Context(), img.ID); err != nil || d.Config != nil || !bytes.Equal(d.Manifest, p.raw) || d.Digest != id {
		t.Errorf("details %+v, %v", d, err)
	}
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.Close())
	s = w.open(t)
	if got := resolve(t, s, r.host+"/model:1"); got.ID != img.ID || got.ArtifactType != img.ArtifactType {
		t.Errorf("after a restart: %+v", got)
	}
	checkParcel(s)
	agrees(t, "the restart", s)
	check(t, s.Remove(t.Context(), r.host+"/model:1"))
	if left, err := s.layerMap(); err != nil || len(left) != 0 || len(list(t, s)) != 0 {
		t.Errorf("after the removal: %v, %v", left, err)
	}
}

// TestSignedArtifacts: the policy is asked about an artifact as about an image, at the pull and at its use.
func TestSignedArtifacts(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	p, other := parcel(t, "application/vnd.example.a", "f", "content"), parcel(t, "application/vnd.example.b", "f", "else")
	r.put(t, "signed:1", p)
	r.put(t, "unsigned:1", other)
	w.PolicyPath = w.write(t, "policy.json", signedBy("signedBy", w.gpg(t, r.host+"/signed:1", digest.FromBytes(p.raw).String())))
	s := w.open(t)
	img := pull(t, s, r.host+"/signed:1")
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/unsigned:1"})
	wantRefused(t, err)
	check(t, s.Close())
	s = w.open(t)
	check(t, s.Permit(t.Context(), Use{ImageID: img.ID}))
}

// TestTwoPullOneArtifact by names of their own, at once: it is stored once, and no layer is left over.
func TestTwoPullOneArtifact(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	p := parcel(t, "application/vnd.example.a", "f", strings.Repeat("x", 50_000))
	names := []string{"a:1", "a:2", "b:1", "b:2"}
	for _, name := range names {
		r.put(t, name, p)
	}
	pulled := make(chan error)
	for _, name := range names {
		go func() {
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + name})
			pulled <- err
		}()
	}
	for range names {
		check(t, <-pulled)
	}
	layers, err := s.layerMap()
	if got := list(t, s); err != nil || len(got) != 1 || len(got[0].RepoTags) != 4 || len(layers) != 1 {
		t.Errorf("images %+v, %d layers, %v", got, len(layers), err)
	}
}

func TestArtifactsWithoutFiles(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.put(t, "none:1", parcel(t, "application/vnd.example.none"))
	img := pull(t, s, r.host+"/none:1")
	if dirs, err := s.Layers(t.Context(), img.ID); err != nil || len(dirs) != 0 || img.Size == 0 {
		t.Errorf("%+v has layers %v, %v", img, dirs, err)
	}
}

func TestArtifactNamesStayInside(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	for _, name := range []string{
		"../f", "/f", "a/../../f", "a/../f", "./f", "a//f", "f/", "..", ".", ".wh.f", ".wh..wh..opq", "a/.wh.f", "a\x00b", "a\nb", "\x1f\x8b",
		strings.Repeat("x", 256), strings.Repeat("x/", 2048) + "x",
	} {
		r.put(t, "bad:1", parcel(t, "application/vnd.example.bad", name, "evil"))
		before, _ := r.fetched()
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/bad:1"})
		if after, _ := r.fetched(); !errors.Is(err, errdef.Invalid) || after != before {
			t.Errorf("%q: %v; %d blobs fetched", name, err, after-before)
		}
	}
	for _, names := range [][]string{{"f", "f"}, {"f", "f/g"}, {"f/g", "f"}} {
		r.put(t, "bad:1", parcel(t, "application/vnd.example.bad", names[0], "1", names[1], "2"))
		if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/bad:1"}); !errors.Is(err, errdef.Invalid) {
			t.Errorf("%q: %v", names, err)
		}
	}
}

func TestBrokenArtifactsLeaveNothing(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	for what, answer := range map[string]string{"long": "123456789", "other": "abcde"} {
		p := parcel(t, "application/vnd.example.broken", "good", strings.Repeat("good", 10_000), "f", "12345")
		r.put(t, "broken:1", p)
		bad := "/blobs/" + digest.FromString("12345").String()
		r.set(func(r *fakeRegistry) {
			r.hold = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.HasSuffix(req.URL.Path, bad) {
					_, _ = io.WriteString(w, answer)
					return true
				}
				return false
			}
		})
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/broken:1"})
		layers, listErr := s.layerMap()
		if err == nil || listErr != nil || len(layers) != 0 || len(list(t, s)) != 0 {
			t.Errorf("%s: %v; left %d layers, %v", what, err, len(layers), listErr)
		}
	}
	agrees(t, "the failures", s)
}

// TestDamagedArtifactIsPulledAgain: its layer cannot be mended as an image's.
func TestDamagedArtifactIsPulledAgain(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	r.put(t, "a:1", parcel(t, "application/vnd.example.a", "f", "content"))
	img := pull(t, s, r.host+"/a:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.setAside(dirs[0]))
	check(t, s.reexamine())
	if got := list(t, s); len(got) != 0 {
		t.Fatalf("a damaged artifact is offered: %+v", got)
	}
	if again := pull(t, s, r.host+"/a:1"); again.ID != img.ID {
		t.Errorf("got %+v", again)
	}
	dirs, err = s.Layers(t.Context(), img.ID)
	check(t, err)
	if data, err := os.ReadFile(filepath.Join(dirs[0], "f")); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
}
