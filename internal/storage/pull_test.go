package storage

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/crid/crid/internal/errdef"
)

func TestPullFormats(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	docker, oci := simple(t, "docker"), asOCI(simple(t, "oci"))
	zstd := asOCI(picture(t, "zstd", layer(t, true, "base", "base of zstd"), layer(t, true, "top", "top of zstd")))
	listed, indexed := simple(t, "listed"), asOCI(simple(t, "indexed"))
	for mark, tc := range map[string]struct {
		image v1.Image
		what  remote.Taggable
	}{
		"docker":  {docker, docker},
		"oci":     {oci, oci},
		"zstd":    {zstd, zstd},
		"listed":  {listed, indexOf(t, types.DockerManifestList, listed)},
		"indexed": {indexed, indexOf(t, types.OCIImageIndex, indexed)},
	} {
		t.Run(mark, func(t *testing.T) {
			repo := r.host + "/form/" + mark
			digest := r.push(t, "form/"+mark+":1", tc.what)
			img := pull(t, s, repo+":1")
			want := Image{
				ID: idOf(t, tc.image), RepoTags: []string{repo + ":1"}, RepoDigests: []string{repo + "@" + digest},
				Size: img.Size, Config: img.Config, Labels: map[string]string{"mark": mark},
			}
			if !reflect.DeepEqual(img, want) {
				t.Errorf("got %+v, want %+v", img, want)
			}
			if img.Size < 3000 || img.Size > 6000 { // two tar files of 2 KiB, and a configuration
				t.Errorf("size %d", img.Size)
			}
			if img.Config.User != "1003:1004" || !slices.Equal(img.Config.Cmd, []string{"sh", mark}) || len(img.Config.Volumes) != 1 {
				t.Errorf("configuration %+v", img.Config)
			}
			checkLayers(t, s, img.ID, mark)
		})
	}
}

// checkLayers looks for the files that simple puts into its two layers.
func checkLayers(t *testing.T, s *Images, id, mark string) {
	t.Helper()
	dirs, err := s.Layers(t.Context(), id)
	check(t, err)
	if len(dirs) != 2 {
		t.Fatalf("layers %v", dirs)
	}
	for i, file := range []string{"top", "base"} {
		data, err := os.ReadFile(filepath.Join(dirs[i], file))
		if err != nil || string(data) != file+" of "+mark {
			t.Errorf("layer %d has %s %q, %v", i, file, data, err)
		}
	}
}

func TestPullByDigest(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	img := simple(t, "a")
	list := r.push(t, "a:1", indexOf(t, types.DockerManifestList, img))
	h, err := img.Digest()
	check(t, err)
	byList, byManifest := r.host+"/a@"+list, r.host+"/a@"+h.String()

	got := pull(t, s, byList)
	if len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, []string{byList}) {
		t.Errorf("tags %v, digests %v; want only %s", got.RepoTags, got.RepoDigests, byList)
	}
	for _, ref := range []string{byList, byManifest, got.ID, "sha256:" + got.ID, got.ID[:12], r.host + "/a:ignored@" + list} {
		if !reflect.DeepEqual(resolve(t, s, ref), got) {
			t.Errorf("%s resolves to another image", ref)
		}
	}
	got = pull(t, s, byManifest)
	if want := []string{byList, byManifest}; len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, sortedSet(want)) {
		t.Errorf("tags %v, digests %v; want %v", got.RepoTags, got.RepoDigests, want)
	}
	if _, err := s.Resolve(t.Context(), r.host+"/a:1"); !errors.Is(err, errdef.NotFound) {
		t.Errorf("a tag that was never pulled: %v", err)
	}
}

func TestOneImageManyNames(t *testing.T) {
	a, b := newRegistry(t), newRegistry(t)
	s := newWorld(t, a, b).open(t)
	for _, tag := range []string{"1", "2", "3"} {
		a.push(t, "many:"+tag, simple(t, "many"))
	}
	digest := b.push(t, "other:1", simple(t, "many"))

	var ids []string
	for _, ref := range []string{a.host + "/many:1", a.host + "/many:2", a.host + "/many:3", b.host + "/other:1"} {
		ids = append(ids, pull(t, s, ref).ID)
	}
	if len(slices.Compact(ids)) != 1 || len(list(t, s)) != 1 {
		t.Fatalf("ids %v, %d images", ids, len(list(t, s)))
	}
	got := list(t, s)[0]
	tags := sortedSet([]string{a.host + "/many:1", a.host + "/many:2", a.host + "/many:3", b.host + "/other:1"})
	digests := sortedSet([]string{a.host + "/many@" + digest, b.host + "/other@" + digest})
	if !slices.Equal(got.RepoTags, tags) || !slices.Equal(got.RepoDigests, digests) {
		t.Errorf("tags %v, digests %v", got.RepoTags, got.RepoDigests)
	}
	for _, ref := range slices.Concat(tags, digests, []string{got.ID}) {
		if !reflect.DeepEqual(resolve(t, s, ref), got) {
			t.Errorf("%s resolves to another image", ref)
		}
	}
	check(t, s.Remove(t.Context(), b.host+"/other:1"))
	if left := list(t, s); len(left) != 0 {
		t.Errorf("removal by one name left %v", left)
	}
}

func TestMovedTag(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	ref := r.host + "/moving:1"
	first := r.push(t, "moving:1", simple(t, "old"))
	old := pull(t, s, ref)
	second := r.push(t, "moving:1", simple(t, "new"))
	now := pull(t, s, ref)

	if got := resolve(t, s, ref); got.ID != now.ID || now.ID == old.ID {
		t.Errorf("the tag means %s, pulled %s after %s", got.ID, now.ID, old.ID)
	}
	got := resolve(t, s, old.ID)
	if len(got.RepoTags) != 0 || !slices.Equal(got.RepoDigests, []string{r.host + "/moving@" + first}) {
		t.Errorf("the old image has tags %v, digests %v", got.RepoTags, got.RepoDigests)
	}
	if want := []string{r.host + "/moving@" + second}; !slices.Equal(now.RepoDigests, want) {
		t.Errorf("the new image has digests %v", now.RepoDigests)
	}
	r.push(t, "moving:1", simple(t, "old")) // and back
	if got := pull(t, s, ref); got.ID != old.ID || len(resolve(t, s, now.ID).RepoTags) != 0 {
		t.Errorf("moved back: %+v", got)
	}
}

func TestPullAgainFetchesNoBlob(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", indexOf(t, types.OCIImageIndex, asOCI(simple(t, "a"))))
	first := pull(t, s, r.host+"/a:1")
	before, _ := r.fetched()
	if again := pull(t, s, r.host+"/a:1"); !reflect.DeepEqual(again, first) {
		t.Errorf("pulled again: %+v, want %+v", again, first)
	}
	if after, _ := r.fetched(); after != before {
		t.Errorf("the second pull fetched %d blobs", after-before)
	}
}

func TestSharedLayersFetchedOnce(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base := layer(t, false, "base", "shared")
	for _, mark := range []string{"a", "b"} {
		r.push(t, mark+":1", picture(t, mark, base, layer(t, false, "top", mark)))
		pull(t, s, r.host+"/"+mark+":1")
	}
	if all, most := r.fetched(); all != 5 || most != 1 { // two configurations, two tops, one base
		t.Errorf("%d blobs fetched, one of them %d times", all, most)
	}
}

func TestEmptyImage(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "scratch:1", picture(t, "scratch"))
	img := pull(t, s, r.host+"/scratch:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	if err != nil || len(dirs) != 0 || img.Size == 0 {
		t.Errorf("layers %v, %v; size %d", dirs, err, img.Size)
	}
}
