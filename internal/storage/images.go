package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cstorage "go.podman.io/storage"
	"go.podman.io/storage/types"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

const (
	leaseIdle  = time.Hour       // an unused image keeps its lease, and a layer without an image its place, for so long
	closeGrace = 5 * time.Second // what Close gives a pull that is unpacking a layer
)

// ImagesConfig says where images are kept and which files of the host rule pulls.
type ImagesConfig struct {
	Root    string   // crid's root
	Store   string   // the store; empty = Root/storage
	Shelves []string // further stores, whose images are used and never changed

	LayerStores []string // directories with layers that are fetched when they are read, with :ref when by the image's name
	RunRoot     string   // crid's runroot; the store's volatile half is RunRoot/storage
	Sources
	Trust
	Pinned []string   // names of images that the kubelet must not collect, as a pull reads them; * = any characters
	BootID string     // tells a reboot from a restart of crid
	Steps  step.Watch // told of downloads; nil = nobody
	Pulls  PullLimits
}

// Sources are the files of the host that say where images come from, and by whose credentials. An empty path of a file
// means the system's own under /etc/containers (or the distribution's under /usr/share/containers), which may be absent;
// a path that is given must exist. Directories may be absent.
type Sources struct {
	RegistriesConf    string
	RegistriesConfDir string   // empty = /etc/containers/registries.conf.d
	CertsD            []string // with hosts.toml of registries; the first that knows one counts
	AuthFile          string   // may be absent
	NamespacedAuthDir string   // with credentials for one pull each; empty = none
}

// Trust are the files of the host that say whose images are taken, and the keys to read them. What Sources says of paths
// is true of them.
type Trust struct {
	PolicyPath     string
	PolicyDir      string // with policies of single namespaces; empty = none
	RegistriesD    string // says where signatures are; empty = /etc/containers/registries.d
	DecryptionKeys string // a directory of private keys; empty = none
}

// PullLimits is what all pulls together may take. A zero is no limit, or a default where there must be one.
type PullLimits struct {
	Patience  time.Duration // without a byte from the registry, after which a pull fails
	Layers    int           // fetched and unpacked at a time
	Bandwidth int64         // bytes per second
}

// Images is the store of images. All methods may be called at once; those that only read answer from memory.
type Images struct {
	cfg     ImagesConfig
	root    string // of the store, symbolic links resolved
	store   cstorage.Store
	foreign string // why the store's layers are no plain directories; empty when they are

	index    atomic.Pointer[index]
	catalog  catalog
	pulls    pulls
	gates    gates
	leases   leases
	disk     disk
	problems problems
	repair   repair
	users    atomic.Pointer[func(imageID string) []string]

	life  life
	close func() error // shutdown, once
}

// life is what goes on behind the store.
type life struct {
	opened time.Time
	work   sync.WaitGroup     // what runs in the background, besides pulls
	stop   context.CancelFunc // ends it
}

// OpenImages opens the store, making it when there is none, and reads what it holds. An image
// that cannot be used is left out and named in Warnings; it never fails the start.
func OpenImages(cfg ImagesConfig) (*Images, error) {
	return openImages(cfg, leaseIdle)
}

func openImages(cfg ImagesConfig, idle time.Duration) (*Images, error) {
	root := orElse(cfg.Store, filepath.Join(cfg.Root, "storage"))
	if err := cfg.checkPlace(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	failpoint.Hit("storage/open/made")
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, fmt.Errorf("resolve image store: %w", err)
	}
	if err := cfg.claimPlace(); err != nil {
		return nil, err
	}
	s := &Images{cfg: cfg, root: root, foreign: foreignLayers(root)}
	if err := s.setAsideLists(); err != nil {
		return nil, err
	}
	if s.store, err = openStore(cfg, root); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	s.close = sync.OnceValue(s.shutdown)
	s.leases.idle = idle
	s.pulls.init(cfg.Pulls)
	s.initDisk()
	for _, dir := range cfg.Shelves {
		s.catalog.shelves = append(s.catalog.shelves, &shelf{root: dir})
	}
	s.disk.spares = spares(root, filepath.Join(cfg.RunRoot, "storage"))
	ctx, stop := context.WithCancel(context.Background()) // the store's own life, no request's
	s.life.opened, s.life.stop = time.Now(), stop
	s.openRepair()
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Dir is where the store lies, with no symbolic link on the way.
func (s *Images) Dir() string { return s.root }

// openStores guards the list of open stores that containers/storage keeps: its Free does not. Nothing else is waited for under it.
var openStores sync.Mutex

func freeStore(s cstorage.Store) {
	openStores.Lock()
	defer openStores.Unlock()
	s.Free()
}

// openStore opens what is closed by freeStore.
func openStore(cfg ImagesConfig, root string) (cstorage.Store, error) {
	openStores.Lock()
	defer openStores.Unlock()
	return cstorage.GetStore(types.StoreOptions{
		GraphRoot:       root,
		RunRoot:         filepath.Join(cfg.RunRoot, "storage"),
		GraphDriverName: "overlay",
		GraphDriverOptions: append([]string{
			"overlay.skip_mount_home=true", // crid never mounts by the store: its directory needs no mount of its own
			"overlay.sync=filesystem",      // a layer is on the disk before the list of layers calls it complete
		}, cfg.layerStoreOptions()...),
	})
}

// load reads the store and starts what goes on behind it.
func (s *Images) load(ctx context.Context) error {
	if err := s.clearScratch(); err != nil {
		return err
	}
	if err := s.clearHosts(); err != nil {
		return err
	}
	s.problems.set("credentials", s.restoreAuth())
	due, err := s.markOpen()
	if err != nil {
		return err
	}
	if err := s.setAsideStrays(); err != nil {
		return err
	}
	s.keepSpares()
	s.warnOfLayerStores()
	_ = s.reloadRegistries() // Warnings has the error; lookups find the names read
	if err := s.refresh(); err != nil {
		return err
	}
	if err := s.loadLeases(); err != nil {
		return err
	}
	watch, err := s.openWatch()
	if err != nil {
		return err
	}
	// Each of them ends with ctx, that is by s.life.stop.
	s.life.work.Go(func() { s.watch(ctx, watch) })
	if len(s.cfg.Shelves)+len(s.cfg.LayerStores) > 0 {
		s.life.work.Go(func() { s.problems.set("mounts", s.watchMounts(ctx, watch)) })
	}
	s.life.work.Go(func() { s.disk.run(ctx, func(err error) { s.problems.set("usage", err) }) })
	s.life.work.Go(func() { s.collect(ctx) })
	if due {
		s.life.work.Go(func() { s.verifyAll(ctx) })
	}
	return nil
}

// Close ends the pulls that are under way and lets go of the store. It may be repeated.
func (s *Images) Close() error { return s.close() }

func (s *Images) shutdown() error {
	s.life.stop()
	s.pulls.stop()
	s.leases.stop()
	done := make(chan struct{})
	go func() { // ends when the background work does, all of which was told to
		s.pulls.wait()
		s.life.work.Wait()
		s.repair.trash.close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeGrace):
		return fmt.Errorf("close image store %s: a layer is still being unpacked: %w", s.root, context.DeadlineExceeded)
	}
	if err := s.letGo(); err != nil {
		return err
	}
	return s.markClosed()
}

// letGo ends the use of the store itself.
func (s *Images) letGo() error {
	defer freeStore(s.store)
	// On a full disk the store cannot note that it has changed nothing.
	if _, err := s.store.Shutdown(false); err != nil && !errors.Is(errdef.Disk(err), errdef.Exhausted) {
		return fmt.Errorf("close image store %s: %w", s.root, err)
	}
	return nil
}

// SetUsers names the function that tells the ids of the containers using an image, exited ones included. Remove
// asks it while it keeps Hold out. Until it is set, nothing uses an image.
func (s *Images) SetUsers(users func(imageID string) []string) {
	s.users.Store(&users)
}

func (s *Images) usersOf(imageID string) []string {
	users := s.users.Load()
	if users == nil {
		return nil
	}
	return (*users)(imageID)
}

// List returns all images, ordered by id.
func (s *Images) List(context.Context) ([]Image, error) {
	return slices.Clone(s.index.Load().images), nil
}

// Resolve finds the stored image that ref means: a name with tag or digest (a short name as Pull reads it), an
// id, sha256:id, or the beginning of one id. It returns NotFound for an image that is not stored, and Invalid
// for an empty reference or the beginning of several ids.
func (s *Images) Resolve(_ context.Context, ref string) (Image, error) {
	e, err := s.lookup(ref)
	if err != nil {
		return Image{}, err
	}
	return e.image, nil
}

// Layers returns the directories of the image's layers, topmost first, for use as overlay lower directories. It
// takes a lease on the image, so that other tools on the same store leave it alone. NotFound when the image is
// not stored, Unsupported when a layer is no plain directory, Unavailable when it has become damaged.
func (s *Images) Layers(_ context.Context, imageID string) ([]string, error) {
	e, ok := s.index.Load().byID[imageID]
	if !ok {
		return nil, fmt.Errorf("image %s: %w", imageID, errdef.NotFound)
	}
	if s.foreign != "" {
		return nil, fmt.Errorf("image %s: %s: %w", imageID, s.foreign, errdef.Unsupported)
	}
	if e.foreign != "" {
		return nil, fmt.Errorf("image %s: %s: %w", imageID, e.foreign, errdef.Unsupported)
	}
	if err := s.checkUsable(e); err != nil {
		return nil, err
	}
	if e.shelf == "" { // who else uses a shelf is nobody's to say
		s.takeLease(imageID)
	}
	lower := make([]string, len(e.lower))
	for i, dir := range e.lower {
		lower[i] = resolved(dir)
	}
	return lower, nil
}

// Warnings tells an operator what is not as it should be: no signature policy, damaged images, a store that
// cannot be read.
func (s *Images) Warnings() []string {
	var out []string
	if s.policyPath() == "" {
		out = append(out, "no policy.json in /etc/containers or /usr/share/containers: images are accepted unsigned from everywhere")
	}
	out = append(out, s.problems.list()...)
	damaged := s.index.Load().damaged
	for _, id := range slices.Sorted(maps.Keys(damaged)) {
		if users := s.usersOf(id); len(users) > 0 {
			out = append(out, fmt.Sprintf("containers %s were made from the damaged image %s and go on with what they have of it: restart them when it is pulled again",
				strings.Join(users, ", "), id))
		}
	}
	return out
}
