package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Layers tells of what an image is made.
type Layers interface {
	// Layers answers the directories of the image's layers, topmost first. They must stay as long as a root
	// filesystem made of them.
	Layers(ctx context.Context, imageID string) ([]string, error)
}

// RootfsConfig says where root filesystems live.
type RootfsConfig struct {
	Dir      string // what containers write; on a filesystem that can be the upper of an overlay
	MountDir string // mount points; on a filesystem that a reboot empties
	Label    string // SELinux label of images that many containers read; empty = as their layers have it

	ImageStore string // where images lie; empty = nobody compares
}

// Rootfs makes root filesystems for containers: overlays of an image's layers and a directory of their own. All
// that belongs to one is a function of its id. Methods may be called at the same time, but for one id only
// Usage beside others.
type Rootfs struct {
	cfg      RootfsConfig
	images   Layers
	mount    mounter
	trash    *trash
	problems *problems
	total    *gauge
	stop     context.CancelFunc // ends its measuring
	close    func() error
}

// The names beside those of containers in RootfsConfig.Dir; no id begins with a dot.
const (
	trashName  = ".trash"
	emptyName  = ".empty"  // the lower directory of an image without layers
	fillerName = ".filler" // the second one of an image that is mounted without an upper directory
	probeName  = ".probe"
)

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// OpenRootfs takes the directories into use: it makes MountDir a private mount, so that what is mounted below it
// reaches no other mount namespace, tries how overlays can be mounted here, and goes on deleting what an earlier
// life had removed. Unsupported: no overlay can be mounted.
func OpenRootfs(cfg RootfsConfig, images Layers) (*Rootfs, error) {
	r := &Rootfs{cfg: cfg, images: images, problems: &problems{}}
	for _, dir := range []string{cfg.Dir, cfg.MountDir, filepath.Join(cfg.Dir, trashName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open root filesystems: %w", errdef.Disk(err))
		}
		failpoint.Hit("storage/rootfs/dir-made")
	}
	// The root of a user namespace is nobody here, and runtimes go through MountDir as it, to a door of its own.
	if err := openTo(cfg.MountDir, 0o711); err != nil {
		return nil, fmt.Errorf("open root filesystems: %w", errdef.Disk(err))
	}
	failpoint.Hit("storage/rootfs/opened-to-users")
	if err := makeEmpty(filepath.Join(cfg.Dir, emptyName)); err != nil {
		return nil, fmt.Errorf("open root filesystems: %w", errdef.Disk(err))
	}
	if err := makePrivate(cfg.MountDir); err != nil {
		return nil, fmt.Errorf("open root filesystems: %w", err)
	}
	if err := r.chooseMounter(); err != nil {
		return nil, fmt.Errorf("open root filesystems: %w", err)
	}
	if err := r.unmapAll(); err != nil {
		return nil, fmt.Errorf("open root filesystems: %w", err)
	}
	r.trash = openTrash(filepath.Join(cfg.Dir, trashName), r.problems)
	r.total = newGauge(r.measureAll)
	var measuring context.Context
	measuring, r.stop = context.WithCancel(context.Background())
	r.total.kick()
	go r.total.run(measuring, func(error) {}) // ended by shut; Total tells the error
	r.close = sync.OnceValue(r.shut)
	return r, nil
}

// Close ends the deletion of what was removed, which the next OpenRootfs takes up again. Mounted root filesystems
// stay. It may be repeated.
func (r *Rootfs) Close() error { return r.close() }

func (r *Rootfs) shut() error {
	r.stop()
	r.trash.close()
	err := unix.Unmount(r.cfg.MountDir, unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		return nil // busy: containers go on; not mounted: somebody else cleaned up
	}
	return fmt.Errorf("unmount %s: %w", r.cfg.MountDir, err)
}

// Warnings tells an operator what cannot be deleted, and why.
func (r *Rootfs) Warnings() []string { return r.problems.list() }

// place is where one root filesystem lives.
type place struct {
	dir     string // all that it takes on disk
	upper   string // what its container wrote
	work    string // overlay's own
	volumes string // copies of the image's content for its volumes
	door    string // lets nobody of the host to what is mounted below but its owner's root: an image has setuid programs
	target  string // where it is mounted
	mapped  string // what is mounted with mapped ids while its container is made
}

func (r *Rootfs) place(id string) (place, error) {
	if !idForm.MatchString(id) {
		return place{}, fmt.Errorf("root filesystem id %q: %w", id, errdef.Invalid)
	}
	return r.at(id), nil
}

func (r *Rootfs) at(name string) place {
	dir, door := filepath.Join(r.cfg.Dir, name), filepath.Join(r.cfg.MountDir, name)
	return place{
		dir:     dir,
		upper:   filepath.Join(dir, "upper"),
		work:    filepath.Join(dir, "work"),
		volumes: filepath.Join(dir, "volumes"),
		door:    door,
		target:  filepath.Join(door, "root"),
		mapped:  filepath.Join(door, "mapped"),
	}
}

// open makes the door, for owner.
func (p place) open(owner Owner) error {
	if err := os.Mkdir(p.door, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	failpoint.Hit("storage/door/made")
	err := os.Lchown(p.door, owner.UID, owner.GID)
	failpoint.Hit("storage/door/given")
	return err
}

// unmount unmounts the root filesystem, unmap what has mapped ids; the last of them takes away the door. Both may be
// repeated.
func (p place) unmount() error { return errors.Join(unmount(p.target), p.shut()) }
func (p place) unmap() error   { return errors.Join(unmap(p.mapped), p.shut()) }

func (p place) shut() error {
	err := os.Remove(p.door)
	failpoint.Hit("storage/door/removed")
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return ignoreAbsent(err)
}

// Mount makes the root filesystem id from the image, with the ids of owner, and mounts it; the answer is where.
// Repeated, it finds the live mount, or mounts what is there again. After an error of a first Mount nothing is left.
func (r *Rootfs) Mount(ctx context.Context, id, imageID string, owner Owner) (string, error) {
	p, err := r.place(id)
	if err != nil {
		return "", err
	}
	live, err := isMountPoint(p.target)
	if err != nil {
		return "", fmt.Errorf("mount root filesystem %s: %w", id, err)
	}
	if live {
		return p.target, nil
	}
	lower, err := r.images.Layers(ctx, imageID)
	if err != nil {
		return "", fmt.Errorf("mount root filesystem %s: %w", id, err)
	}
	if len(lower) == 0 {
		lower = []string{filepath.Join(r.cfg.Dir, emptyName)}
	}
	if err := r.mountAt(p, lower, owner); err != nil {
		return "", fmt.Errorf("mount root filesystem %s of image %s: %w", id, imageID, err)
	}
	return p.target, nil
}

// mountAt makes p and mounts it, all or, where p did not exist before, nothing.
func (r *Rootfs) mountAt(p place, lower []string, owner Owner) error {
	err := os.Mkdir(p.dir, 0o700)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	failpoint.Hit("storage/rootfs/made")
	if err == nil {
		err = r.build(p, lower, owner)
	}
	if err != nil {
		undo := errors.Join(ignoreAbsent(os.Remove(p.target)), p.shut())
		if made {
			undo = errors.Join(undo, os.RemoveAll(p.dir))
		}
		return errors.Join(errdef.Disk(err), undo)
	}
	return nil
}

func (r *Rootfs) build(p place, lower []string, owner Owner) error {
	// A volatile overlay leaves a mark in its work directory and refuses to be mounted again. Nothing is mounted
	// here, so nothing uses the mark.
	if err := os.RemoveAll(p.work); err != nil {
		return err
	}
	failpoint.Hit("storage/rootfs/work-cleared")
	if err := p.open(owner); err != nil {
		return err
	}
	for _, dir := range []string{p.upper, p.work, p.target} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		failpoint.Hit("storage/rootfs/furnished")
	}
	if owner.UserNS == "" {
		return r.mountOverlay(p, lower, owner.Label)
	}
	// The overlay keeps copies of these mounts, so that they need not stay.
	mapped, err := mapLayers(p, lower, owner)
	if err == nil {
		err = r.mountOverlay(p, mapped, owner.Label)
	}
	return errors.Join(err, p.unmap())
}

func (r *Rootfs) mountOverlay(p place, lower []string, label string) error {
	if err := copyAttributes(lower[0], p.upper); err != nil {
		return err
	}
	failpoint.Hit("storage/rootfs/attributed")
	err := r.mount(overlay{lower: lower, upper: p.upper, work: p.work, target: p.target, label: label})
	failpoint.Hit("storage/rootfs/mounted")
	return err
}

// Unmount unmounts the root filesystem id and keeps what it holds. It may be repeated; one that is not mounted, or
// does not exist, is unmounted.
func (r *Rootfs) Unmount(id string) error {
	p, err := r.place(id)
	if err != nil {
		return err
	}
	if err := p.unmount(); err != nil {
		return fmt.Errorf("unmount root filesystem %s: %w", id, err)
	}
	return nil
}

// Remove unmounts the root filesystem id and puts what it held into the trash, which is emptied in the
// background. It may be repeated; one that does not exist is removed.
func (r *Rootfs) Remove(_ context.Context, id string) error {
	p, err := r.place(id)
	if err != nil {
		return err
	}
	if err := errors.Join(p.unmap(), p.unmount()); err != nil {
		return fmt.Errorf("remove root filesystem %s: %w", id, err)
	}
	if err := r.trash.put(p.dir); err != nil {
		return fmt.Errorf("remove root filesystem %s: %w", id, errdef.Disk(err))
	}
	return nil
}

// List answers the ids of all root filesystems, mounted or not, whole or not.
func (r *Rootfs) List() ([]string, error) {
	ids := map[string]bool{}
	for _, dir := range []string{r.cfg.Dir, r.cfg.MountDir} {
		names, err := entryNames(dir)
		if err != nil {
			return nil, fmt.Errorf("list root filesystems: %w", err)
		}
		for _, name := range names {
			if idForm.MatchString(name) {
				ids[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
