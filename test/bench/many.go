package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/node"
)

const (
	layersEach = 4                // of an image
	rest       = 10 * time.Second // until a crid that was started has nothing more to do
)

// withMany measures a crid without images, and one with many.
func (f flags) withMany(ctx context.Context, n *node.Node, registry string) error {
	e, err := dial("crid", n.Socket, []string{"bin/crid"})
	if err != nil {
		return err
	}
	if err := f.starts(ctx, e, n, 0); err != nil {
		return err
	}
	refs, err := f.publish(ctx, registry)
	if err != nil {
		return err
	}
	began := time.Now()
	err = each(ctx, f.atOnce, refs, func(ctx context.Context, ref string) error {
		_, err := n.Images.PullImage(ctx, &runtime.ImageSpec{Image: ref}, nil, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("pull %d images: %w", f.images, err)
	}
	e.note(fmt.Sprintf("= %d pulls, %d at a time", f.images, f.atOnce), time.Since(began))
	full, err := e.memory()
	if err != nil {
		return err
	}
	fmt.Printf("after %d pulls: %.1f MiB\n", f.images, float64(full)/(1<<20))
	if err := f.starts(ctx, e, n, f.images); err != nil {
		return err
	}
	return report([]*endpoint{e})
}

// publish pushes images that share nothing, and returns their names.
func (f flags) publish(ctx context.Context, registry string) ([]string, error) {
	refs := make([]string, f.images)
	for i := range refs {
		refs[i] = fmt.Sprintf("%s/many/image-%d:1", registry, i)
	}
	return refs, each(ctx, f.atOnce, refs, func(ctx context.Context, ref string) error {
		var layers []v1.Layer
		for i := range layersEach {
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			content := fmt.Sprintf("file %d of %s", i, ref)
			if err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: int64(len(content))}); err != nil {
				return err
			}
			if _, err := io.WriteString(w, content); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
			l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil })
			if err != nil {
				return err
			}
			layers = append(layers, l)
		}
		return pushLayers(ctx, ref, layers)
	})
}

// each calls do for every one, a few at a time.
func each(ctx context.Context, atOnce int, refs []string, do func(context.Context, string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, ref := range refs {
		g.Go(func() error { return do(ctx, ref) })
	}
	return g.Wait()
}

// starts ends and starts the crid, which has so many images, again and again, and asks the last one.
func (f flags) starts(ctx context.Context, e *endpoint, n *node.Node, images int) error {
	with := fmt.Sprintf(", %d images", images)
	for range f.rounds {
		if err := n.Stop(); err != nil {
			return err
		}
		began := time.Now()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return n.Again(ctx) })
		g.Go(func() error {
			listed, err := firstList(ctx, n.Socket)
			e.note("started"+with, time.Since(began))
			if err != nil || listed != images {
				return fmt.Errorf("%d of %d images are listed after a start: %w", listed, images, err)
			}
			return nil
		})
		if err := g.Wait(); err != nil {
			return err
		}
		e.note("started, and the disk measured"+with, time.Since(began)) // which the second client's first call asks for
	}
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return ctx.Err()
	}
	used, err := e.memory()
	if err != nil {
		return err
	}
	fmt.Printf("%.1f MiB at rest%s\n", float64(used)/(1<<20), with)
	again, err := dial(e.name, n.Socket, e.words) // the connection was to another crid
	if err != nil {
		return err
	}
	again.took = e.took
	for _, q := range imageQuestions(again, images) {
		q.what += with
		if err := again.costs(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// firstList waits for a crid that is being started and tells how many images it lists.
func firstList(ctx context.Context, socket string) (int, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			err = conn.Close()
		}
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, err
		}
	}
	e, err := dial("", socket, nil)
	if err != nil {
		return 0, err
	}
	list, err := e.images.ListImages(ctx, &runtime.ListImagesRequest{})
	return len(list.GetImages()), err
}

// imageQuestions are what a kubelet asks of images.
func imageQuestions(e *endpoint, images int) []question {
	status := func(ctx context.Context, ref string) error {
		_, err := e.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
		return err
	}
	list, err := e.images.ListImages(context.Background(), &runtime.ListImagesRequest{})
	known := "none.example/image:1"
	if err == nil && images > 0 {
		known = list.Images[images/2].RepoTags[0]
	}
	return []question{
		{"ListImages", func(ctx context.Context) error {
			_, err := e.images.ListImages(ctx, &runtime.ListImagesRequest{})
			return err
		}},
		{"StreamImages", func(ctx context.Context) error {
			s, err := e.images.StreamImages(ctx, &runtime.StreamImagesRequest{})
			return drain(s, err)
		}},
		{"ImageStatus", func(ctx context.Context) error { return status(ctx, known) }},
		{"ImageStatus of none", func(ctx context.Context) error { return status(ctx, "none.example/image:1") }},
		{"ImageFsInfo", func(ctx context.Context) error {
			_, err := e.images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
			return err
		}},
	}
}
