package storage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	splittar "github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// FuzzConfig reads any bytes as an image's configuration. It is what its digest says, and can be told to others.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"config":{"User":"1:2","Env":["A=b"],"Entrypoint":["/a"],"Cmd":["b"],"Volumes":{"/v":{}},"Labels":{"k":"v"},"StopSignal":"TERM","ExposedPorts":{"80/tcp":{}}}}`,
		`{"config":null}`, `{"config":{"Cmd":"a"}}`, `{"Config":{"User":"a"},"config":{"User":"b"}}`, `{"config":{"Env":[null,""]}}`, "null", "[]", "",
		`{"created":"yesterday","rootfs":1,"history":{},"config":{"User":"x"}}`,
	} {
		f.Add([]byte(s), true)
	}
	f.Add([]byte(`{}`), false)
	f.Fuzz(func(t *testing.T, raw []byte, whole bool) {
		key := digest.FromBytes(raw)
		if !whole {
			key = digest.FromString("other" + string(raw))
		}
		config, err := parseConfig(raw, key)
		if !whole && !errors.Is(err, errDamaged) {
			t.Errorf("another's configuration: %v", err)
		}
		if err != nil {
			return
		}
		said, err := json.Marshal(config)
		if err != nil {
			t.Errorf("%s cannot be told: %v", raw, err)
		}
		again, err := parseConfig(slices.Concat([]byte(`{"config":`), said, []byte(`}`)), digest.FromString(`{"config":`+string(said)+`}`))
		if twice, errTwice := json.Marshal(again); err != nil || errTwice != nil || !bytes.Equal(said, twice) {
			t.Errorf("%s is %s, and read again %s, %v, %v", raw, said, twice, err, errTwice)
		}
	})
}

// FuzzManifest reads any bytes as what a registry answers: it is refused, an image, or an artifact whose files lie below
// the directory that they are for, none in the place of another.
func FuzzManifest(f *testing.F) {
	const empty, oci = `"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + dig + `","size":2}`, "application/vnd.oci.image.manifest.v1+json"
	file := func(title string) string {
		return `{"digest":"` + dig + `","size":1,"annotations":{"org.opencontainers.image.title":"` + title + `"}}`
	}
	for _, s := range []string{
		`{` + empty + `,"layers":[` + file("a") + `,` + file("b/c") + `]}`, `{` + empty + `,"layers":[` + file("../a") + `]}`, `{` + empty + `,"layers":[` + file("a") + `,` + file("a/b") + `]}`,
		`{` + empty + `,"artifactType":"x/y","layers":[{"digest":"` + dig + `","size":0},{"digest":"sha256:..","size":-1}]}`, `{` + empty + `}`, `{}`, "", "null", "[]",
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},"annotations":{"a":"b"},"layers":[{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar"}]}`,
	} {
		f.Add([]byte(s), oci)
	}
	f.Add([]byte(`{"schemaVersion":1}`), "application/vnd.docker.distribution.manifest.v1+json")
	f.Fuzz(func(t *testing.T, raw []byte, kind string) {
		a, err := examine(raw, kind)
		if err != nil || a == nil {
			return
		}
		if o := parseOutline(raw); o.artifactKind() == "" {
			t.Errorf("%s is an artifact when it is pulled, and none when it is stored", raw)
		}
		names := map[string]bool{}
		for _, file := range a.files {
			if !filepath.IsLocal(file.name) || names[file.name] || file.blob.Size < 0 || file.blob.Digest.Validate() != nil {
				t.Errorf("%s has the file %+v", raw, file)
			}
			names[file.name] = true
		}
		for name := range names {
			for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
				if names[dir] {
					t.Errorf("%s has %q in the file %q", raw, name, dir)
				}
			}
		}
	})
}

// FuzzNames reads any string as the name of an image: it is refused, or there is one full name that stays what it is.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"busybox", "busybox:1", "team/app:2", "localhost/app", "example.com:5000/a/b:c", "a.b/c:1@" + dig, "a@sha256:abc", strings.Repeat("a", 64),
		"", ":", "@", "/", "A", "a/B", "http://a/b", "a..b/c", "a:" + strings.Repeat("t", 129), "docker.io/library/", "[::1]:5000/a", "index.docker.io/a",
	} {
		f.Add(s)
	}
	conf := filepath.Join(f.TempDir(), "registries.conf")
	check(f, os.WriteFile(conf, []byte("unqualified-search-registries = [\"a.example\", \"b.example:5000\"]\n[aliases]\n\"app\" = \"c.example/deep/app\"\n"), 0o600))
	s := &Images{cfg: ImagesConfig{Sources: Sources{RegistriesConf: conf, RegistriesConfDir: f.TempDir()}}}
	f.Fuzz(func(t *testing.T, name string) {
		all, err := s.names(name)
		if err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("%q: %v", name, err)
			}
			return
		}
		if len(all) == 0 || len(all) > 2 {
			t.Errorf("%q stands for %v", name, all)
		}
		for _, full := range all {
			again, err := reference.ParseNormalizedNamed(full.String())
			if err != nil || canonical(again).String() != full.String() || reference.IsNameOnly(full) || isShort(full.String()) {
				t.Errorf("%q is %s, and read again %v, %v", name, full, again, err)
			}
			tags, digests := references(&cstorage.Image{Names: []string{name, full.String()}, Digest: digest.Digest(dig)})
			img := Image{RepoTags: tags, RepoDigests: digests}
			if !(pins{names: map[string]bool{full.String(): true}}).have(&img) || !slices.Contains(repositories(&img), full.Name()) {
				t.Errorf("%q is %s, but %v of %v", name, full, img, repositories(&img))
			}
		}
	})
}

// FuzzLists opens a store with any bytes in the place of one of its lists: it opens, tells what it has, and is whole when
// it is opened again.
func FuzzLists(f *testing.F) {
	id := strings.Repeat("a", 64)
	for _, s := range []string{
		"", "[", "null", "[]", "[null]", "{}", `[{}]`, `[{"id":"` + id + `"}]`, `[{"id":"` + id + `"},{"id":"` + id + `"}]`, "\x00\x00",
		`[{"id":"` + id + `","parent":"` + id + `"}]`, `[{"id":"` + id + `","parent":"b"}]`, `[{"id":"../../../x","names":["a","a"]}]`,
		`[{"id":"` + id + `","names":["n"]},{"id":"b","names":["n"]}]`, `[{"id":"` + id + `","flags":{"incomplete":true}}]`,
		`[{"id":"` + id + `","layer":"gone","names":["a.b/c:1"],"big-data-names":["manifest"],"big-data-digests":{"manifest":"x"}}]`,
		`[{"id":"crid-lease-` + id + `","image":"` + id + `","layer":"l"}]`, `[{"id":"` + id + `","uncompress_type":99,"diff-digest":"no"}]`,
	} {
		for i := range listFiles() {
			f.Add([]byte(s), uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, which uint8) {
		w := newDamagedWorld(t)
		check(t, errors.Join(os.MkdirAll(w.Root, 0o700), os.MkdirAll(w.RunRoot, 0o700)))
		file := filepath.Join(w.Root, "storage", listFiles()[int(which)%len(listFiles())].path)
		check(t, errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, raw, 0o600)))
		for range 2 {
			s, err := openImages(w.ImagesConfig, leaseIdle)
			if err != nil {
				t.Fatalf("with %q in %s: %v", raw, filepath.Base(file), err)
			}
			_, _ = s.List(t.Context())
			check(t, s.Close())
		}
	})
}

// FuzzRecipe reads any bytes as what the store kept of a layer's archive: the layer is found to differ, nothing outside of it
// is read, and nothing waits for ever.
func FuzzRecipe(f *testing.F) {
	for _, s := range []string{
		`{"type":1,"name":"a","size":1,"payload":"AAAAAAAAAAA=","position":0}`, `{"type":2,"payload":"AAAA","position":0}`,
		`{"type":1,"name":"../../../../etc/passwd","size":10,"payload":"AAAAAAAAAAA="}`, `{"type":1,"name":"link/passwd","size":10}`,
		`{"type":1,"name":"pipe","size":1}`, `{"type":1,"name":"gone"}`, `{"type":1,"name":".wh.x"}`, `{"type":9}`, "null", "{", "",
		`{"type":1,"name_raw":"/w==","size":-1}`, `{"type":1,"name":"a","size":9223372036854775807}`,
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	outside := filepath.Join(dir, "outside")
	layer := filepath.Join(dir, "layer")
	check(f, errors.Join(os.Mkdir(layer, 0o700), os.WriteFile(outside, []byte("not to be read"), 0), os.WriteFile(filepath.Join(layer, "a"), []byte("x"), 0o600),
		os.Symlink(outside, filepath.Join(layer, "out")), os.Symlink("/etc", filepath.Join(layer, "link"))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		root, err := os.Open(layer)
		check(t, err)
		defer root.Close()
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err = w.Write(raw)
		check(t, errors.Join(err, w.Close()))
		l := &cstorage.Layer{ID: "l", UncompressedDigest: digest.FromString("some layer")}
		if err := reassemble(t.Context(), root, &packed, l, io.Discard); err == nil {
			t.Errorf("%q is the recipe of a layer with another digest", raw)
		}
		if err := reassemble(t.Context(), root, bytes.NewReader(raw), l, io.Discard); err == nil {
			t.Errorf("%q is the recipe of a layer with another digest", raw)
		}
	})
}

// FuzzHosts reads any text as a hosts.toml: it is refused, or there are places that the library takes, the last of which says what
// tags mean.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{
		"", "server = \"https://a\"", "[host.\"http://a:1\"]\ncapabilities=[\"pull\"]\nca=[\"a\"]\n[host.\"b/v2/c\"]\noverride_path=true\nskip_verify=true",
		"[host.\"a\".header]\nx=[\"y\"]", "client=[[\"a\",\"b\"],\"c\"]", "server=1", "[host]\na={}", "host=[]", "[host.\"https://[::1]:5\"]", "[host.\"https://\\u0000\"]",
	} {
		f.Add(s, "reg.example")
	}
	f.Add("", "docker.io")
	f.Fuzz(func(t *testing.T, text, registry string) {
		if _, err := reference.ParseNamed(registry + "/an/image"); err != nil {
			return
		}
		all, err := parseHosts([]byte(text), "/d", registry)
		if err != nil {
			return
		}
		if len(all) == 0 || all[len(all)-1].onlyDigests {
			t.Errorf("%q is %v", text, all)
		}
		conf, err := telling{registry: registry, endpoints: all}.registriesConf(&types.SystemContext{SystemRegistriesConfPath: os.DevNull, SystemRegistriesConfDirPath: "/none"})
		check(t, err)
		file := filepath.Join(t.TempDir(), "registries.conf")
		check(t, os.WriteFile(file, conf, 0o600))
		sys := &types.SystemContext{SystemRegistriesConfPath: file, SystemRegistriesConfDirPath: "/none"}
		told, err := sysregistriesv2.FindRegistry(sys, registry+"/an/image")
		sysregistriesv2.InvalidateCache()
		if err != nil || told == nil || len(told.Mirrors) != len(all)-1 || told.Location != all[len(all)-1].location() {
			t.Errorf("%q is told as %s, which is %+v, %v", text, conf, told, err)
		}
	})
}

// FuzzSplit reads any bytes as a layer's archive: what is noted to put it together again is what the library notes.
func FuzzSplit(f *testing.F) {
	whole := packed(f, special(tar.TypeDir, "a/", ""), file("a/b", "content"), special(tar.TypeLink, "c", "a/b"), file("a/.wh.d", ""))
	f.Add(whole)
	f.Add(append(whole, make([]byte, 5000)...))
	f.Add(whole[:700])
	f.Add([]byte("no archive"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for at := 156; at < len(raw); at += 512 {
			if raw[at] == tar.TypeGNUSparse || bytes.Contains(raw, []byte("GNU.sparse")) {
				t.Skip("holes are read in full, whose bound the library does not know")
			}
		}
		var own, theirs bytes.Buffer
		err := newSplitter(&own, func(*splittar.Header, *content) error { return nil }).run(bytes.NewReader(raw))
		r, done, failed := asm.NewInputTarStreamWithDone(bytes.NewReader(raw), tarsplit.NewJSONPacker(&theirs), nil)
		check(t, failed)
		_, _ = io.Copy(io.Discard, r) // the error comes by done, too
		check(t, r.Close())
		if failed := <-done; (err == nil) != (failed == nil) && !errors.Is(err, errBounds) {
			t.Errorf("noted: %v, by the library: %v", err, failed)
		}
		if err == nil && !bytes.Equal(own.Bytes(), theirs.Bytes()) {
			t.Errorf("noted %s, by the library %s", own.Bytes(), theirs.Bytes())
		}
	})
}

// FuzzSizes reads any text as an image's metadata: it is refused, or lengths of signatures can be added, and nothing else changes.
func FuzzSizes(f *testing.F) {
	for _, s := range []string{
		"", "{}", "null", "[]", `{"signature-sizes":[1],"other":{"a":1}}`, `{"signatures-sizes":{"sha256:a":[1,2]}}`, `{"signatures-sizes":null}`, `{"signatures-sizes":[]}`,
	} {
		f.Add(s, 7)
	}
	f.Fuzz(func(t *testing.T, metadata string, size int) {
		had, sizes, err := parseSizes(metadata)
		if err != nil {
			return
		}
		more := map[digest.Digest][]int{dig: {size}}
		text, err := withSizes(metadata, more)
		if err != nil {
			t.Fatalf("%s: %v", metadata, err)
		}
		have, now, err := parseSizes(text)
		delete(had, sizesKey)
		delete(have, sizesKey)
		if err != nil || len(had) != len(have) || !slices.Equal(now[dig], more[dig]) || len(now) < len(sizes) {
			t.Errorf("%s has become %s, %v", metadata, text, err)
		}
		if again, err := withSizes(text, more); err != nil || again != text {
			t.Errorf("%s has become %s, %v", text, again, err)
		}
	})
}
