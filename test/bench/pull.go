package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
)

// shape is what an image of the pulls' benchmark is made of.
type shape struct {
	name   string
	layers int
	bytes  int // of a layer's files
	file   int // bytes of a file
}

var shapes = []shape{
	{"880 MB in 3 layers", 3, 293 << 20, 64 << 10},
	{"500 MB in 1 layer", 1, 500 << 20, 256 << 10},
	{"300 MB in 30 layers", 30, 10 << 20, 64 << 10},
	{"20 000 small files", 1, 20000 * 2048, 2048},
}

// pause is what lies between two pulls, for what a server does after one.
const pause = 2 * time.Second

const poolSize = 160 << 20 // bytes of what layers are made of

// pulls measures how long a pull takes and how much of the processors, of images that the server does not have.
func (f flags) pulls(ctx context.Context, all []*endpoint, registry string) error {
	skopeo := &endpoint{name: "skopeo", took: map[string][]time.Duration{}} // no server: it is run once for each image
	for _, s := range shapes {
		ref := registry + "/bench/" + strconv.Itoa(s.layers) + "x" + strconv.Itoa(s.bytes>>20) + ":1"
		sent, err := s.push(ctx, ref)
		if err != nil {
			return fmt.Errorf("make an image of %s: %w", s.name, err)
		}
		fmt.Printf("%s: %d MB compressed\n", s.name, sent>>20)
		for round := range f.rounds {
			for i := range all {
				if err := all[(i+round)%len(all)].pullAway(ctx, s.name, ref); err != nil {
					return err
				}
			}
			if err := skopeo.copyAway(ctx, s.name, ref); err != nil {
				return err
			}
		}
	}
	if len(skopeo.took) > 0 {
		all = append(slices.Clone(all), skopeo)
	}
	return report(all)
}

// pullAway pulls an image and removes it.
func (e *endpoint) pullAway(ctx context.Context, what, ref string) error {
	spec := &runtime.ImageSpec{Image: ref}
	unix.Sync()
	<-time.After(pause)
	before, err := e.processorTime()
	if err != nil {
		return err
	}
	err = e.timed(what, func() error {
		_, err := e.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec})
		return err
	})
	if err != nil {
		return err
	}
	after, err := e.processorTime()
	if err != nil {
		return err
	}
	e.note(what+", CPU", after-before)
	_, err = e.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: spec})
	return err
}

// copyAway measures what skopeo makes of the image, if it is there, into a store of its own.
func (e *endpoint) copyAway(ctx context.Context, what, ref string) error {
	binary, err := exec.LookPath("skopeo")
	if err != nil {
		return nil
	}
	dir := filepath.Join(isolate.Scratch(), "skopeo")
	defer os.RemoveAll(dir)
	policy := filepath.Join(isolate.Scratch(), "skopeo-policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		return err
	}
	unix.Sync()
	<-time.After(pause)
	cmd := exec.CommandContext(ctx, binary, "--policy", policy, "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref,
		"containers-storage:[overlay@"+filepath.Join(dir, "root")+"+"+filepath.Join(dir, "run")+"]"+ref)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("skopeo: %w: %s", err, out)
	}
	e.note(what, time.Since(began))
	e.note(what+", CPU", cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	return nil
}

// push makes the image and stores it as ref. It returns the bytes of its layers as they are sent.
func (s shape) push(ctx context.Context, ref string) (sent int64, err error) {
	dir, err := os.MkdirTemp(isolate.Scratch(), "layers")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	text, err := real()
	if err != nil {
		return 0, err
	}
	files := make([]string, s.layers)
	var work errgroup.Group
	work.SetLimit(4)
	for i := range files {
		files[i] = filepath.Join(dir, strconv.Itoa(i)+".tar.gz")
		work.Go(func() error { return s.layer(files[i], uint64(i), text) })
	}
	if err := work.Wait(); err != nil {
		return 0, err
	}
	layers := make([]v1.Layer, len(files))
	for i, file := range files {
		if layers[i], err = tarball.LayerFromFile(file); err != nil {
			return 0, err
		}
		size, err := layers[i].Size()
		if err != nil {
			return 0, err
		}
		sent += size
	}
	return sent, pushLayers(ctx, ref, layers)
}

// pushLayers stores an image of the layers as ref.
func pushLayers(ctx context.Context, ref string, layers []v1.Layer) error {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx))
}

// layer writes a layer of files, which no other layer has.
func (s shape) layer(file string, seed uint64, text []byte) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	packed := gzip.NewWriter(f)
	w := tar.NewWriter(packed)
	random := rand.New(rand.NewPCG(seed, uint64(s.file)))
	for n := range s.bytes / s.file {
		dir := fmt.Sprintf("layer%d/dir%d", seed, n/100)
		if n%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
				return err
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("%s/file%d", dir, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(s.file)}); err != nil {
			return err
		}
		at := random.IntN(len(text) - s.file)
		if _, err := w.Write(text[at : at+s.file]); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), packed.Close())
}

// real is what layers are made of: programs and their sources, as they lie on a machine that has Go.
func real() ([]byte, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find programs to make images of: %w", err)
	}
	var all bytes.Buffer
	for _, dir := range []string{"bin", "pkg/tool", "src/cmd", "src"} {
		err := filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || all.Len() > poolSize {
				return err
			}
			content, err := os.ReadFile(path)
			all.Write(content)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all.Bytes(), nil
}
