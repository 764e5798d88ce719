package images

import (
	"archive/tar"
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// File is an entry of a layer: a header as the archive shall have it, and the content of a regular file.
type File struct {
	tar.Header
	Content []byte
}

// Link is a symbolic link.
func Link(name, target string) File {
	return File{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

// Text is a regular file.
func Text(name, content string) File {
	return File{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, Content: []byte(content)}
}

// Make pushes an image that a test needs for itself: one more layer on what the same registry has as base, and a
// changed configuration.
func Make(ctx context.Context, ref, base string, edit func(*v1.Config), files ...File) error {
	from, err := name.ParseReference(base, name.Insecure)
	if err != nil {
		return err
	}
	img, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("get %s: %w", base, err)
	}
	var l layer
	for _, f := range files {
		l.raw(f.Header, f.Content)
	}
	if img, err = l.image(img, edit); err != nil {
		return fmt.Errorf("build %s: %w", ref, err)
	}
	if err := push(ctx, ref, img); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}
