package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/crid/crid/internal/errdef"
)

// endless writes the same for as long as somebody reads.
func endless(start, again string) func(io.Writer) {
	return func(w io.Writer) {
		_, err := io.WriteString(w, start)
		for chunk := strings.Repeat(again, 4096); err == nil; {
			_, err = io.WriteString(w, chunk)
		}
	}
}

// manifestOf is a manifest of these fields, however wrong.
func manifestOf(config, layers string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":%s}`, imgspec.MediaTypeImageManifest, config, layers)
}

func entryFor(d imgspec.Descriptor) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest, d.Size)
}

// lies are what a registry may answer, by what is wrong with it.
func lies(t *testing.T) map[string]func(l *liar) (ref string) {
	index := func(l *liar, entries ...imgspec.Descriptor) imgspec.Descriptor {
		for i := range entries {
			entries[i].Platform = nil
		}
		raw := encode(t, imgspec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspec.MediaTypeImageIndex, Manifests: entries})
		l.serve(imgspec.MediaTypeImageIndex, raw)
		return imgspec.Descriptor{MediaType: imgspec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	}
	good := func(l *liar) (config, layer imgspec.Descriptor) {
		layer, diff := l.layer(t, file("a", "b"))
		return l.config(t, []digest.Digest{diff}, nil), layer
	}
	raw := func(kind string, body []byte) func(l *liar) string {
		return func(l *liar) string { return l.serve(kind, body) }
	}
	written := func(kind string, write func(io.Writer)) func(l *liar) string {
		return func(l *liar) string {
			l.manifests["1"] = answer{kind: kind, write: write}
			return l.host + "/x:1"
		}
	}
	layers := func(edit func(entry string) string) func(l *liar) string {
		return func(l *liar) string {
			config, layer := good(l)
			return l.serve(imgspec.MediaTypeImageManifest, manifestOf(entryFor(config), "["+edit(entryFor(layer))+"]"))
		}
	}
	configs := func(edit func(l *liar, entry string) string) func(l *liar) string {
		return func(l *liar) string {
			config, layer := good(l)
			return l.serve(imgspec.MediaTypeImageManifest, manifestOf(edit(l, entryFor(config)), "["+entryFor(layer)+"]"))
		}
	}
	return map[string]func(l *liar) string{
		"no manifest":              raw(imgspec.MediaTypeImageManifest, []byte("hello")),
		"an empty manifest":        raw(imgspec.MediaTypeImageManifest, nil),
		"null":                     raw(imgspec.MediaTypeImageManifest, []byte("null")),
		"nothing in it":            raw(imgspec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`)),
		"no media type":            raw("", []byte(`{}`)),
		"a page":                   raw("text/html", []byte("<html>")),
		"a manifest without end":   written(imgspec.MediaTypeImageManifest, endless(`{"schemaVersion":2,"a":"`, "a")),
		"an index without end":     written(imgspec.MediaTypeImageIndex, endless(`{"schemaVersion":2,"manifests":[`, `{},`)),
		"brackets without end":     raw(imgspec.MediaTypeImageManifest, bytes.Repeat([]byte("["), 3<<20)),
		"schema 1":                 raw("application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[{"v1Compatibility":"{"}]}`)),
		"an index of nothing":      func(l *liar) string { index(l); return l.host + "/x:1" },
		"an index for nobody here": raw(imgspec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:`+strings.Repeat("0", 64)+`","size":1,"platform":{"os":"plan9","architecture":"x"}}]}`)),
		"an index that names itself": func(l *liar) string {
			self := imgspec.Descriptor{MediaType: imgspec.MediaTypeImageIndex, Digest: digest.FromString("self"), Size: 1}
			index(l, self)
			l.manifests[self.Digest.String()] = l.manifests["1"]
			return l.host + "/x:1"
		},
		"indexes of indexes": func(l *liar) string {
			config, layer := good(l)
			l.tag(t, config, layer)
			d := imgspec.Descriptor{MediaType: imgspec.MediaTypeImageManifest, Digest: digest.FromBytes(l.manifests["1"].body), Size: int64(len(l.manifests["1"].body))}
			for range 100 {
				d = index(l, d)
			}
			return l.host + "/x:1"
		},
		"another manifest than asked for": func(l *liar) string {
			wrong := digest.FromString("another")
			config, layer := good(l)
			l.tag(t, config, layer)
			l.manifests[wrong.String()] = l.manifests["1"]
			return l.host + "/x@" + wrong.String()
		},
		"no config":                configs(func(*liar, string) string { return "null" }),
		"a config that is no JSON": configs(func(l *liar, _ string) string { return entryFor(l.blob(imgspec.MediaTypeImageConfig, []byte("hello"))) }),
		"a config of other types": configs(func(l *liar, _ string) string {
			return entryFor(l.blob(imgspec.MediaTypeImageConfig, []byte(`{"config":{"Entrypoint":"a","Volumes":[1]},"rootfs":{"diff_ids":"x"}}`)))
		}),
		"a config without end": configs(func(l *liar, entry string) string {
			d := digest.FromString("endless")
			l.blobs[d.String()] = answer{kind: imgspec.MediaTypeImageConfig, write: endless(`{"a":"`, "a")}
			return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, imgspec.MediaTypeImageConfig, d, int64(1)<<62)
		}),
		"a digest that is a path": layers(func(string) string { return `{"mediaType":"x","digest":"sha256:../../../../etc/passwd","size":1}` }),
		"a digest of another kind": layers(func(string) string {
			return `{"mediaType":"` + imgspec.MediaTypeImageLayer + `","digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}`
		}),
		"an empty digest": layers(func(string) string { return `{"mediaType":"` + imgspec.MediaTypeImageLayer + `","digest":"","size":0}` }),
		"a layer that is not there": layers(func(string) string {
			return `{"mediaType":"` + imgspec.MediaTypeImageLayer + `","digest":"` + digest.FromString("none").String() + `","size":1}`
		}),
		"a layer that is null": layers(func(string) string { return "null" }),
		"a layer that is another": func(l *liar) string {
			config, layer := good(l)
			l.blobs[layer.Digest.String()] = answer{body: gzipped(t, packed(t, file("evil", "x")))}
			return l.tag(t, config, layer)
		},
		"a layer without end": func(l *liar) string {
			config, layer := good(l)
			l.blobs[layer.Digest.String()] = answer{write: func(w io.Writer) { _, _ = w.Write(bomb(t, 64)) }}
			return l.tag(t, config, layer)
		},
		"a refusal without end": func(l *liar) string {
			l.manifests["1"] = answer{kind: "application/json", status: http.StatusForbidden, write: endless(`{"errors":[{"code":"DENIED","message":"`, "\x1b[31mno\xff\n")}
			return l.host + "/x:1"
		},
		"a refusal in bytes": func(l *liar) string {
			l.manifests["1"] = answer{kind: "application/json", status: http.StatusForbidden, body: []byte("{\"errors\":[{\"code\":\"DENIED\",\"message\":\"\x1b[31mno\xff\x00\"}]}")}
			return l.host + "/x:1"
		},
	}
}

// Whatever a registry answers, a pull ends with an error in a short time and little memory, and there is no image.
func TestRegistriesThatLie(t *testing.T) {
	for name, lie := range lies(t) {
		t.Run(name, func(t *testing.T) {
			l := newLiar(t)
			w := newWorld(t, &fakeRegistry{host: l.host})
			s := w.open(t)
			s.pulls.memory = 64 << 20
			ref := lie(l)
			begun := time.Now()
			var err error
			grown := peak(t, func() { _, err = s.Pull(t.Context(), PullRequest{Ref: ref}) })
			t.Logf("%v, %d MiB more at most, %.300v", time.Since(begun).Round(time.Millisecond), grown>>20, err)
			if err == nil || !utf8.ValidString(err.Error()) || len(err.Error()) > maxErrorText {
				t.Errorf("pull: %.300v", err)
			}
			if grown > 1<<30 { // the race detector takes several times what the heap has
				t.Errorf("the pull needed %d MiB", grown>>20)
			}
			if images := list(t, s); len(images) > 0 {
				t.Errorf("stored %+v", images)
			}
			if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, errdef.NotFound) {
				t.Errorf("resolve: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(w.Root, "storage", "overlay", "*", "diff")); len(left) > 1 {
				t.Errorf("%d layers are left", len(left))
			}
		})
	}
}

// maxErrorText is more than an error has to say.
const maxErrorText = 64 << 10
