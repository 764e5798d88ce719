package storage

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// inflated is a layer's archive, uncompressed.
func inflated(t testing.TB, l v1.Layer) string {
	t.Helper()
	r, err := l.Uncompressed()
	check(t, err)
	raw, err := io.ReadAll(r)
	check(t, err)
	return string(raw)
}

func configOf(t testing.TB, img v1.Image) string {
	t.Helper()
	raw, err := img.RawConfigFile()
	check(t, err)
	return string(raw)
}

func blobsOf(t testing.TB, img v1.Image) []v1.Layer {
	t.Helper()
	layers, err := img.Layers()
	check(t, err)
	return layers
}

// legacySave is what docker save wrote before version 25: a directory for each layer, a link where one is had twice, and
// lists of images at the end.
func legacySave(t testing.TB, images map[string]v1.Image) []byte {
	t.Helper()
	var entries []entryOf
	var listed []dockerImage
	first := map[string]string{} // of a layer, by its content
	repositories := map[string]map[string]string{}
	for tag, img := range images {
		id := mustID(t, img)
		d := dockerImage{Config: id + ".json", RepoTags: []string{tag}}
		for i, l := range blobsOf(t, img) {
			dir := strings.Repeat(string(rune('a'+i)), 8) + id[8:]
			d.Layers = append(d.Layers, dir+"/layer.tar")
			entries = append(entries, special(tar.TypeDir, dir+"/", ""),
				file(dir+"/VERSION", "1.0"), file(dir+"/json", `{"id":"`+dir+`"}`))
			content := inflated(t, l)
			if other := first[content]; other != "" {
				entries = append(entries, special(tar.TypeSymlink, dir+"/layer.tar", "../"+other+"/layer.tar"))
				continue
			}
			first[content] = dir
			entries = append(entries, file(dir+"/layer.tar", content))
		}
		entries = append(entries, file(id+".json", configOf(t, img)))
		listed = append(listed, d)
		repo, label, _ := strings.Cut(tag, ":")
		repositories[repo] = map[string]string{label: id}
	}
	return packed(t, append(entries, file("manifest.json", string(encode(t, listed))), file("repositories", string(encode(t, repositories))))...)
}

func mustID(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	check(t, err)
	return h.Hex
}

// craneSave is what crane makes: layers stay compressed.
func craneSave(t testing.TB, tag string, img v1.Image) []byte {
	t.Helper()
	ref, err := name.NewTag(tag)
	check(t, err)
	var out bytes.Buffer
	check(t, tarball.Write(ref, img, &out))
	return out.Bytes()
}

// ociLayout is a layout of images with these annotations, as a directory that was packed; with list also as docker save
// has it since version 25.
func ociLayout(t testing.TB, list bool, annotations map[string]string, what ...any) []byte {
	t.Helper()
	dir := t.TempDir()
	index, err := layout.Write(dir, emptyIndex())
	check(t, err)
	var listed []dockerImage
	for _, w := range what {
		switch w := w.(type) {
		case v1.Image:
			check(t, index.AppendImage(w, layout.WithAnnotations(annotations)))
			d := dockerImage{Config: "blobs/sha256/" + mustID(t, w), RepoTags: []string{annotations[annotationName]}}
			for _, l := range blobsOf(t, w) {
				digest, err := l.Digest()
				check(t, err)
				d.Layers = append(d.Layers, "blobs/sha256/"+digest.Hex)
			}
			listed = append(listed, d)
		case v1.ImageIndex:
			check(t, index.AppendIndex(w, layout.WithAnnotations(annotations)))
		}
	}
	entries := filesOf(t, dir)
	if list {
		entries = append(entries, file("manifest.json", string(encode(t, listed))))
	}
	return packed(t, entries...)
}

func filesOf(t testing.TB, dir string) []entryOf {
	t.Helper()
	var entries []entryOf
	check(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		entries = append(entries, file("./"+rel, string(raw)))
		return err
	}))
	return entries
}

// plainDir is what skopeo makes of an image in a directory.
func plainDir(t testing.TB, img v1.Image) []byte {
	t.Helper()
	return packed(t, dirOf(t, img)...)
}

// dirOf are the files of such a directory.
func dirOf(t testing.TB, img v1.Image) []entryOf {
	t.Helper()
	raw, err := img.RawManifest()
	check(t, err)
	entries := []entryOf{file("version", "Directory Transport Version: 1.1\n"), file("manifest.json", string(raw)), file(mustID(t, img), configOf(t, img))}
	for _, l := range blobsOf(t, img) {
		digest, err := l.Digest()
		check(t, err)
		r, err := l.Compressed()
		check(t, err)
		content, err := io.ReadAll(r)
		check(t, err)
		entries = append(entries, file(digest.Hex, string(content)))
	}
	return entries
}

// listedDir are those of one with a list of images, of which this is one.
func listedDir(t *testing.T, img v1.Image) []entryOf {
	t.Helper()
	list, err := indexOf(t, types.OCIImageIndex, img).RawManifest()
	check(t, err)
	of, err := img.Digest()
	check(t, err)
	entries := dirOf(t, img)
	entries[1].Name = of.Hex + ".manifest.json"
	return append(entries, file("manifest.json", string(list)))
}

// endlessTar is an archive with a file that never ends.
func endlessTar(t testing.TB) io.Reader {
	t.Helper()
	var head bytes.Buffer
	check(t, tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "layer.tar", Typeflag: tar.TypeReg, Size: 1 << 40}))
	return io.MultiReader(&head, readerFunc(func(p []byte) (int, error) { return len(p), nil }))
}
