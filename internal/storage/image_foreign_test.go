package storage

import (
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// TestImageWithAnotherID: a tool may store an image under an id that is not the digest of its configuration.
func TestImageWithAnotherID(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	r.push(t, "a:1", simple(t, "a"))
	named, err := reference.ParseNormalizedNamed(r.host + "/a:1")
	check(t, err)
	src, err := docker.NewReference(named)
	check(t, err)
	id := strings.Repeat("5", 64)
	dst, err := istorage.Transport.NewStoreReference(s.store, named, id)
	check(t, err)
	policy, err := loadPolicy(s.policyPath())
	check(t, err)
	sys := s.systemContext(Auth{})
	_, err = copy.Image(t.Context(), policy, dst, src, &copy.Options{SourceCtx: sys, DestinationCtx: sys})
	check(t, errors.Join(err, policy.Destroy()))

	waitFor(t, func() bool { // a tool names an image after it made it
		all := list(t, s)
		return len(all) == 1 && len(all[0].RepoTags) == 1
	})
	got := resolve(t, s, r.host+"/a:1")
	if got.ID != id || got.Size < 3000 || got.Labels["mark"] != "a" || !slices.Equal(got.Config.Cmd, []string{"sh", "a"}) {
		t.Errorf("got %+v", got)
	}
	checkLayers(t, s, id, "a")
}

func TestLayersThatAreNoPlainDirectories(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	img := pull(t, s, r.host+"/a:1")
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, img.ID) })
	check(t, s.Close())
	check(t, unix.Setxattr(dirs[1], "user.containers.override_stat", []byte("0:0:0755"), 0))
	s = w.open(t)
	if _, err := s.Layers(t.Context(), img.ID); !errors.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), dirs[1]) {
		t.Errorf("got %v", err)
	}
	check(t, unix.Removexattr(dirs[1], "user.containers.override_stat"))
}

// TestKilledInAPull kills a crid that has unpacked one layer and waits for the other.
func TestKilledInAPull(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "a:1", simple(t, "a"))
	top, err := layer(t, false, "top", "top of a").Digest()
	check(t, err)
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, top.Hex) {
				<-req.Context().Done()
			}
			return false
		}
	})
	cmd := w.command(t, "pull", r.host+"/a:1", w.RegistriesConf)
	check(t, cmd.Start())
	unpacked := func() bool {
		dirs, err := filepath.Glob(filepath.Join(w.Root, "storage/overlay/*/diff/base"))
		check(t, err)
		return len(dirs) > 0
	}
	waitFor(t, unpacked)
	check(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("the pull ended well")
	}
	r.set(func(r *fakeRegistry) { r.hold = nil })
	s := w.open(t)
	if n := len(list(t, s)); n != 0 {
		t.Errorf("%d images after the kill", n)
	}
	img := pull(t, s, r.host+"/a:1")
	checkLayers(t, s, img.ID, "a")
	if text := strings.Join(s.Warnings()[1:], "\n"); text != "" {
		t.Errorf("warnings %s", text)
	}
}
