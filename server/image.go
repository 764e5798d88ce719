package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

// Images is what the server asks of the image store.
type Images interface {
	StoredImages
	Pull(ctx context.Context, r storage.PullRequest) (storage.Image, error)
	Remove(ctx context.Context, ref string) error
	Usage(ctx context.Context) (storage.Usage, error)
}

// StoredImages tells of the images that are stored, but for Inspect from memory.
type StoredImages interface {
	Resolve(ctx context.Context, ref string) (storage.Image, error)
	List(ctx context.Context) ([]storage.Image, error)
	Inspect(ctx context.Context, ref string) (storage.Details, error)
}

// Rootfs tells what the root filesystems of all containers hold.
type Rootfs interface {
	Total(ctx context.Context) (storage.Usage, error)
}

// imageService is the CRI's ImageService.
type imageService struct {
	runtime.UnimplementedImageServiceServer
	*Server
}

// imageRequest is a request about one image.
type imageRequest interface{ GetImage() *runtime.ImageSpec }

// imageRef takes the reference out of a request.
func (s *Server) imageRef(r imageRequest) (string, error) {
	image := r.GetImage()
	if err := checkName("image.image", image.GetImage(), true); err != nil {
		return "", err
	}
	if handler := image.GetRuntimeHandler(); handler != "" && !s.facts.knows(handler) {
		return "", fmt.Errorf("image.runtime_handler: no handler %q; known: %s: %w", handler, s.facts.names(), errdef.Invalid)
	}
	return image.GetImage(), nil
}

func (s *imageService) PullImage(ctx context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	ref, err := s.imageRef(r)
	if err != nil {
		return nil, err
	}
	auth, err := authOf(r.GetAuth())
	if err != nil {
		return nil, err
	}
	auth.Server = r.GetAuth().GetServerAddress()
	image, err := s.images.Pull(ctx, storage.PullRequest{Ref: ref, Auth: auth, Namespace: r.GetSandboxConfig().GetMetadata().GetNamespace()})
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: image.ID}, nil
}

func (s *imageService) ListImages(ctx context.Context, r *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	images, err := s.filterImages(ctx, r.GetFilter().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: images}, nil
}

func (s *imageService) StreamImages(r *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	images, err := s.filterImages(stream.Context(), r.GetFilter().GetImage().GetImage())
	if err != nil {
		return err
	}
	return inChunks(stream, encodeEach(images))
}

// filterImages is all images, or with a reference the one that it names, or none.
func (s *imageService) filterImages(ctx context.Context, ref string) ([]*runtime.Image, error) {
	if ref != "" {
		image, err := s.images.Resolve(ctx, ref)
		if errors.Is(err, errdef.NotFound) {
			return nil, nil
		}
		return []*runtime.Image{toImage(image)}, err
	}
	all, err := s.images.List(ctx)
	images := make([]*runtime.Image, 0, len(all))
	for _, image := range all {
		images = append(images, toImage(image))
	}
	return images, err
}

// ImageStatus answers with no image, and no error, for one that is not here.
func (s *imageService) ImageStatus(ctx context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	ref, err := s.imageRef(r)
	if err != nil {
		return nil, err
	}
	image, err := s.images.Resolve(ctx, ref)
	if errors.Is(err, errdef.NotFound) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtime.ImageStatusResponse{Image: toImage(image)}
	if handler := r.GetImage().GetRuntimeHandler(); handler != "" { // an image is the same for all of them
		if resp.Image.Spec == nil {
			resp.Image.Spec = &runtime.ImageSpec{}
		}
		resp.Image.Spec.RuntimeHandler = handler
	}
	if r.GetVerbose() {
		resp.Info, err = s.imageInfo(ctx, image)
	}
	return resp, err
}

// imageInfo is all that is known of an image, under the names that crictl and its users know from others.
func (s *imageService) imageInfo(ctx context.Context, image storage.Image) (map[string]string, error) {
	d, err := s.images.Inspect(ctx, image.ID)
	if err != nil {
		return nil, err
	}
	about := map[string]any{
		"labels": image.Labels, "annotations": image.Annotations, "digest": d.Digest, "manifest": d.Manifest,
		"size": map[string]uint64{"exclusive": d.Share.Exclusive, "shared": d.Share.Shared},
	}
	if d.Config != nil {
		about["imageSpec"] = d.Config
	}
	if image.ArtifactType != "" {
		about["artifactType"] = image.ArtifactType
	}
	if image.Store != "" {
		about["store"] = image.Store
	}
	return info(map[string]any{"info": about})
}

func (s *imageService) RemoveImage(ctx context.Context, r *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	ref, err := s.imageRef(r)
	if err != nil {
		return nil, err
	}
	err = s.images.Remove(ctx, ref)
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, nil
}

func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	images, err := s.images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := s.rootfs.Total(ctx)
	if err != nil {
		return nil, err
	}
	return &runtime.ImageFsInfoResponse{
		ImageFilesystems:     []*runtime.FilesystemUsage{toFilesystem(images)},
		ContainerFilesystems: []*runtime.FilesystemUsage{toFilesystem(containers)},
	}, nil
}

func toFilesystem(u storage.Usage) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp:  u.At.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  &runtime.UInt64Value{Value: u.Bytes},
		InodesUsed: &runtime.UInt64Value{Value: u.Inodes},
	}
}

// toImage shapes an image. It depends on the image alone, never on the reference that it was asked for by.
func toImage(i storage.Image) *runtime.Image {
	uid, username := spec.ImageUser(i.Config.User)
	image := &runtime.Image{
		Id:          i.ID,
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        i.Size,
		Username:    username,
		Pinned:      i.Pinned,
	}
	if len(i.Annotations) > 0 {
		image.Spec = &runtime.ImageSpec{Annotations: i.Annotations}
	}
	if uid != nil {
		image.Uid = &runtime.Int64Value{Value: *uid}
	}
	return image
}

// authOf reads the credentials of a pull: either apart, or as base64 of "user:password" as in docker's
// configuration. What it was given is never part of an error.
func authOf(a *runtime.AuthConfig) (storage.Auth, error) {
	auth := storage.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
	if auth != (storage.Auth{}) || a.GetAuth() == "" {
		return auth, nil
	}
	plain, err := base64.StdEncoding.DecodeString(a.GetAuth())
	if err != nil {
		return storage.Auth{}, fmt.Errorf("auth.auth is not base64: %w", errdef.Invalid)
	}
	user, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return storage.Auth{}, fmt.Errorf("auth.auth does not hold user:password: %w", errdef.Invalid)
	}
	// docker pads the value with NUL bytes at times.
	return storage.Auth{Username: user, Password: strings.Trim(password, "\x00")}, nil
}
