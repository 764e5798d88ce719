package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/directory"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	itypes "go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
)

func emptyIndex() v1.ImageIndex { return empty.Index }

// load loads an archive and returns the images that were told of.
func load(t *testing.T, s *Images, raw []byte, name string) []Image {
	t.Helper()
	images, err := tryLoad(t.Context(), s, raw, name)
	check(t, err)
	return images
}

func tryLoad(ctx context.Context, s *Images, raw []byte, name string) (images []Image, err error) {
	err = s.Load(ctx, LoadRequest{Archive: bytes.NewReader(raw), Name: name, Loaded: func(img Image, _ bool) error {
		images = append(images, img)
		return nil
	}})
	return images, err
}

func save(t *testing.T, s *Images, format Format, refs ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	check(t, s.Save(t.Context(), SaveRequest{Refs: refs, Format: format}, &out))
	return out.Bytes()
}

const fullName = "example.com/a/b:1"

func TestALoadedImageIsThePulledOne(t *testing.T) {
	img := simple(t, "loaded")
	named := map[string]string{annotationName: fullName, "org.opencontainers.image.ref.name": "1"}
	twice := picture(t, "loaded twice", layer(t, false, "same", "same"), layer(t, false, "other", "other"), layer(t, false, "same", "same"))
	for _, c := range []struct {
		form string
		img  v1.Image
		raw  []byte
		name string // given by hand
	}{
		{"docker save", img, legacySave(t, map[string]v1.Image{fullName: img}), ""},
		{"docker save with links", twice, legacySave(t, map[string]v1.Image{fullName: twice}), ""},
		{"docker save since 25", asOCI(img), ociLayout(t, true, named, asOCI(img)), ""},
		{"crane", img, craneSave(t, fullName, img), ""},
		{"OCI layout", asOCI(img), ociLayout(t, false, named, asOCI(img)), ""},
		{"OCI layout of podman", asOCI(img), ociLayout(t, false, map[string]string{"org.opencontainers.image.ref.name": fullName}, asOCI(img)), ""},
		{"OCI layout with a bare tag", asOCI(img), ociLayout(t, false, map[string]string{"org.opencontainers.image.ref.name": "1"}, asOCI(img)), fullName},
		{"OCI index", img, ociLayout(t, false, named, indexOf(t, types.OCIImageIndex, img)), ""},
		{"zstd", asOCI(picture(t, "z", layer(t, true, "a", "a"))), ociLayout(t, false, named, asOCI(picture(t, "z", layer(t, true, "a", "a")))), ""},
		{"directory", img, plainDir(t, img), fullName},
	} {
		t.Run(c.form, func(t *testing.T) {
			r := newRegistry(t)
			w := newWorld(t, r)
			s := w.open(t)
			images := load(t, s, c.raw, c.name)
			if len(images) != 1 || images[0].ID != idOf(t, c.img) || !slices.Equal(images[0].RepoTags, []string{fullName}) {
				t.Fatalf("loaded %+v, want %s as %s", images, idOf(t, c.img), fullName)
			}
			layers, err := s.Layers(t.Context(), images[0].ID)
			check(t, err)
			r.push(t, "pulled/it:1", c.img)
			pulled := pull(t, s, r.host+"/pulled/it:1")
			again, err := s.Layers(t.Context(), pulled.ID)
			check(t, err)
			if pulled.ID != images[0].ID || !slices.Equal(layers, again) {
				t.Errorf("pulled %s with %v; loaded %s with %v", pulled.ID, again, images[0].ID, layers)
			}
		})
	}
}

func TestAPodMayAskForTheDigestOfALoadedList(t *testing.T) {
	s := newWorld(t).open(t)
	index := indexOf(t, types.OCIImageIndex, simple(t, "list"))
	listed, err := index.Digest()
	check(t, err)
	img := load(t, s, ociLayout(t, false, map[string]string{annotationName: fullName}, index), "")[0]
	if got := resolve(t, s, "example.com/a/b@"+listed.String()); got.ID != img.ID {
		t.Errorf("by the list's digest: %s, want %s", got.ID, img.ID)
	}
}

func TestAnEncryptedArchiveNeedsAKeyOfTheNode(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", asOCI(simple(t, "secret")))
	key := w.encrypt(t, r.host+"/plain:1", r.host+"/encrypted:1")
	ref, err := name.ParseReference(r.host+"/encrypted:1", name.Insecure)
	check(t, err)
	img, err := remote.Image(ref)
	check(t, err)
	raw := ociLayout(t, false, map[string]string{annotationName: fullName}, img)
	s := w.open(t)
	if _, err := tryLoad(t.Context(), s, raw, ""); err == nil || !strings.Contains(err.Error(), "there is no key") || len(list(t, s)) > 0 {
		t.Errorf("without a key: %v, stored %v", err, list(t, s))
	}
	w.write(t, "keys/own.pem", key)
	if loaded := load(t, s, raw, ""); len(loaded) != 1 || loaded[0].ID != idOf(t, img) {
		t.Errorf("loaded %+v", loaded)
	}
	checkLayers(t, s, idOf(t, img), "secret")
}

func TestALoadedImageIsTheStoresOwn(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	img := simple(t, "shelved")
	r.push(t, "a:1", img)
	w.Shelves = []string{newShelf(t, r, "a:1")}
	s := w.open(t)
	loaded := load(t, s, legacySave(t, map[string]v1.Image{fullName: img}), "")
	if len(loaded) != 1 || loaded[0].Store != "" || !slices.Contains(loaded[0].RepoTags, fullName) {
		t.Errorf("loaded %+v", loaded)
	}
	checkLayers(t, s, loaded[0].ID, "shelved")
	if dirs, _ := s.Layers(t.Context(), loaded[0].ID); !strings.HasPrefix(dirs[0], s.root) {
		t.Errorf("layers %v", dirs)
	}
}

// TestADigestGoesAlong saves an image that was pulled, and loads it where pods name it by the digests of the registry.
func TestADigestGoesAlong(t *testing.T) {
	r := newRegistry(t)
	img := simple(t, "pinned by digest")
	index := indexOf(t, types.OCIImageIndex, img)
	r.push(t, "one/image:1", img)
	r.push(t, "one/list:1", index)
	first := newWorld(t, r).open(t)
	pull(t, first, r.host+"/one/image:1")
	pulled := pull(t, first, r.host+"/one/list:1")
	raw := save(t, first, DockerArchive, pulled.ID)
	second := newWorld(t).open(t)
	loaded := load(t, second, raw, "")[0]
	for _, name := range pulled.RepoDigests {
		if got := resolve(t, second, name); got.ID != pulled.ID {
			t.Errorf("%s means %s, want %s", name, got.ID, pulled.ID)
		}
	}
	if len(pulled.RepoDigests) != 2 || len(loaded.RepoDigests) < 2 {
		t.Errorf("digests %v, then %v", pulled.RepoDigests, loaded.RepoDigests)
	}
	if again := save(t, second, DockerArchive, pulled.ID); !bytes.Equal(raw, again) {
		t.Error("the second archive differs from the first")
	}
	one := load(t, newWorld(t).open(t), save(t, first, OCIArchive, r.host+"/one/image:1"), "")[0]
	if slices.ContainsFunc(one.RepoDigests, func(name string) bool { return strings.Contains(name, "one/list") }) {
		t.Errorf("saved by a tag of one repository, it is known by %v", one.RepoDigests)
	}
	other, err := simple(t, "another").Digest()
	check(t, err)
	lie := bytes.ReplaceAll(raw, []byte(pulled.RepoDigests[0]), []byte(strings.Split(pulled.RepoDigests[0], "@")[0]+"@"+other.String()))
	if _, err := tryLoad(t.Context(), newWorld(t).open(t), lie, ""); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "prove") {
		t.Errorf("a lie was loaded: %v", err)
	}
}

func TestRoundTrips(t *testing.T) {
	docker, oci := simple(t, "docker"), asOCI(simple(t, "oci"))
	for _, format := range []Format{DockerArchive, OCIArchive} {
		t.Run(string(format), func(t *testing.T) {
			first := newWorld(t).open(t)
			load(t, first, legacySave(t, map[string]v1.Image{"example.com/d:1": docker}), "")
			load(t, first, ociLayout(t, false, nil, oci), "example.com/o:1")
			_, err := first.Tag(t.Context(), "example.com/o:1", []string{"example.com/o:2"})
			check(t, err)
			raw := save(t, first, format, "example.com/d:1", idOf(t, oci))
			second := newWorld(t).open(t)
			loaded := load(t, second, raw, "")
			if len(loaded) != 2 || loaded[0].ID != idOf(t, docker) || loaded[1].ID != idOf(t, oci) ||
				!slices.Equal(loaded[0].RepoTags, []string{"example.com/d:1"}) || !slices.Equal(loaded[1].RepoTags, []string{"example.com/o:1", "example.com/o:2"}) {
				t.Fatalf("loaded %+v", loaded)
			}
			if again := save(t, second, format, "example.com/d:1", idOf(t, oci)); !bytes.Equal(raw, again) {
				t.Error("the second archive differs from the first")
			}
			readByOthers(t, format, raw, "example.com/d:1", idOf(t, docker))
			readByOthers(t, format, raw, "example.com/o:2", idOf(t, oci))
		})
	}
}

// TestProgressOfArchives: each layer is told of, by name of its image, until it is there; what two images have is saved once.
func TestProgressOfArchives(t *testing.T) {
	r := newRegistry(t)
	first := newWorld(t, r).open(t)
	base, other := layer(t, false, "base", strings.Repeat("b", 300_000)), layer(t, false, "other", "o")
	for name, img := range map[string]v1.Image{"example.com/one:1": picture(t, "one", base), "example.com/two:1": picture(t, "two", base, other)} {
		load(t, first, legacySave(t, map[string]v1.Image{name: img}), "")
	}
	r.put(t, "model:1", parcel(t, "application/vnd.example.a", "f", "content", "g", "more"))
	model := pull(t, first, r.host+"/model:1")
	var out bytes.Buffer
	var told [][]LayerProgress
	ask := SaveRequest{Refs: []string{"example.com/one:1", "example.com/two:1", model.ID}, Format: OCIArchive, Progress: func(l []LayerProgress) { told = append(told, l) }}
	check(t, first.Save(t.Context(), ask, &out))
	if len(told) < 4 || len(told[0]) != 4 {
		t.Fatalf("told %v", told)
	}
	for _, l := range told[len(told)-1] {
		if l.State != LayerSaved || l.Done != l.Total || l.Total == 0 {
			t.Errorf("at the end of a save: %+v", l)
		}
	}
	if l := told[0][3]; l.State != LayerWaiting || l.Done != 0 {
		t.Errorf("in the beginning: %+v", l)
	}
	last := map[string][]LayerProgress{}
	progress := func(image string, l []LayerProgress) { last[image] = l }
	second := newWorld(t).open(t)
	loaded := func(Image, bool) error { return nil }
	check(t, second.Load(t.Context(), LoadRequest{Archive: &out, Loaded: loaded, Progress: progress}))
	for image, want := range map[string][]LayerState{
		"example.com/one:1": {LayerStored}, "example.com/two:1": {LayerReused, LayerStored}, r.host + "/model:1": {LayerStored, LayerStored},
	} {
		var got []LayerState
		for _, l := range last[image] {
			got = append(got, l.State)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: at the end %v, want %v", image, last[image], want)
		}
	}
}

// readByOthers reads an archive as skopeo and podman do.
func readByOthers(t *testing.T, format Format, raw []byte, name, id string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.tar")
	check(t, os.WriteFile(path, raw, 0o600))
	parse := dockerarchive.Transport.ParseReference
	if format == OCIArchive {
		parse = ociarchive.Transport.ParseReference
	}
	src, err := parse(path + ":" + name)
	check(t, err)
	dst, err := directory.NewReference(t.TempDir())
	check(t, err)
	policy, err := acceptAll()
	check(t, err)
	_, err = copy.Image(t.Context(), policy, dst, src, &copy.Options{})
	check(t, err)
	img, err := dst.NewImage(t.Context(), &itypes.SystemContext{})
	check(t, err)
	if got := img.ConfigInfo().Digest.Encoded(); got != id {
		t.Errorf("others find image %s, want %s", got, id)
	}
	check(t, img.Close())
}

func TestWhatCannotBeLoaded(t *testing.T) {
	img := simple(t, "hostile")
	good := legacySave(t, map[string]v1.Image{fullName: img})
	listing := func(d dockerImage) entryOf { return file("manifest.json", string(encode(t, []dockerImage{d}))) }
	config := file("config.json", configOf(t, img))
	var layers []entryOf
	var names []string
	for i, l := range blobsOf(t, img) {
		names = append(names, string(rune('a'+i)))
		layers = append(layers, file(names[i], inflated(t, l)))
	}
	named := dockerImage{Config: "config.json", Layers: names}
	huge := file("manifest.json", strings.Repeat(" ", maxArchiveJSON+1))
	sha := func(text string) string { return digest.FromString(text).Encoded() }
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:../../../../etc/shadow","size":1},"layers":[]}`
	layoutOf := func(d string) []entryOf {
		return []entryOf{file("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), file("index.json", `{"schemaVersion":2,"manifests":[{"digest":"`+d+`"}]}`)}
	}
	headers := string(endlessHeaders(t))
	xz := "\xfd7zXZ\x00 and what follows"
	inXz := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + idOf(t, img) +
		`","size":` + strconv.Itoa(len(config.content)) + `},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:` + sha(xz) + `","size":` + strconv.Itoa(len(xz)) + `}]}`
	blob := func(content string) entryOf { return file("blobs/sha256/"+sha(content), content) }
	for _, c := range []struct {
		form string
		raw  []byte
		want string
	}{
		{"nothing", nil, "no archive of images"},
		{"text", []byte(strings.Repeat("no tar at all ", 100)), "no tar"},
		{"a tar of something else", packed(t, file("etc/passwd", "root")), "no archive of images"},
		{"half of one", good[:len(good)/3], "not whole"},
		{"without a layer", packed(t, config, layers[0], listing(named)), "the archive has no b"},
		{"layers exchanged", packed(t, config, file("a", layers[1].content), file("b", layers[0].content), listing(named)), "igest"},
		{"a layer too few", packed(t, config, layers[0], listing(dockerImage{Config: "config.json", Layers: names[:1]})), "1 layers"},
		{"a layer that is a path of the host", packed(t, config, layers[0], special(tar.TypeSymlink, "b", "/proc/self/environ"), listing(named)), "the archive has no b"},
		{"a configuration that is a path of the host", packed(t, listing(dockerImage{Config: "../../../../etc/shadow"})), "the archive has no"},
		{"links without end", packed(t, special(tar.TypeSymlink, "config.json", "x"), special(tar.TypeSymlink, "x", "config.json"), listing(named)), "without end"},
		{"a device", packed(t, config, layers[0], special(tar.TypeBlock, "b", ""), listing(named)), "the archive has no b"},
		{"a layer in xz", packed(t, config, layers[0], file("b", xz), listing(named)), "xz"},
		{"a layout with a layer in xz", packed(t, append(layoutOf("sha256:"+sha(inXz)), blob(inXz), blob(config.content), blob(xz))...), "compressed with xz"},
		{"a tag that is none", packed(t, config, layers[0], layers[1], listing(dockerImage{Config: "config.json", Layers: names, RepoTags: []string{"../../x y"}})), "its tag"},
		{"a list of many", packed(t, config, file("manifest.json", "["+strings.Repeat(`{"Config":"config.json"},`, maxImages)+`{"Config":"config.json"}]`)), "more than crid gives"},
		{"a large list", packed(t, huge), "are allowed"},
		{"no list", packed(t, file("manifest.json", "{")), "manifest.json"},
		{"an empty list", packed(t, file("manifest.json", "[]")), "no image"},
		{"before Docker 1.10", packed(t, file("repositories", "{}")), "1.10"},
		{"a digest that is a path", packed(t, layoutOf("sha256:../../../../etc/shadow")...), "digest"},
		{"a configuration's digest that is a path", packed(t, append(layoutOf("sha256:"+sha(manifest)), file("blobs/sha256/"+sha(manifest), manifest))...), "no digest"},
		{"a manifest that is another", packed(t, append(layoutOf("sha256:"+sha("x")), file("blobs/sha256/"+sha("x"), manifest))...), "does not match its digest"},
		{"an index of nothing", packed(t, file("oci-layout", "{}"), file("index.json", "{}")), "no image for"},
		{"headers without end", packed(t, file("config.json", `{"rootfs":{"diff_ids":["sha256:`+sha(headers)+`"]}}`), file("a", headers), listing(dockerImage{Config: "config.json", Layers: names[:1]})), "more than crid gives"},
		{"a hole", append(packed(t, file("config.json", "x"))[:1024], sparse()...), "holes"},
		{"many files", packed(t, manyFiles(maxMembers+1)...), "more than crid gives"},
	} {
		t.Run(c.form, func(t *testing.T) {
			w := newWorld(t)
			s := w.open(t)
			images, err := tryLoad(t.Context(), s, c.raw, "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("loaded %v, %v; want %q", images, err, c.want)
			}
			if all := list(t, s); len(all) > 0 {
				t.Errorf("stored %v", all)
			}
			layers, err := s.store.Layers()
			check(t, err)
			if len(layers) > 1 { // the first layer of an image may be well; the collector takes it
				t.Errorf("stored %d layers", len(layers))
			}
		})
	}
}

func TestAnArchiveIsTakenBackWhenItsSenderGoes(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client is gone")
	raw := legacySave(t, map[string]v1.Image{fullName: simple(t, "gone")})
	half := io.MultiReader(bytes.NewReader(raw[:len(raw)/2]), readerFunc(func([]byte) (int, error) {
		cancel(gone)
		return 0, context.Canceled
	}))
	if err := s.Load(ctx, LoadRequest{Archive: half}); !errors.Is(err, gone) {
		t.Errorf("it ended with %v", err)
	}
}

func TestAFullDiskEndsALoad(t *testing.T) {
	w := newSmallWorld(t, newLiar(t), "96m")
	s := w.open(t)
	before := used(t, w.Root)
	config := encode(t, map[string]any{"rootfs": map[string]any{"diff_ids": []digest.Digest{unpacked(bomb(t, 160))}}})
	bombs := packed(t, file("c", string(config)), file("l", string(bomb(t, 160))), file("manifest.json", string(encode(t, []dockerImage{{Config: "c", Layers: []string{"l"}}}))))
	for name, from := range map[string]io.Reader{"without end": endlessTar(t), "of a bomb": bytes.NewReader(bombs)} {
		var err error
		grown := peak(t, func() { err = s.Load(t.Context(), LoadRequest{Archive: from}) })
		if !errors.Is(err, errdef.Exhausted) || grown > maxMemory {
			t.Errorf("an archive %s: %d MiB of memory, %v", name, grown>>20, err)
		}
		if after := used(t, w.Root); after > before+1<<20 {
			t.Errorf("an archive %s leaves %d bytes", name, after-before)
		}
	}
	load(t, s, legacySave(t, map[string]v1.Image{fullName: simple(t, "after")}), "")
}

func manyFiles(n int) []entryOf {
	var all []entryOf
	for i := range n {
		all = append(all, file(strconv.Itoa(i), ""))
	}
	return all
}

func TestThePolicyRulesWhatIsLoaded(t *testing.T) {
	img := simple(t, "ruled")
	for _, c := range []struct {
		policy string
		well   bool
	}{
		{`{"default":[{"type":"reject"}]}`, false},
		{`{"default":[{"type":"reject"}],"transports":{"docker-archive":{"":[{"type":"insecureAcceptAnything"}]}}}`, true},
		{`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker-archive":{"":[{"type":"reject"}]}}}`, false},
		{`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"oci-archive":{"":[{"type":"reject"}]}}}`, true},
	} {
		w := newWorld(t)
		w.PolicyPath = filepath.Join(w.dir, "policy.json")
		check(t, os.WriteFile(w.PolicyPath, []byte(c.policy), 0o600))
		s := w.open(t)
		_, err := tryLoad(t.Context(), s, legacySave(t, map[string]v1.Image{fullName: img}), "")
		if c.well && err != nil || !c.well && !errors.Is(err, errdef.SignatureInvalid) {
			t.Errorf("%s: %v", c.policy, err)
		}
		if c.well {
			check(t, s.Permit(t.Context(), Use{ImageID: idOf(t, img), Name: fullName}))
			check(t, os.WriteFile(w.PolicyPath, []byte(`{"default":[{"type":"reject"}],"transports":{"oci-archive":{"":[{"type":"insecureAcceptAnything"}]}}}`), 0o600))
			wantRefused(t, s.Permit(t.Context(), Use{ImageID: idOf(t, img), Name: fullName}))
		}
	}
}

// FuzzArchive reads any bytes as an archive of images: nothing but its own bytes is read, and nothing waits for ever.
func FuzzArchive(f *testing.F) {
	config := `{"rootfs":{"diff_ids":["sha256:` + digest.FromString("l").Encoded() + `"]}}`
	docker := []entryOf{file("c", config), file("l", "l"), file("manifest.json", `[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`)}
	f.Add(packed(f, docker...))
	f.Add(packed(f, append(docker, special(tar.TypeSymlink, "m", "../l"), special(tar.TypeLink, "n", "m"), special(tar.TypeSymlink, "o", "o"))...))
	f.Add(packed(f, file("oci-layout", "{}"), file("index.json", `{"manifests":[{"digest":"sha256:`+digest.FromString("{}").Encoded()+`"}]}`), file("blobs/sha256/"+digest.FromString("{}").Encoded(), "{}")))
	f.Add(packed(f, file("version", ""), file("manifest.json", "{}"), file("signature-1", "x")))
	f.Add(packed(f, file("manifest.json", "[]"), file("repositories", "")))
	f.Add(sparse())
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kept, err := os.CreateTemp(t.TempDir(), "")
		check(t, err)
		a := newArchiveFile(kept)
		defer a.close()
		if a.members, err = a.fill(bytes.NewReader(raw)); err != nil {
			return
		}
		for name := range a.members {
			r, err := a.open(name)
			if err != nil {
				continue
			}
			if content, err := io.ReadAll(r); err != nil || !bytes.Contains(raw, content) {
				t.Errorf("%q has %d bytes that are not of the archive, %v", name, len(content), err)
			}
		}
		if ref, ok := parsePulled(string(raw)); ok && ref.Digest().Validate() != nil {
			t.Errorf("%q is read as a name with a digest", raw)
		}
		if found := proof("sha256:d", "sha256:i", func(digest.Digest) []byte { return raw }); found != nil && !bytes.Contains(raw, []byte("sha256:i")) {
			t.Errorf("%q proves what it does not name", raw)
		}
		images, err := a.images()
		if (err == nil) != (len(images) > 0) {
			t.Errorf("%d images, %v", len(images), err)
		}
		for _, img := range images {
			if img.open(t.Context()) != nil {
				continue
			}
			if _, _, err := img.GetManifest(t.Context(), nil); err != nil {
				t.Errorf("the manifest of an image that was opened: %v", err)
			}
			_, _, _ = img.GetBlob(t.Context(), itypes.BlobInfo{Digest: digest.Digest(raw)}, nil) // as good as any
		}
	})
}
