package integration

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

func imageStatus(t *testing.T, c *harness.Crid, ref string) *runtime.Image {
	t.Helper()
	resp, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: ref}, false)
	if err != nil {
		t.Fatalf("status of image %s: %v", ref, err)
	}
	return resp.Image
}

func TestAnImagesWholeLife(t *testing.T) {
	c := harness.Start(t)
	ref := harness.Ref(images.Web)
	if img := imageStatus(t, c, ref); img != nil {
		t.Fatalf("an image before its pull: %v", img)
	}
	if info, err := c.Images.ImageFsInfo(c.Context()); err != nil || len(info.ImageFilesystems) == 0 || info.ImageFilesystems[0].UsedBytes == nil {
		t.Fatalf("usage of an empty store: %v, %v", info, err)
	}
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i] = c.Pull(images.Web) })
	}
	wg.Wait()
	img := imageStatus(t, c, ref)
	if img == nil || img.Id != ids[0] || img.Size == 0 || len(img.RepoTags) != 1 || img.RepoTags[0] != ref || len(img.RepoDigests) != 1 {
		t.Fatalf("after %d pulls at once: %v", len(ids), img)
	}
	for _, other := range []string{img.Id, img.RepoDigests[0], strings.TrimSuffix(ref, ":1") + ":1"} {
		if got := imageStatus(t, c, other); got == nil || got.Id != img.Id {
			t.Errorf("by %s: %v", other, got)
		}
	}
	full, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: ref}, true)
	if err != nil {
		t.Fatal(err)
	}
	var told struct {
		Digest    string
		ImageSpec imgspec.Image
		Manifest  imgspec.Manifest
	}
	if err := json.Unmarshal([]byte(full.GetInfo()["info"]), &told); err != nil || told.ImageSpec.OS != "linux" || len(told.ImageSpec.RootFS.DiffIDs) != len(told.Manifest.Layers) ||
		len(told.Manifest.Layers) == 0 || len(told.ImageSpec.Config.Cmd)+len(told.ImageSpec.Config.Entrypoint) == 0 || len(told.Digest) != 71 {
		t.Errorf("told in full: %v, %v", full.GetInfo(), err)
	}
	pod := c.RunPod()
	ctr := pod.Create("sleep 1", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = img.Id })
	if s := ctr.Status(); s.ImageId != img.Id || s.ImageRef != img.RepoDigests[0] {
		t.Errorf("the container's image: id %q, ref %q", s.ImageId, s.ImageRef)
	}
	err = c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: ref})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), ctr.ID) {
		t.Errorf("removing an image in use: %v; want FailedPrecondition with the container's id", err)
	}
	ctr.Remove()
	for range 2 {
		if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: ref}); err != nil {
			t.Fatal(err)
		}
		if got := imageStatus(t, c, img.Id); got != nil {
			t.Errorf("after its removal: %v", got)
		}
	}
}

func TestShortNamesComeFromDockerHub(t *testing.T) {
	c := harness.Start(t) // whose registries.conf mirrors docker.io to the test registry
	if _, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: "crid/busybox:1"}, nil, nil); err != nil {
		t.Fatal(err)
	}
	img := imageStatus(t, c, "docker.io/crid/busybox:1")
	if img == nil || len(img.RepoTags) != 1 || img.RepoTags[0] != "docker.io/crid/busybox:1" {
		t.Errorf("got %v", img)
	}
}

func TestPullsThatFail(t *testing.T) {
	c := harness.Start(t)
	pull := func(ctx context.Context, ref string) error {
		_, err := c.Images.PullImage(ctx, &runtime.ImageSpec{Image: ref}, nil, nil)
		return err
	}
	if err := pull(c.Context(), harness.Ref("crid/absent:1")); err == nil || !strings.Contains(err.Error(), "crid/absent:1") {
		t.Errorf("an absent image: %v", err)
	}
	if err := pull(c.Context(), "Not A Reference"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no reference: %v", err)
	}
	if err := pull(c.Context(), "127.0.0.1:1/x:1"); err == nil || !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable") {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := pull(ctx, harness.Ref(images.Volume)); status.Code(err) != codes.DeadlineExceeded && ctx.Err() == nil {
		t.Errorf("a pull of one millisecond: %v", err)
	}
	if img := imageStatus(t, c, harness.Ref(images.Volume)); img != nil {
		t.Errorf("a cancelled pull left %v", img)
	}
}

func TestImageUsers(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	if got := pod.Output("id -u; id -G; echo $HOME", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.User) }); got != "1000\n1000 50000\n/home/app\n" {
		t.Errorf("the image's user: %q", got)
	}
	if img := imageStatus(t, c, harness.Ref(images.User)); img.Username != "app" || img.Uid.GetValue() != 0 {
		t.Errorf("uid %v, username %q", img.Uid, img.Username)
	}
	for user, want := range map[string]struct {
		uid  *runtime.Int64Value
		name string
		ids  string
	}{
		"":           {nil, "", "0 0\n"},
		"0":          {&runtime.Int64Value{}, "", "0 0\n"},
		"1234":       {&runtime.Int64Value{Value: 1234}, "", "1234 0\n"},
		"1234:77":    {&runtime.Int64Value{Value: 1234}, "", "1234 77\n"},
		"1000:extra": {&runtime.Int64Value{Value: 1000}, "", "1000 50000\n"},
		"app:33":     {nil, "app", "1000 33\n"},
		"www-data":   {nil, "www-data", "33 33\n"},
	} {
		ref := c.Image(func(cfg *v1.Config) { cfg.User = user })
		c.PullRef(ref)
		img := imageStatus(t, c, ref)
		if (img.Uid == nil) != (want.uid == nil) || img.Uid.GetValue() != want.uid.GetValue() || img.Username != want.name {
			t.Errorf("user %q: uid %v, username %q", user, img.Uid, img.Username)
		}
		if got := pod.Output("echo $(id -u) $(id -g)", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = ref }); got != want.ids {
			t.Errorf("user %q runs as %q, want %q", user, got, want.ids)
		}
	}
}
