package server

import (
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/storage"
)

func withImages(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	h.images.images = []storage.Image{
		{ID: "1d", RepoTags: []string{"a:1", "a:2"}, RepoDigests: []string{"a@sha256:11"}, Size: 3, Pinned: true,
			Config: imgspec.ImageConfig{User: "1002:3"}, Labels: map[string]string{"x": "y"}},
		{ID: "2d", RepoTags: []string{"b:1"}, Size: 4, Config: imgspec.ImageConfig{User: "www-data"}},
	}
	return h
}

func ref(name string) *runtime.ImageSpec { return &runtime.ImageSpec{Image: name} }

func TestImagesAreListedAndLookedUp(t *testing.T) {
	h, ctx := withImages(t), t.Context()
	one := &runtime.Image{
		Id: "1d", RepoTags: []string{"a:1", "a:2"}, RepoDigests: []string{"a@sha256:11"}, Size: 3, Pinned: true,
		Uid: &runtime.Int64Value{Value: 1002},
	}
	two := &runtime.Image{Id: "2d", RepoTags: []string{"b:1"}, Size: 4, Username: "www-data"}
	for _, c := range []struct {
		filter *runtime.ImageFilter
		want   []*runtime.Image
	}{
		{nil, []*runtime.Image{one, two}},
		{&runtime.ImageFilter{Image: ref("a:2")}, []*runtime.Image{one}},
		{&runtime.ImageFilter{Image: ref("2d")}, []*runtime.Image{two}},
		{&runtime.ImageFilter{Image: ref("c")}, nil},
	} {
		got, err := h.image.ListImages(ctx, &runtime.ListImagesRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &runtime.ListImagesResponse{Images: c.want})
		stream, err := h.image.StreamImages(ctx, &runtime.StreamImagesRequest{Filter: c.filter})
		pieces := drain(t, stream, err, (*runtime.StreamImagesResponse).GetImages, (*runtime.Image).GetId)
		if whole := gather(t, nil, c.want, (*runtime.Image).GetId); !maps.Equal(pieces.items, whole.items) {
			t.Errorf("by the filter %v a stream tells %v", c.filter, pieces.items)
		}
	}
	for _, name := range []string{"1d", "a:1", "a:2"} {
		got, err := h.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: ref(name)})
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, &runtime.ImageStatusResponse{Image: one})
	}
}

func TestAnImageIsToldInFull(t *testing.T) {
	h, ctx := withImages(t), t.Context()
	h.images.images[1].Annotations, h.images.images[1].ArtifactType, h.images.images[1].Store = map[string]string{"n": "m"}, "application/x", "/elsewhere"
	for id, want := range map[string]string{
		"1d": `{"annotations":null,"digest":"sha256:99","imageSpec":{"author":"me of 1d","config":{"User":"1002:3"}},"labels":{"x":"y"},"manifest":{"layers":[]},"size":{"exclusive":1,"shared":2}}`,
		"2d": `{"annotations":{"n":"m"},"artifactType":"application/x","digest":"sha256:99","imageSpec":{"author":"me of 2d","config":{"User":"1002:3"}},"labels":null,"manifest":{"layers":[]},"size":{"exclusive":1,"shared":2},"store":"/elsewhere"}`,
	} {
		got, err := h.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: ref(id), Verbose: true})
		if err != nil || got.GetInfo()["info"] != want {
			t.Errorf("got %v, %v", got.GetInfo(), err)
		}
	}
	got, err := h.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: ref("2d")})
	if err != nil || got.GetImage().GetSpec().GetAnnotations()["n"] != "m" || got.GetInfo() != nil {
		t.Errorf("annotations: %v, %v", got, err)
	}
}

// TestAnImageOfAHandler: an image is the same for each, so that one that was asked for with a handler is there, and says so.
func TestAnImageOfAHandler(t *testing.T) {
	h, ctx := withImages(t), t.Context()
	for _, handler := range []string{"", "crun"} {
		spec := &runtime.ImageSpec{Image: "a:1", RuntimeHandler: handler, UserSpecifiedImage: "a", Annotations: map[string]string{"any": "thing"}}
		if pulled, err := h.image.PullImage(ctx, &runtime.PullImageRequest{Image: spec}); err != nil || pulled.GetImageRef() != "1d" {
			t.Errorf("pull for %q: %v, %v", handler, pulled, err)
		}
		got, err := h.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec})
		if err != nil || got.GetImage().GetId() != "1d" || got.GetImage().GetSpec().GetRuntimeHandler() != handler {
			t.Errorf("status for %q: %v, %v", handler, got, err)
		}
	}
	if _, err := h.image.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "1d", RuntimeHandler: "crun"}}); err != nil {
		t.Error(err)
	}
}

func TestAnAbsentImageIsNoError(t *testing.T) {
	h, ctx := withImages(t), t.Context()
	got, err := h.image.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: ref("c:1")})
	if err != nil || got.GetImage() != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for range 2 {
		if _, err := h.image.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: ref("1d")}); err != nil {
			t.Error(err)
		}
	}
	h.images.err = fmt.Errorf("image 2d is used by containers c1, c2: %w", errdef.WrongState)
	_, err = h.image.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: ref("2d")})
	codeOf(t, err, codes.FailedPrecondition, "c1, c2")
}

func TestAPullAnswersWithTheImagesID(t *testing.T) {
	h, ctx := withImages(t), t.Context()
	got, err := h.image.PullImage(ctx, &runtime.PullImageRequest{Image: ref("a:1")})
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, &runtime.PullImageResponse{ImageRef: "1d"})
}

func TestTheErrorsThatTheKubeletReadsComeFirst(t *testing.T) {
	h := withImages(t)
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("pull a:1: dial tcp: refused: %w", errdef.RegistryUnavailable), "RegistryUnavailable: pull a:1: dial tcp: refused"},
		{fmt.Errorf("%w: pull a:1: refused", errdef.RegistryUnavailable), "RegistryUnavailable: pull a:1: refused"},
		{fmt.Errorf("pull a:1: %w: no key", errdef.SignatureInvalid), "SignatureValidationFailed: pull a:1: "},
	} {
		h.images.err = c.err
		_, err := h.image.PullImage(t.Context(), &runtime.PullImageRequest{Image: ref("a:1")})
		codeOf(t, err, codes.Unknown, "desc = "+c.want)
	}
}

func TestImageRequestsThatCannotBe(t *testing.T) {
	h := withImages(t)
	for _, c := range []struct {
		image *runtime.ImageSpec
		auth  *runtime.AuthConfig
		want  string
	}{
		{nil, nil, "image.image is empty"},
		{ref("a\x00b"), nil, "image.image holds a NUL byte"},
		{&runtime.ImageSpec{Image: "a:1", RuntimeHandler: "kata"}, nil, `image.runtime_handler: no handler "kata"`},
		{ref("a:1"), &runtime.AuthConfig{Auth: "%"}, "auth.auth is not base64"},
		{ref("a:1"), &runtime.AuthConfig{Auth: "c2VjcmV0"}, "auth.auth does not hold user:password"},
	} {
		_, err := h.image.PullImage(t.Context(), &runtime.PullImageRequest{Image: c.image, Auth: c.auth})
		codeOf(t, err, codes.InvalidArgument, c.want)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the credentials: %v", err)
		}
	}
}

func TestCredentialsReachThePullAndNeverTheLog(t *testing.T) {
	h := withImages(t)
	encoded := base64.StdEncoding.EncodeToString([]byte("me:s3cret:x\x00\x00"))
	for _, c := range []struct {
		auth *runtime.AuthConfig
		want storage.Auth
	}{
		{nil, storage.Auth{}},
		{&runtime.AuthConfig{Username: "me", Password: "s3cret"}, storage.Auth{Username: "me", Password: "s3cret"}},
		{&runtime.AuthConfig{Auth: encoded}, storage.Auth{Username: "me", Password: "s3cret:x"}},
		{&runtime.AuthConfig{Username: "you", Auth: encoded}, storage.Auth{Username: "you"}},
		{&runtime.AuthConfig{IdentityToken: "s3cret"}, storage.Auth{IdentityToken: "s3cret"}},
		{&runtime.AuthConfig{RegistryToken: "s3cret"}, storage.Auth{RegistryToken: "s3cret"}},
		{&runtime.AuthConfig{ServerAddress: "a.example", Auth: encoded}, storage.Auth{Server: "a.example", Username: "me", Password: "s3cret:x"}},
	} {
		pod := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Namespace: "team"}}
		if _, err := h.image.PullImage(t.Context(), &runtime.PullImageRequest{Image: ref("a:1"), Auth: c.auth, SandboxConfig: pod}); err != nil {
			t.Fatal(err)
		}
		if got := h.images.pulled; got.Auth != c.want || got.Namespace != "team" {
			t.Errorf("got %+v, want %+v", got, c.want)
		}
	}
	if log := h.log.String(); strings.Contains(log, "s3cret") || !strings.Contains(log, "image=a:1") {
		t.Errorf("log:\n%s", log)
	}
}

func TestImageFsInfoTellsBothFilesystems(t *testing.T) {
	got, err := newHouse(t).image.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(mountpoint string, bytes, inodes uint64) []*runtime.FilesystemUsage {
		return []*runtime.FilesystemUsage{{
			FsId:      &runtime.FilesystemIdentifier{Mountpoint: mountpoint},
			UsedBytes: &runtime.UInt64Value{Value: bytes}, InodesUsed: &runtime.UInt64Value{Value: inodes},
		}}
	}
	for _, fs := range append(got.GetImageFilesystems(), got.GetContainerFilesystems()...) {
		if fs.GetTimestamp() != 9e9 { // when it was measured, not when it was asked for
			t.Errorf("timestamp %d", fs.GetTimestamp())
		}
		fs.Timestamp = 0
	}
	same(t, got, &runtime.ImageFsInfoResponse{ImageFilesystems: want("/images", 5, 6), ContainerFilesystems: want("/rootfs", 7, 8)})
}
