package storage

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	istorage "go.podman.io/image/v5/storage"
	"golang.org/x/sys/unix"
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
	policy, err := s.policy()
	check(t, err)
	sys := s.systemContext(Auth{})
	_, err = copy.Image(t.Context(), policy, dst, src, &copy.Options{SourceCtx: sys, DestinationCtx: sys})
	check(t, errors.Join(err, policy.Destroy()))

	waitFor(t, func() bool { return len(list(t, s)) == 1 })
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
