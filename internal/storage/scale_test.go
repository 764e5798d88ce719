package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// writeMany fills an empty store with images, each of layers/images layers of one small file, as the store itself would
// write them: its own ways write its lists anew for each.
func writeMany(t testing.TB, root string, images, layers int) {
	t.Helper()
	var layerList []cstorage.Layer
	var imageList []cstorage.Image
	put := func(path, content string) {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
		check(t, os.WriteFile(filepath.Join(root, path), []byte(content), 0o644))
	}
	for i := range images {
		parent := ""
		var below []string
		for l := range layers / images {
			diff := digest.FromString(fmt.Sprint("layer ", i, l))
			id := diff.Encoded()
			short := strings.ToUpper(id[:26])
			put("overlay/"+id+"/diff/f", "content")
			put("overlay/"+id+"/link", short)
			if parent != "" {
				put("overlay/"+id+"/lower", strings.Join(below, ":"))
			}
			check(t, os.MkdirAll(filepath.Join(root, "overlay/l"), 0o755))
			check(t, os.Symlink("../"+id+"/diff", filepath.Join(root, "overlay/l", short)))
			layerList = append(layerList, cstorage.Layer{ID: id, Parent: parent, Created: time.Now(), UncompressedDigest: diff, UncompressedSize: 2048})
			parent, below = id, append([]string{"l/" + short}, below...)
		}
		imageList = append(imageList, writeOne(t, root, parent, fmt.Sprintf("example.com/many/image-%d", i)))
	}
	for path, list := range map[string]any{"overlay-layers/layers.json": layerList, "overlay-images/images.json": imageList} {
		raw, err := json.Marshal(list)
		check(t, err)
		put(path, string(raw))
	}
}

func writeOne(t testing.TB, root, top, name string) cstorage.Image {
	t.Helper()
	config, err := json.Marshal(imgspec.Image{
		Platform: imgspec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   imgspec.ImageConfig{User: "1000", Cmd: []string{"sh", name}, Env: []string{"PATH=/bin"}, Labels: map[string]string{"name": name}},
	})
	check(t, err)
	id := digest.FromBytes(config)
	text := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[]}`,
		imgspec.MediaTypeImageManifest, imgspec.MediaTypeImageConfig, id, len(config))
	own := digest.FromString(text)
	key := cstorage.ImageDigestManifestBigDataNamePrefix + "-" + own.String()
	dir := filepath.Join(root, "overlay-images", id.Encoded())
	check(t, os.MkdirAll(dir, 0o700))
	img := cstorage.Image{
		ID: id.Encoded(), Digest: own, Names: []string{name + ":1", name + "@" + own.String()}, TopLayer: top, Created: time.Now(),
		BigDataNames: []string{key, id.String()}, BigDataSizes: map[string]int64{key: int64(len(text)), id.String(): int64(len(config))},
		BigDataDigests: map[string]digest.Digest{key: own, id.String(): id},
	}
	for key, data := range map[string]string{key: text, id.String(): string(config)} {
		check(t, os.WriteFile(filepath.Join(dir, bigDataName(key)), []byte(data), 0o600))
	}
	if got, err := manifest.Digest([]byte(text)); err != nil || got != own {
		t.Fatal(got, err)
	}
	return img
}

// openMany opens a store with so many images and layers.
func openMany(t testing.TB, images, layers int) *Images {
	t.Helper()
	w := newDamagedWorld(t)
	writeMany(t, filepath.Join(w.Root, "storage"), images, layers)
	s := w.open(t)
	if got := list(t, s); len(got) != images {
		t.Fatalf("%d images; %v", len(got), s.Warnings())
	}
	return s
}

// TestReadsOpenNoFile: a list or a status of a full store comes from memory. While they are read nobody in this process
// can open anything.
func TestReadsOpenNoFile(t *testing.T) {
	s := openMany(t, 500, 2000)
	if _, err := s.Usage(t.Context()); err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}))
	defer func() { check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }()
	if f, err := os.Open("/dev/null"); !errors.Is(err, unix.EMFILE) {
		t.Fatal("a file was opened all the same: ", f, err)
	}
	all := list(t, s)
	for _, img := range all {
		for _, ref := range []string{img.ID, "sha256:" + img.ID, img.ID[:12], img.RepoTags[0], img.RepoDigests[0]} {
			if got := resolve(t, s, ref); got.ID != img.ID || got.Config.User != "1000" || got.Labels["name"] == "" {
				t.Fatalf("%s: %+v", ref, got)
			}
		}
	}
	for _, absent := range []string{"example.com/none:1", "none", "none:1"} {
		if _, err := s.Resolve(t.Context(), absent); !errors.Is(err, errdef.NotFound) {
			t.Errorf("%s: %v", absent, err)
		}
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Inodes < 500*2+2000*4 {
		t.Errorf("%+v, %v", u, err)
	}
}

func BenchmarkManyImages(b *testing.B) {
	s := openMany(b, 500, 2000)
	names := list(b, s)
	b.Run("List", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.List(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Resolve", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := s.Resolve(b.Context(), names[i%len(names)].RepoTags[0]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Refresh", func(b *testing.B) { // after a pull or a removal
		for b.Loop() {
			check(b, s.refresh())
		}
	})
	b.Run("Open", func(b *testing.B) {
		var before, after runtime.MemStats
		for b.Loop() {
			b.StopTimer()
			check(b, s.Close())
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.StartTimer()
			var err error
			s, err = OpenImages(s.cfg)
			check(b, err)
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.StartTimer()
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-heap")
		check(b, s.Close())
	})
}
