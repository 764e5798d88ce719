package storage

import (
	"encoding/base64"
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
	"go.podman.io/image/v5/manifest"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// errDamaged marks what will not become well by itself, but by a pull.
var errDamaged = errors.New("damaged")

// facts is what never changes about an image while it is stored.
type facts struct {
	config  imgspec.ImageConfig
	outline outline // of its manifest for this platform; empty when there is none, as another tool may have it
	size    uint64
	lower   []string // directories of its layers, topmost first
	foreign string   // why they are no plain directories; empty when they are
	shelf   string   // the additional store that all this was read from; empty = crid's own
}

func (s *Images) readFacts(from library, img *cstorage.Image, layers map[string]*cstorage.Layer) (facts, error) {
	f, err := readData(from, img)
	if err != nil {
		return facts{}, err
	}
	for id := img.TopLayer; id != ""; {
		layer, ok := layers[id]
		if !ok {
			return facts{}, fmt.Errorf("layer %s is missing: %w", id, errDamaged)
		}
		dir := from.layerDir(id)
		why, err := inspectLayer(dir)
		if err == nil && len(f.lower) == maxLayers {
			err = fmt.Errorf("more than %d layers: %w", maxLayers, errDamaged) // or a ring of them
		}
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

// readData reads the image's manifest and configuration.
func readData(from library, img *cstorage.Image) (f facts, err error) {
	if f.outline, err = checkManifests(from, img); err != nil {
		return facts{}, err
	}
	if f.outline.isArtifact() {
		f.size = uint64(max(f.outline.Config.Size, 1))
		return f, nil
	}
	f.config, f.size, err = readConfig(from, img, f.outline.Config.Digest)
	return f, err
}

// data reads a piece of data that crid's own store has of an image.
func (s *Images) data(imageID, key string) ([]byte, error) { return s.store.ImageBigData(imageID, key) }

// layerDir is where the store has a layer's files.
func (s *Images) layerDir(id string) string { return filepath.Join(s.root, "overlay", id, "diff") }

// recipePath is the file from which, with the layer's files, the store can put the layer's archive together again.
func (s *Images) recipePath(id string) string {
	return filepath.Join(s.root, "overlay-layers", id+".tar-split.gz")
}

// checkManifests compares the image's manifests with their digests: other tools need them, and a pull of an image that
// is stored does not fetch them again. It answers what the one for this platform says.
func checkManifests(from library, img *cstorage.Image) (m outline, err error) {
	for _, key := range img.BigDataNames {
		if !strings.HasPrefix(key, cstorage.ImageDigestManifestBigDataNamePrefix) {
			continue
		}
		data, err := from.data(img.ID, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return outline{}, fmt.Errorf("read %s: %w", key, err)
		}
		if got, parseErr := manifest.Digest(data); err != nil || parseErr != nil || got != img.BigDataDigests[key] {
			return outline{}, fmt.Errorf("its %s is missing or does not match its digest: %w", key, errDamaged)
		}
		if key == cstorage.ImageDigestBigDataKey {
			m = parseOutline(data)
		}
	}
	return m, nil
}

// readConfig returns the image's configuration and its size in bytes. Its id is the configuration's digest, unless another
// tool has named the image: then the manifest says which it is.
func readConfig(from library, img *cstorage.Image, named digest.Digest) (imgspec.ImageConfig, uint64, error) {
	key := digest.NewDigestFromEncoded(digest.SHA256, img.ID)
	if !slices.Contains(img.BigDataNames, key.String()) {
		key = named
	}
	if key == "" {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("it has no configuration, as those of Docker's schema 1 have none: %w", errDamaged)
	}
	data, err := from.data(img.ID, key.String())
	if errors.Is(err, fs.ErrNotExist) {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("its configuration is missing: %w", errDamaged)
	}
	if err != nil {
		return imgspec.ImageConfig{}, 0, fmt.Errorf("read configuration: %w", err)
	}
	config, err := parseConfig(data, key)
	return config, uint64(len(data)), err
}

// parseConfig reads what an image says of its containers, and nothing else of its configuration.
func parseConfig(data []byte, key digest.Digest) (imgspec.ImageConfig, error) {
	if digest.FromBytes(data) != key {
		return imgspec.ImageConfig{}, fmt.Errorf("its configuration does not match its digest: %w", errDamaged)
	}
	var image struct{ Config imgspec.ImageConfig }
	if err := json.Unmarshal(data, &image); err != nil {
		return imgspec.ImageConfig{}, fmt.Errorf("parse configuration: %w", err)
	}
	return image.Config, nil
}

// checkLayer tells whether the layer at dir is there, without looking into it. Beside it lies the short name by which
// the store mounts it; without that no layer could be stored on top of it.
func checkLayer(dir string) error {
	st, err := os.Lstat(dir)
	if err == nil && st.Mode()&fs.ModeSymlink != 0 { // of an additional layer store
		st, err = os.Stat(dir)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return fmt.Errorf("layer directory %s is missing: %w", dir, errDamaged)
	}
	if err != nil {
		return fmt.Errorf("inspect layer: %w", err)
	}
	link := filepath.Join(filepath.Dir(dir), "link")
	st, err = os.Lstat(link)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		return fmt.Errorf("layer file %s is missing or empty: %w", link, errDamaged)
	}
	if err != nil {
		return fmt.Errorf("inspect layer: %w", err)
	}
	return nil
}

// checkUsable looks whether the image's layers are still there. An image that lost one is no longer offered.
func (s *Images) checkUsable(e *entry) error {
	for _, dir := range e.lower {
		err := checkLayer(dir)
		if err == nil {
			continue
		}
		if errors.Is(err, errDamaged) {
			err = errors.Join(err, s.reexamine())
		}
		return fmt.Errorf("image %s cannot be used, pull it again: %w: %w", e.image.ID, err, errdef.Unavailable)
	}
	return nil
}

// inspectLayer tells why the layer at dir cannot be a lower directory of an overlay; empty when it can.
func inspectLayer(dir string) (string, error) {
	if err := checkLayer(dir); err != nil {
		return "", err
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

// bigDataName is the name of the file in which the store has an image's piece of data.
func bigDataName(key string) string {
	if strings.Trim(key, ".0123456789abcdefghijklmnopqrstuvwxyz") == "" {
		return key
	}
	return "=" + base64.StdEncoding.EncodeToString([]byte(key))
}
