package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

// imageVolumes are the images that a container has as volumes, by mounts[].image.image.
type imageVolumes map[string]volumeImage

// volumeImage is one image that is mounted in a container.
type volumeImage struct {
	ID  string `json:"id"`
	Ref string `json:"ref"` // by digest where the image has one, else its id
}

func volumesOf(r Request) imageVolumes {
	var all imageVolumes
	for _, m := range r.Config.GetMounts() {
		asked := m.GetImage()
		image, found := r.Volumes[asked.GetImage()]
		if asked.GetImage() == "" || !found {
			continue
		}
		if all == nil {
			all = imageVolumes{}
		}
		all[asked.GetImage()] = volumeImage{ID: image.ID, Ref: imageRef(image, asked.GetUserSpecifiedImage())}
	}
	return all
}

// ids are the images, each once.
func (v imageVolumes) ids() []string {
	var ids []string
	for image := range maps.Values(v) {
		ids = append(ids, image.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (v imageVolumes) have(imageID string) bool {
	return slices.Contains(v.ids(), imageID)
}

// mounts are the mounts as they were asked for; those of images say by digest which image it is.
func (c *Container) mounts() []*runtime.Mount {
	if len(c.plan.Volumes) == 0 {
		return c.config.GetMounts()
	}
	var all []*runtime.Mount
	for _, m := range c.config.GetMounts() {
		if image, ok := c.plan.Volumes[m.GetImage().GetImage()]; ok && m.GetImage().GetImageRef() == "" {
			m = proto.CloneOf(m)
			m.Image.ImageRef = image.Ref
		}
		all = append(all, m)
	}
	return all
}

// permit asks the signature policies of today about the images.
func (c *Container) permit(ctx context.Context, pod spec.PodEnv) error {
	if c.plan.Pause {
		return nil
	}
	use := storage.Use{ImageID: c.plan.ImageID, Name: c.config.GetImage().GetUserSpecifiedImage(), Namespace: pod.Config.GetMetadata().GetNamespace()}
	if err := c.m.deps.Images.Permit(ctx, use); err != nil {
		return err
	}
	for i, m := range c.config.GetMounts() {
		image, ok := c.plan.Volumes[m.GetImage().GetImage()]
		if !ok {
			continue
		}
		use.ImageID, use.Name = image.ID, m.GetImage().GetUserSpecifiedImage()
		if err := c.m.deps.Images.Permit(ctx, use); err != nil {
			return fmt.Errorf("mounts[%d] (%s): %w: %w", i, m.GetContainerPath(), err, errdef.ImageVolume)
		}
	}
	return nil
}

// hold keeps the images until the container stands as their user.
func (c *Container) hold(ctx context.Context) (release func(), err error) {
	var held []func()
	release = func() {
		for _, let := range held {
			let()
		}
	}
	if c.plan.Pause {
		return release, nil
	}
	let, err := c.m.deps.Images.Hold(ctx, c.plan.ImageID)
	if err != nil {
		return nil, err
	}
	held = append(held, let)
	for _, id := range c.plan.Volumes.ids() {
		let, err := c.m.deps.Images.Hold(ctx, id)
		if err != nil {
			release()
			return nil, fmt.Errorf("mounts: %w: %w", err, errdef.ImageVolume)
		}
		held = append(held, let)
	}
	return release, nil
}

// lookUpImageVolume mounts the image that a mount names and finds the part of it that is asked for. What it finds
// cannot change under it: the image is mounted read-only.
func (c *Container) lookUpImageVolume(ctx context.Context, asked *runtime.Mount, pod spec.PodEnv) (spec.Mount, error) {
	name := asked.GetImage().GetImage()
	image, ok := c.plan.Volumes[name]
	if !ok {
		return spec.Mount{}, fmt.Errorf("image %q: %w", name, errdef.NotFound)
	}
	source, err := c.mountImage(ctx, image.ID, pod)
	if err != nil {
		return spec.Mount{}, err
	}
	sub := asked.GetImageSubPath()
	if sub == "" {
		return spec.Mount{Mount: asked, Source: source}, nil
	}
	if source, err = storage.Below(source, sub); err != nil {
		return spec.Mount{}, fmt.Errorf("image_sub_path of image %s: %w", image.ID, err)
	}
	return spec.Mount{Mount: asked, Source: source}, nil
}

// mountImage shares one mount with all containers but those of pods with a user namespace, which see other owners of
// the image's files.
func (c *Container) mountImage(ctx context.Context, imageID string, pod spec.PodEnv) (string, error) {
	if pod.UserNS != "" {
		return c.m.deps.Mapper.MapImage(ctx, c.id, imageID, ownerIn(pod))
	}
	return c.m.deps.Volumes.Mount(ctx, imageID)
}

// unmountImages unmounts the images that the container had as volumes and no other has. Of a container whose
// record cannot be read it is not known which they are.
func (m *Manager) unmountImages(ctx context.Context, r remains) error {
	if r.plan.Handler == "" {
		return m.unmountUnused(ctx)
	}
	var all error
	for _, id := range r.plan.Volumes.ids() {
		all = errors.Join(all, m.unmountImage(ctx, id))
	}
	return all
}

// unmountUnused unmounts every image that no container has as a volume.
func (m *Manager) unmountUnused(ctx context.Context) error {
	mounted, err := m.deps.Volumes.List()
	for _, id := range mounted {
		err = errors.Join(err, m.unmountImage(ctx, id))
	}
	return err
}

// unmountImage is safe beside creations: a container is in the map before it mounts anything, and the look at the
// map excludes mounting. Of two that are removed together, each sees that the other has let go.
func (m *Manager) unmountImage(ctx context.Context, id string) error {
	return m.deps.Volumes.Unmount(ctx, id, func() bool {
		m.mu.RLock()
		defer m.mu.RUnlock()
		for _, c := range m.byID {
			if c.plan.Volumes.have(id) && !c.letGo.Load() {
				return true
			}
		}
		return false
	})
}
