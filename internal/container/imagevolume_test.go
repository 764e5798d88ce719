package container

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/storage"
)

// mountedImages are the images that are mounted on the host.
func (h *host) mountedImages() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.images.mounted)
}

func TestAnImageVolumeLivesAsLongAsItsLastContainer(t *testing.T) {
	h, m := start(t)
	whole, part := mustCreate(t, m, h.request("whole").withData("")), mustCreate(t, m, h.request("part").withData("sub"))
	for c, source := range map[*Container]string{whole: "images/sha256-of-data", part: "images/sha256-of-data/sub"} {
		mounts := h.config(c.ID()).Mounts
		i := slices.IndexFunc(mounts, func(m specs.Mount) bool { return m.Destination == "/data" })
		if i < 0 || mounts[i].Source != filepath.Join(h.dir, source) || !slices.Contains(mounts[i].Options, "ro") {
			t.Errorf("mounts %+v", mounts)
		}
		status := c.Status().Mounts
		if len(status) != 1 || status[0].Image.Image != dataImage().ID || status[0].Image.ImageRef != dataImage().RepoDigests[0] ||
			status[0].ImageSubPath != c.Config().Mounts[0].ImageSubPath || c.Config().Mounts[0].Image.ImageRef != "" {
			t.Errorf("status %v", status)
		}
	}
	users := m.ImageUsers(dataImage().ID)
	if slices.Sort(users); !slices.Equal(users, slices.Sorted(slices.Values([]string{whole.ID(), part.ID()}))) {
		t.Errorf("users %v", users)
	}
	if err := whole.Remove(t.Context()); err != nil || h.mountedImages() != 1 {
		t.Errorf("%d images mounted, %v", h.mountedImages(), err)
	}
	if err := part.Remove(t.Context()); err != nil || h.mountedImages() != 0 {
		t.Errorf("%d images mounted, %v", h.mountedImages(), err)
	}
	h.wantNothingLeft(m)
}

// Containers that are removed together must not each leave the image to the other.
func TestTheLastTwoContainersOfAnImageVolume(t *testing.T) {
	h, m := start(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		mustCreate(t, m, h.request(name).withData(""))
	}
	if err := m.RemovePod(t.Context(), testPod); err != nil {
		t.Fatal(err)
	}
	h.wantNothingLeft(m)
}

func TestImageVolumesThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Request)
		want string
	}{
		"no such image": {func(r *Request) { r.Volumes = nil }, `mounts[0] (/data): image "sha256-of-data"`},
		"removed meanwhile": {func(r *Request) {
			r.Volumes[dataImage().ID] = storage.Image{ID: "other"}
		}, "image other"},
		"no such path":      {func(r *Request) { r.Config.Mounts[0].ImageSubPath = "none" }, "none"},
		"a path with a NUL": {func(r *Request) { r.Config.Mounts[0].ImageSubPath = "su\x00b" }, "image_sub_path"},
	} {
		t.Run(name, func(t *testing.T) {
			h, m := start(t)
			r := h.request("web").withData("")
			c.edit(&r)
			_, err := m.Create(t.Context(), r)
			if !errors.Is(err, errdef.ImageVolume) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			h.wantNothingLeft(m)
		})
	}
}

// A crash can leave an image mounted for a container whose record is lost.
func TestCollectUnmountsImagesThatNobodyHas(t *testing.T) {
	h, m := start(t)
	mustCreate(t, m, h.request("web").withData(""))
	h.mu.Lock()
	h.images.mounted["forgotten"] = true
	h.mu.Unlock()
	if errs := m.Collect(t.Context()); len(errs) > 0 {
		t.Error(errs)
	}
	if h.mountedImages() != 1 {
		t.Errorf("%d images are mounted", h.mountedImages())
	}
}

// After a restart the records say who has which image.
func TestImageVolumesAreKnownAgain(t *testing.T) {
	h := newHost(t)
	old := h.boot().open()
	c := mustStart(t, old, h.request("web").withData("sub"))
	m, errs := restart(t, h, old, func() {})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	again := loaded(t, m, c)
	if users := m.ImageUsers(dataImage().ID); !slices.Equal(users, []string{c.ID()}) {
		t.Errorf("users %v", users)
	}
	if s := again.Status().Mounts; len(s) != 1 || s[0].Image.ImageRef != dataImage().RepoDigests[0] {
		t.Errorf("mounts %v", s)
	}
	if errs := m.Collect(t.Context()); len(errs) > 0 || h.mountedImages() != 1 {
		t.Errorf("%d images mounted, %v", h.mountedImages(), errs)
	}
	if err := again.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.wantNothingLeft(m)
}

// A container whose image, or an image that it has as a volume, may not be used is not made, and nothing of it is left.
func TestImagesThatMayNotBeUsed(t *testing.T) {
	h, m := start(t)
	r := h.request("web").withData("")
	r.Pod.Config.Metadata.Namespace = "strict"
	_, err := m.Create(t.Context(), r)
	if !errors.Is(err, errdef.SignatureInvalid) || !strings.Contains(err.Error(), "SignatureValidationFailed: image "+testImage().ID) {
		t.Errorf("got %v", err)
	}
	if left := h.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := m.StartPause(t.Context(), r.Pod); err != nil {
		t.Errorf("the pause, which has no image: %v", err)
	}
}
