package images

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func fetch(ctx context.Context, ref string) (v1.Image, error) {
	from, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", ref, err)
	}
	return img, nil
}

// Save writes the image ref of a registry to path, as crane does for docker load, under the name as.
func Save(ctx context.Context, ref, as, path string) error {
	img, err := fetch(ctx, ref)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(as)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, img)
}

// SaveLayout writes it to the directory dir as an OCI layout, under the name as.
func SaveLayout(ctx context.Context, ref, as, dir string) error {
	img, err := fetch(ctx, ref)
	if err != nil {
		return err
	}
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return to.AppendImage(img, layout.WithAnnotations(map[string]string{"io.containerd.image.name": as}))
}
