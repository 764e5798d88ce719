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

// Save writes images of a registry to path, as crane does for docker load; refs has each by the name that it gets there.
func Save(ctx context.Context, path string, refs map[string]string) error {
	all := map[name.Tag]v1.Image{}
	for as, ref := range refs {
		tag, err := name.NewTag(as)
		if err != nil {
			return err
		}
		if all[tag], err = fetch(ctx, ref); err != nil {
			return err
		}
	}
	return tarball.MultiWriteToFile(path, all)
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
