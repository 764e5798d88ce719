package storage

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// playLayerStore shows a layer as stargz-store does, below the name of its image when there is one.
func playLayerStore(t *testing.T, name string, toc digest.Digest, content string) string {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, toc.String())
	if name != "" {
		at = filepath.Join(dir, base64.StdEncoding.EncodeToString([]byte(name)), toc.String())
	}
	info, err := json.Marshal(cstorage.Layer{TOCDigest: toc, CompressedDigest: digest.FromString("blob"), CompressedSize: 9})
	check(t, err)
	check(t, os.MkdirAll(filepath.Join(at, "diff"), 0o755))
	for file, text := range map[string]string{"diff/lazy": content, "info": string(info), "blob": "whatever"} {
		check(t, os.WriteFile(filepath.Join(at, file), []byte(text), 0o644))
	}
	return dir
}

// pushLazy pushes an image of two layers, and lets nobody have the blob of the upper one.
func pushLazy(t *testing.T, r *fakeRegistry, name string, toc digest.Digest) {
	t.Helper()
	lazy := layer(t, false, "lazy", "never fetched")
	img, err := mutate.Append(empty.Image,
		mutate.Addendum{Layer: layer(t, false, "plain", "fetched")},
		mutate.Addendum{Layer: lazy, Annotations: map[string]string{"containerd.io/snapshot/stargz/toc.digest": toc.String()}})
	check(t, err)
	r.push(t, name, asOCI(forPlatform(t, img, runtime.GOARCH, "lazy")))
	blob, err := lazy.Digest()
	check(t, err)
	r.set(func(r *fakeRegistry) {
		r.refuse = func(req *http.Request) int {
			if strings.HasSuffix(req.URL.Path, blob.Hex) && req.Method == http.MethodGet {
				return http.StatusForbidden
			}
			return 0
		}
	})
}

func checkLazy(t *testing.T, s *Images, id, store string) {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	check(t, err)
	if !strings.HasPrefix(dirs[0], store) {
		t.Errorf("layers %v", dirs)
	}
	for i, want := range []struct{ file, text string }{{"lazy", "shown"}, {"plain", "fetched"}} {
		if text, err := os.ReadFile(filepath.Join(dirs[i], want.file)); err != nil || string(text) != want.text {
			t.Errorf("%s is %q, %v", want.file, text, err)
		}
	}
}

// TestLayersOfALayerStore are not fetched; those that it has not are.
func TestLayersOfALayerStore(t *testing.T) {
	toc := digest.FromString("table of contents")
	r := newRegistry(t)
	pushLazy(t, r, "lazy:1", toc)
	ref := r.host + "/lazy:1"
	if _, err := newDamagedWorld(t, r).open(t).Pull(t.Context(), PullRequest{Ref: ref}); err == nil {
		t.Fatal("the layer was to be had from the registry")
	}
	for what, at := range map[string]struct{ name, option string }{"by digest": {"", ""}, "by name": {ref, ":ref"}} {
		t.Run(what, func(t *testing.T) {
			w := newDamagedWorld(t, r)
			store := playLayerStore(t, at.name, toc, "shown")
			w.LayerStores = []string{"/nonexistent", store + at.option}
			s := w.open(t)
			if !strings.Contains(strings.Join(s.Warnings(), "\n"), "/nonexistent is not used") {
				t.Errorf("warnings %q", s.Warnings())
			}
			img := pull(t, s, ref)
			if img.Labels["mark"] != "lazy" || pull(t, s, ref).ID != img.ID {
				t.Errorf("pulled %+v", img)
			}
			checkLazy(t, s, img.ID, store)
			waitFor(t, func() bool { return s.leased(t, img.ID) })
			agrees(t, "a pull of a layer that is elsewhere", s)
			check(t, s.Close())
			s = w.open(t)
			checkLazy(t, s, img.ID, store)
			check(t, os.Rename(store, store+".gone")) // who serves it has died
			defer func() { check(t, os.RemoveAll(store+".gone")) }()
			if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, errdef.Unavailable) {
				t.Errorf("without the layer store: %v", err)
			}
			check(t, s.Close())
			check(t, w.open(t).Close())
		})
	}
}

// TestALayerStoreThatReturns brings its images back.
func TestALayerStoreThatReturns(t *testing.T) {
	toc := digest.FromString("table of contents")
	r := newRegistry(t)
	pushLazy(t, r, "lazy:1", toc)
	w := newDamagedWorld(t, r)
	served, store := playLayerStore(t, "", toc, "shown"), t.TempDir()
	mount := func() { check(t, unix.Mount(served, store, "", unix.MS_BIND, "")) }
	mount()
	w.LayerStores = []string{store}
	s := w.open(t)
	img := pull(t, s, r.host+"/lazy:1")
	check(t, unix.Unmount(store, 0))
	if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("without the layer store: %v", err)
	}
	if all := list(t, s); len(all) != 0 {
		t.Errorf("offered without the layer store: %+v", all)
	}
	mount()
	t.Cleanup(func() { check(t, unix.Unmount(store, 0)) })
	waitFor(t, func() bool { return len(list(t, s)) == 1 })
	checkLazy(t, s, img.ID, store)
}
