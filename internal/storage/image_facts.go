package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	istorage "go.podman.io/image/v5/storage"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// errDamaged marks an image that will not become well by itself: a pull may throw it away and fetch it anew.
var errDamaged = errors.New("damaged")

// facts is what never changes about an image while it is stored.
type facts struct {
	config  imgspec.ImageConfig
	size    uint64
	lower   []string // directories of its layers, topmost first
	foreign string   // why they are no plain directories; empty when they are
}

func (s *Images) readFacts(ctx context.Context, img *cstorage.Image, layers map[string]*cstorage.Layer) (facts, error) {
	config, size, err := s.readConfig(ctx, img)
	if err != nil {
		return facts{}, err
	}
	f := facts{config: config, size: size}
	for id := img.TopLayer; id != ""; {
		layer, ok := layers[id]
		if !ok {
			return facts{}, fmt.Errorf("layer %s is missing: %w", id, errDamaged)
		}
		dir := filepath.Join(s.root, "overlay", id, "diff")
		why, err := inspectLayer(dir)
		if err != nil {
			return facts{}, err
		}
		if why != "" {
			f.foreign = why
		}
		f.lower = append(f.lower, dir)
		f.size += uint64(max(layer.UncompressedSize, 0))
		id = layer.Parent
	}
	return f, nil
}

// readConfig returns the image's configuration and its size in bytes.
func (s *Images) readConfig(ctx context.Context, img *cstorage.Image) (imgspec.ImageConfig, uint64, error) {
	key := digest.NewDigestFromEncoded(digest.SHA256, img.ID)
	if !slices.Contains(img.BigDataNames, key.String()) {
		return s.convertConfig(ctx, img)
	}
	data, err := s.store.ImageBigData(img.ID, key.String())
	if errors.Is(err, fs.ErrNotExist) {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("its configuration is missing: %w", errDamaged)
	}
	if err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("read configuration: %w", err)
	}
	if digest.FromBytes(data) != key {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("its configuration does not match its digest: %w", errDamaged)
	}
	var image imgspec.Image
	if err := json.Unmarshal(data, &image); err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("parse configuration: %w", err)
	}
	return image.Config, uint64(len(data)), nil
}

// convertConfig reads the configuration of an image whose id is not its digest: Docker's schema 1, or an image
// that another tool named.
func (s *Images) convertConfig(ctx context.Context, img *cstorage.Image) (_ imgspec.ImageConfig, _ uint64, err error) {
	ref, err := istorage.Transport.NewStoreReference(s.store, nil, img.ID)
	if err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("read configuration: %w", err)
	}
	image, err := ref.NewImage(ctx, s.systemContext(Auth{}))
	if err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("read configuration: %w", err)
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	config, err := image.OCIConfig(ctx)
	if err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("read configuration: %w", err)
	}
	return config.Config, uint64(max(image.ConfigInfo().Size, 1)), nil
}

// inspectLayer tells why the layer at dir cannot be a lower directory of an overlay; empty when it can.
func inspectLayer(dir string) (string, error) {
	st, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return "", fmt.Errorf("layer directory %s is missing: %w", dir, errDamaged)
	}
	if err != nil {
		return "", fmt.Errorf("inspect layer: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(dir), "composefs-data")); err == nil {
		return "layer " + dir + " is a composefs image", nil
	}
	if _, err := unix.Lgetxattr(dir, "user.containers.override_stat", nil); err == nil {
		return "layer " + dir + " was stored with force_mask", nil
	}
	return "", nil
}

// foreignLayers tells why the store at root has layers that the kernel's overlay cannot read; empty when it has not.
func foreignLayers(root string) string {
	flag, err := os.ReadFile(filepath.Join(root, "overlay", ".has-mount-program"))
	if err == nil && strings.TrimSpace(string(flag)) == "true" {
		return "the image store uses a mount program (fuse-overlayfs)"
	}
	return ""
}
