package storage

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/crid/crid/internal/errdef"
)

// wantFiles looks for the files of a stored artifact; names and contents alternate.
func wantFiles(t *testing.T, s *Images, id string, files ...string) {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	check(t, err)
	for i := 0; i < len(files); i += 2 {
		if data, err := os.ReadFile(filepath.Join(dirs[0], files[i])); err != nil || string(data) != files[i+1] {
			t.Errorf("%s has %d bytes, %v", files[i], len(data), err)
		}
	}
}

// withConfig is an artifact whose configuration is not empty.
func withConfig(t *testing.T) rawManifest {
	t.Helper()
	p := rawManifest{blobs: map[string][]byte{}}
	p.raw = encode(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": p.blob("application/vnd.example.config", `{"a":1}`, ""), "layers": []any{p.blob("text/plain", "content", "f")},
	})
	return p
}

func TestArtifactsGoByArchive(t *testing.T) {
	r := newRegistry(t)
	first := newWorld(t, r).open(t)
	files := []string{"weights.bin", strings.Repeat("model", 100_000), "sub/dir/readme.md", "read me", "twice", "read me", "empty", "", "in.xz", "\xfd7zXZ\x00 and what follows"}
	for name, p := range map[string]rawManifest{"model": parcel(t, "application/vnd.example.model", files...), "config": withConfig(t), "none": parcel(t, "application/vnd.example.none")} {
		r.put(t, name+":1", p)
		r.put(t, name+":2", p)
		pull(t, first, r.host+"/"+name+":1")
	}
	model := pull(t, first, r.host+"/model:2")
	r.push(t, "image:1", simple(t, "beside"))
	image := pull(t, first, r.host+"/image:1")

	raw := save(t, first, OCIArchive, r.host+"/model:2", r.host+"/config:1", r.host+"/none:1", r.host+"/image:1")
	w := newWorld(t)
	second := w.open(t)
	loaded := load(t, second, raw, "")
	if len(loaded) != 4 || loaded[0].ID != model.ID || loaded[0].ArtifactType != model.ArtifactType || loaded[0].Size != model.Size ||
		!slices.Equal(loaded[0].RepoTags, []string{r.host + "/model:2"}) || !slices.Equal(loaded[0].RepoDigests, model.RepoDigests) || loaded[3].ID != image.ID {
		t.Errorf("loaded %+v", loaded)
	}
	wantFiles(t, second, model.ID, files...)
	wantFiles(t, second, loaded[1].ID, "f", "content")
	if again := save(t, second, OCIArchive, r.host+"/model:2", r.host+"/config:1", r.host+"/none:1", r.host+"/image:1"); !bytes.Equal(raw, again) {
		t.Error("the second archive differs from the first")
	}
	if again := load(t, second, raw, ""); len(again) != 4 || len(list(t, second)) != 4 {
		t.Errorf("loaded twice: %+v", again)
	}
	waitFor(t, func() bool { return second.leased(t, model.ID) })
	check(t, second.Close())
	wantFiles(t, w.open(t), model.ID, files...)
}

func TestAnArtifactWithoutATagKeepsItsDigest(t *testing.T) {
	r := newRegistry(t)
	p := parcel(t, "application/vnd.example.a", "f", "content")
	r.put(t, "a:1", p)
	name := r.host + "/a@" + digest.FromBytes(p.raw).String()
	first := newWorld(t, r).open(t)
	pull(t, first, name)
	second := newWorld(t).open(t)
	load(t, second, save(t, first, OCIArchive, name), "")
	wantFiles(t, second, resolve(t, second, name).ID, "f", "content")
}

func TestArtifactsThatCannotGoByArchive(t *testing.T) {
	r := newRegistry(t)
	s := newDamagedWorld(t, r).open(t)
	r.put(t, "a:1", parcel(t, "application/vnd.example.a", "f", "content"))
	ref := r.host + "/a:1"
	img := pull(t, s, ref)
	var out bytes.Buffer
	err := s.Save(t.Context(), SaveRequest{Refs: []string{ref}, Format: DockerArchive}, &out)
	if !errors.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), ref) || !strings.Contains(err.Error(), "save it as oci-archive") || out.Len() > 0 {
		t.Errorf("as Docker's: %v", err)
	}
	raw := save(t, s, OCIArchive, ref)
	for what, change := range map[string][2]string{"another content": {"content", "CONTENT"}, "a name that climbs": {`"f"`, `"/"`}, "a blob that is not there": {"blobs/sha256/" + digest.FromString("content").Encoded(), "other/sha256/" + digest.FromString("content").Encoded()}} {
		other := newWorld(t).open(t)
		images, err := tryLoad(t.Context(), other, bytes.ReplaceAll(raw, []byte(change[0]), []byte(change[1])), "")
		layers, listErr := other.layerMap()
		if err == nil || listErr != nil || len(layers) > 0 || len(list(t, other)) > 0 {
			t.Errorf("%s: loaded %v, %v; left %v, %v", what, images, err, layers, listErr)
		}
	}
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	file := filepath.Join(dirs[0], "f")
	for what, harm := range map[string]func() error{
		"changed": func() error { return os.WriteFile(file, []byte("CONTENT"), 0o600) },
		"short":   func() error { return os.WriteFile(file, []byte("cont"), 0o600) },
		"missing": func() error { return nil },
		"a link":  func() error { return os.Symlink("/etc/passwd", file) },
	} {
		check(t, ignoreAbsent(os.Remove(file)))
		check(t, harm())
		if err := s.Save(t.Context(), SaveRequest{Refs: []string{ref}, Format: OCIArchive}, &out); err == nil || !strings.Contains(err.Error(), "crid image verify") {
			t.Errorf("a file that is %s: %v", what, err)
		}
	}
}

// TestSignaturesOfADirectoryAreKept: what a policy asks for when an image is loaded it asks for again when it is used.
func TestSignaturesOfADirectoryAreKept(t *testing.T) {
	for _, listed := range []bool{false, true} {
		w := newWorld(t)
		img := simple(t, "signed")
		raw, err := img.RawManifest()
		check(t, err)
		of := digest.FromBytes(raw).String()
		key := w.gpg(t, fullName, of)
		signature, err := os.ReadFile(w.in("lookaside/a/b@sha256=" + digest.Digest(of).Encoded() + "/signature-1"))
		check(t, err)
		policy := `{"default":[{"type":"reject"}],"transports":{"dir":{"":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"` + key +
			`","signedIdentity":{"type":"exactReference","dockerReference":"` + fullName + `"}}]}}}`
		w.PolicyPath = w.write(t, "policy.json", []byte(policy))
		s := w.open(t)
		_, err = tryLoad(t.Context(), s, plainDir(t, img), fullName)
		wantRefused(t, err)
		entries := append(dirOf(t, img), file("signature-1", string(signature)))
		if listed {
			entries = append(listedDir(t, img), file(digest.Digest(of).Encoded()+".signature-1", string(signature)))
		}
		loaded := load(t, s, packed(t, entries...), fullName)
		use := Use{ImageID: loaded[0].ID, Name: fullName}
		check(t, s.Permit(t.Context(), use))
		check(t, s.Close())
		s = w.open(t)
		check(t, s.Permit(t.Context(), use))
		w.write(t, "policy.json", []byte(strings.ReplaceAll(policy, fullName, "example.com/other:1")))
		wantRefused(t, s.Permit(t.Context(), use))
	}
}
