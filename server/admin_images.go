package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	"github.com/crid/crid/internal/admin"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/storage"
)

// Library is the image store as an operator works with it by hand.
type Library interface {
	Archives
	Shelf
	Users(id string) []string                      // ids of the containers that an image cannot be removed because of
	Share(id string) (_ storage.Share, known bool) // how its bytes on the disk divide
}

// Archives takes images from archives, and writes archives of them.
type Archives interface {
	Load(ctx context.Context, r storage.LoadRequest) error
	Save(ctx context.Context, r storage.SaveRequest, out io.Writer) error
}

// Shelf keeps the stored images in order.
type Shelf interface {
	Inspect(ctx context.Context, ref string) (storage.Details, error)
	Tag(ctx context.Context, ref string, names []string) (storage.Image, error)
	Drop(ctx context.Context, ref string, force bool) (storage.Removal, error)
	Prune(ctx context.Context, all, dryRun bool, tell func(storage.Removal) error) error
	Verify(ctx context.Context, refs []string, tell func(storage.Verification) error) error
}

const (
	maxNames  = 1 << 16   // references in one request: a node has fewer images
	pieceSize = 512 << 10 // bytes of an archive in one message
)

// checkRefs refuses what can be no references.
func checkRefs(field string, refs []string) error {
	if len(refs) > maxNames {
		return fmt.Errorf("%s: %d are too many: %w", field, len(refs), errdef.Invalid)
	}
	for _, ref := range refs {
		if err := checkName(field, ref, true); err != nil {
			return err
		}
	}
	return nil
}

func (s *adminService) shape(img storage.Image) *admin.Image {
	share, _ := s.admin.Library.Share(img.ID)
	return &admin.Image{
		Id: img.ID, Tags: img.RepoTags, Digests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned,
		Users:     s.admin.Library.Users(img.ID),
		Exclusive: share.Exclusive, Shared: share.Shared, ArtifactType: img.ArtifactType, Store: img.Store,
	}
}

func (s *adminService) ListImages(r *admin.ListImagesRequest, out grpc.ServerStreamingServer[admin.Image]) error {
	images, err := s.images.List(out.Context())
	if ref := r.GetRef(); ref != "" {
		if err := checkName("ref", ref, true); err != nil {
			return err
		}
		var one storage.Image
		one, err = s.images.Resolve(out.Context(), ref)
		images = []storage.Image{one}
	}
	if errors.Is(err, errdef.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, img := range images {
		if err := out.Send(s.shape(img)); err != nil {
			return err
		}
	}
	return nil
}

func (s *adminService) InspectImage(ctx context.Context, r *admin.InspectImageRequest) (*admin.InspectImageResponse, error) {
	if err := checkName("ref", r.GetRef(), true); err != nil {
		return nil, err
	}
	d, err := s.admin.Library.Inspect(ctx, r.GetRef())
	if err != nil {
		return nil, err
	}
	resp := &admin.InspectImageResponse{
		Image: s.shape(d.Image), Config: d.Config, Digest: d.Digest.String(), Manifest: d.Manifest,
	}
	for _, l := range d.Layers {
		resp.Layers = append(resp.Layers, &admin.Layer{DiffId: l.DiffID, Size: l.Size})
	}
	return resp, nil
}

func (s *adminService) PullImage(r *admin.PullImageRequest, out grpc.ServerStreamingServer[admin.PullImageResponse]) error {
	if err := checkName("ref", r.GetRef(), true); err != nil {
		return err
	}
	ctx, cancel := s.untilEnding(out.Context())
	defer cancel()
	var lost error // of a client that is gone: ctx ends with it
	tell := func(layers []storage.LayerProgress) {
		if lost == nil {
			lost = out.Send(&admin.PullImageResponse{Event: &admin.PullImageResponse_Progress{Progress: toProgress("", layers)}})
		}
	}
	auth := storage.Auth{Username: r.GetAuth().GetUsername(), Password: r.GetAuth().GetPassword(), IdentityToken: r.GetAuth().GetIdentityToken()}
	img, err := s.images.Pull(ctx, storage.PullRequest{Ref: r.GetRef(), Auth: auth, Progress: tell})
	if err != nil {
		return err
	}
	return errors.Join(lost, out.Send(&admin.PullImageResponse{Event: &admin.PullImageResponse_Image{Image: s.shape(img)}}))
}

func toProgress(image string, layers []storage.LayerProgress) *admin.Progress {
	progress := &admin.Progress{Image: image}
	for _, l := range layers {
		progress.Layers = append(progress.Layers, &admin.LayerProgress{Digest: l.Digest.String(), Done: l.Done, Total: l.Total, State: string(l.State)})
	}
	return progress
}

// LoadImages lets the archive come as fast as it is stored.
func (s *adminService) LoadImages(stream grpc.BidiStreamingServer[admin.LoadImagesRequest, admin.LoadImagesResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	if first.GetHeader() == nil {
		return fmt.Errorf("the first message is no header: %w", errdef.Invalid)
	}
	name := first.GetHeader().GetName()
	if err := checkName("name", name, false); err != nil {
		return err
	}
	ctx, cancel := s.untilEnding(stream.Context())
	defer cancel()
	archive, coming := io.Pipe()
	defer archive.Close()
	context.AfterFunc(ctx, func() { archive.CloseWithError(context.Cause(ctx)) })
	go func() { coming.CloseWithError(receive(stream, coming)) }() // ends with the stream, or when nobody reads any more
	var lost error                                                 // of a client that is gone: ctx ends with it
	r := storage.LoadRequest{Archive: archive, Name: name, Loaded: func(img storage.Image, existed bool) error {
		return stream.Send(&admin.LoadImagesResponse{Image: s.shape(img), Existed: existed})
	}}
	if first.GetHeader().GetProgress() {
		r.Progress = func(image string, layers []storage.LayerProgress) {
			if lost == nil {
				lost = stream.Send(&admin.LoadImagesResponse{Progress: toProgress(image, layers)})
			}
		}
	}
	return errors.Join(s.admin.Library.Load(ctx, r), lost)
}

// receive writes what comes to out; nil: all of it.
func receive(stream grpc.BidiStreamingServer[admin.LoadImagesRequest, admin.LoadImagesResponse], out io.Writer) error {
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := out.Write(part.GetData()); err != nil {
			return err
		}
	}
}

// saving sends what is written.
type saving struct {
	grpc.ServerStreamingServer[admin.SaveImagesResponse]
}

func (w saving) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); sent += pieceSize {
		if err := w.Send(&admin.SaveImagesResponse{Data: p[sent:min(sent+pieceSize, len(p))]}); err != nil {
			return sent, err
		}
	}
	return len(p), nil
}

func (s *adminService) SaveImages(r *admin.SaveImagesRequest, out grpc.ServerStreamingServer[admin.SaveImagesResponse]) error {
	if err := checkRefs("refs", r.GetRefs()); err != nil {
		return err
	}
	ctx, cancel := s.untilEnding(out.Context())
	defer cancel()
	w := bufio.NewWriterSize(saving{out}, pieceSize)
	var lost error // of a client that is gone: ctx ends with it
	ask := storage.SaveRequest{Refs: r.GetRefs(), Format: storage.Format(r.GetFormat())}
	if r.GetProgress() {
		ask.Progress = func(layers []storage.LayerProgress) {
			if lost == nil {
				lost = out.Send(&admin.SaveImagesResponse{Progress: toProgress("", layers)})
			}
		}
	}
	if err := errors.Join(s.admin.Library.Save(ctx, ask, w), lost); err != nil {
		return err
	}
	return w.Flush()
}

func (s *adminService) TagImage(ctx context.Context, r *admin.TagImageRequest) (*admin.Image, error) {
	if err := errors.Join(checkName("ref", r.GetRef(), true), checkRefs("names", r.GetNames())); err != nil {
		return nil, err
	}
	img, err := s.admin.Library.Tag(ctx, r.GetRef(), r.GetNames())
	if err != nil {
		return nil, err
	}
	return s.shape(img), nil
}

func toRemoval(r storage.Removal) *admin.Removal {
	return &admin.Removal{Id: r.Image.ID, Untagged: r.Untagged, Removed: r.Gone, Size: r.Image.Size}
}

func (s *adminService) RemoveImage(ctx context.Context, r *admin.RemoveImageRequest) (*admin.Removal, error) {
	if err := checkName("ref", r.GetRef(), true); err != nil {
		return nil, err
	}
	removal, err := s.admin.Library.Drop(ctx, r.GetRef(), r.GetForce())
	if err != nil {
		return nil, err
	}
	return toRemoval(removal), nil
}

func (s *adminService) PruneImages(r *admin.PruneImagesRequest, out grpc.ServerStreamingServer[admin.Removal]) error {
	ctx, cancel := s.untilEnding(out.Context())
	defer cancel()
	return s.admin.Library.Prune(ctx, r.GetAll(), r.GetDryRun(), func(r storage.Removal) error { return out.Send(toRemoval(r)) })
}

func (s *adminService) VerifyImages(r *admin.VerifyImagesRequest, out grpc.ServerStreamingServer[admin.Verification]) error {
	if err := checkRefs("refs", r.GetRefs()); err != nil {
		return err
	}
	ctx, cancel := s.untilEnding(out.Context())
	defer cancel()
	return s.admin.Library.Verify(ctx, r.GetRefs(), func(v storage.Verification) error {
		return out.Send(&admin.Verification{Id: v.Image.ID, Tags: v.Image.RepoTags, Layers: uint32(v.Layers), Faults: v.Faults, Unknown: v.Unknown})
	})
}
