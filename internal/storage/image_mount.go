package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// ImageMounts mounts images to be read as volumes: each image once, whoever uses it. A mount is a function of the
// image's id and outlives crid. All methods may be called at once, and repeated.
//
// What is mounted is always an overlay without an upper directory: a bind mount of a layer could be made writable
// again by a container that may mount.
type ImageMounts struct {
	dir    string   // a mount point for each image, named by its id
	empty  []string // lower directories that make up for layers: the kernel asks for two
	images Layers
	mount  mounter
	label  string

	mu    sync.Mutex // guards turns; nothing is waited for under it
	turns map[string]*turn
}

// turn is who may mount or unmount one image.
type turn struct {
	taken  chan struct{} // holds one while somebody does
	wanted int           // how many do or wait to
}

// imagesName is the directory of mounted images beside the root filesystems; no id begins with a dot.
const imagesName = ".images"

// OpenImageMounts puts mounted images below the private mount of the root filesystems. It finds those of an
// earlier life.
func OpenImageMounts(r *Rootfs) (*ImageMounts, error) {
	m := &ImageMounts{
		dir:    filepath.Join(r.cfg.MountDir, imagesName),
		empty:  r.fillers(),
		images: r.images,
		mount:  r.mount,
		label:  r.cfg.Label,
		turns:  map[string]*turn{},
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open image mounts: %w", errdef.Disk(err))
	}
	failpoint.Hit("storage/image-mount/opened")
	for _, dir := range m.empty {
		if err := makeEmpty(dir); err != nil {
			return nil, fmt.Errorf("open image mounts: %w", errdef.Disk(err))
		}
	}
	return m, nil
}

// fillers are the directories that make up for layers.
func (r *Rootfs) fillers() []string {
	return []string{filepath.Join(r.cfg.Dir, emptyName), filepath.Join(r.cfg.Dir, fillerName)}
}

// Mount mounts the image, unless it is mounted already, and answers the directory with its content. NotFound when
// the image is not stored. The caller keeps the image from being removed, and is among those who use it as
// Unmount is told.
func (m *ImageMounts) Mount(ctx context.Context, imageID string) (string, error) {
	target, leave, err := m.enter(ctx, imageID)
	if err != nil {
		return "", fmt.Errorf("mount image %s: %w", imageID, err)
	}
	defer leave()
	live, err := isMountPoint(target)
	if err != nil {
		return "", fmt.Errorf("mount image %s: %w", imageID, err)
	}
	if live {
		return target, nil
	}
	lower, err := m.images.Layers(ctx, imageID)
	if err != nil {
		return "", fmt.Errorf("mount image: %w", err)
	}
	if missing := 2 - len(lower); missing > 0 {
		lower = append(lower, m.empty[:missing]...)
	}
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("mount image %s: %w", imageID, errdef.Disk(err))
	}
	failpoint.Hit("storage/image-mount/made")
	if err := m.mount(overlay{lower: lower, target: target, label: m.label}); err != nil {
		return "", errors.Join(fmt.Errorf("mount image %s: %w", imageID, err), ignoreAbsent(os.Remove(target)))
	}
	failpoint.Hit("storage/image-mount/mounted")
	return target, nil
}

// Unmount unmounts the image unless used says that somebody uses it; used is asked while no Mount of the image is
// under way. One that is not mounted is fine. Containers that have it mounted keep what they have.
func (m *ImageMounts) Unmount(ctx context.Context, imageID string, used func() bool) error {
	target, leave, err := m.enter(ctx, imageID)
	if err != nil {
		return fmt.Errorf("unmount image %s: %w", imageID, err)
	}
	defer leave()
	if used() {
		return nil
	}
	if err := unmount(target); err != nil {
		return fmt.Errorf("unmount image %s: %w", imageID, err)
	}
	return nil
}

// List answers the ids of the images that are mounted, or were about to be.
func (m *ImageMounts) List() ([]string, error) {
	names, err := entryNames(m.dir)
	if err != nil {
		return nil, fmt.Errorf("list mounted images: %w", err)
	}
	return names, nil
}

// enter waits for the caller's turn at an image, which lasts until leave is called.
func (m *ImageMounts) enter(ctx context.Context, imageID string) (target string, leave func(), err error) {
	if !idForm.MatchString(imageID) {
		return "", nil, fmt.Errorf("image id %q: %w", imageID, errdef.Invalid)
	}
	m.mu.Lock()
	t := m.turns[imageID]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		m.turns[imageID] = t
	}
	t.wanted++
	m.mu.Unlock()
	select {
	case t.taken <- struct{}{}:
		return filepath.Join(m.dir, imageID), func() { <-t.taken; m.forget(imageID, t) }, nil
	case <-ctx.Done():
		m.forget(imageID, t)
		return "", nil, context.Cause(ctx)
	}
}

func (m *ImageMounts) forget(imageID string, t *turn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.wanted--; t.wanted == 0 {
		delete(m.turns, imageID)
	}
}

// Below answers the path, without symbolic links, of a directory or regular file of the tree at root. Links of the
// tree are followed inside it only, as in a container. The tree must not change. NotFound when there is nothing.
// Invalid when it is something else.
func Below(root, name string) (string, error) {
	at, err := pathrs.OpenInRoot(root, "/"+name)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return "", fmt.Errorf("%s: %w: %w", name, err, errdef.Invalid)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, absentKind(err))
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is neither a directory nor a regular file: %w", name, errdef.Invalid)
	}
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
}
