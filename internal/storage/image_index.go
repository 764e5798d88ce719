package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"go.podman.io/image/v5/docker/reference"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// index is one immutable picture of the store: whoever reads it needs no lock and no disk.
type index struct {
	images  []Image // ordered by id
	byID    map[string]*entry
	byName  map[string]string // every name that means an image, to its id
	damaged map[string]error  // ids of images that are stored but cannot be used, and why
}

type entry struct {
	image Image
	facts
}

// catalog is what makes the index.
type catalog struct {
	mu      sync.Mutex       // one writer of Images.index at a time; held while the store is read
	known   map[string]facts // of the images in the index, by their shelf and id
	seen    fileMark         // of the store's list of images, before it was last read
	shelves []*shelf         // in the order of the configuration
}

// fileMark tells two versions of a file apart that is replaced by rename.
type fileMark struct {
	inode uint64
	mtime syscall.Timespec
}

func markOf(path string) fileMark {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return fileMark{} // absent as long as there are no images
	}
	return fileMark{inode: st.Ino, mtime: st.Mtim}
}

func (s *Images) listDir() string { return filepath.Join(s.root, "overlay-images") }

// listMark is that of the store's list of images.
func (s *Images) listMark() fileMark { return markOf(filepath.Join(s.listDir(), "images.json")) }

// refresh reads the store's images and publishes them. What does not change about an image is read once.
func (s *Images) refresh() error {
	s.catalog.mu.Lock()
	defer s.catalog.mu.Unlock()
	return s.refreshLocked()
}

// reexamine reads again what is otherwise read once about an image.
func (s *Images) reexamine() error {
	s.catalog.mu.Lock()
	defer s.catalog.mu.Unlock()
	s.catalog.known = nil
	return s.refreshLocked()
}

// refreshLocked is refresh for who holds catalog.mu.
func (s *Images) refreshLocked() error {
	mark := s.listMark() // before the list is read: what changes meanwhile is read once more
	stored, err := s.store.Images()
	if err != nil {
		return fmt.Errorf("read image store: %w", err)
	}
	next, err := s.readIndex(stored)
	if err != nil {
		return err
	}
	known := make(map[string]facts, len(next.byID))
	for id, e := range next.byID {
		known[e.shelf+id] = e.facts
	}
	s.catalog.known, s.catalog.seen = known, mark
	s.reportDamage(s.index.Swap(next), next)
	s.disk.kick()
	return nil
}

func (s *Images) readIndex(stored []cstorage.Image) (*index, error) {
	next := &index{byID: make(map[string]*entry, len(stored)), byName: make(map[string]string), damaged: make(map[string]error)}
	var layers map[string]*cstorage.Layer // read at the first image that is new
	pinned := s.pins()
	slices.SortFunc(stored, func(a, b cstorage.Image) int { return strings.Compare(a.ID, b.ID) })
	for i := range stored {
		img := &stored[i]
		f, ok := s.catalog.known[img.ID]
		if !ok {
			var err error
			if layers == nil {
				if layers, err = s.layerMap(); err != nil {
					return nil, err
				}
			}
			if f, err = s.readFacts(s, img, layers); err != nil {
				next.damaged[img.ID] = err
				continue
			}
		}
		next.add(img, f, pinned)
	}
	next.addAliases(stored)
	s.addShelves(next, pinned)
	return next, nil
}

func (s *Images) layerMap() (map[string]*cstorage.Layer, error) {
	all, err := s.store.Layers()
	if err != nil {
		return nil, fmt.Errorf("read layers of the image store: %w", err)
	}
	return layersByID(all), nil
}

func layersByID(all []cstorage.Layer) map[string]*cstorage.Layer {
	layers := make(map[string]*cstorage.Layer, len(all))
	for i := range all {
		layers[all[i].ID] = &all[i]
	}
	return layers
}

func (x *index) add(img *cstorage.Image, f facts, pinned pins) {
	tags, digests := references(img)
	e := f.entry(img.ID, tags, digests)
	e.image.Pinned = pinned.have(&e.image)
	x.byID[img.ID] = e
	x.images = append(x.images, e.image)
	for _, name := range slices.Concat(tags, digests) {
		x.byName[name] = img.ID
	}
}

func (f facts) entry(id string, tags, digests []string) *entry {
	return &entry{facts: f, image: Image{
		ID: id, RepoTags: tags, RepoDigests: digests,
		Size: f.size, Config: f.config, Labels: f.config.Labels,
		Annotations: f.outline.Annotations, ArtifactType: f.outline.artifactKind(), Store: f.shelf,
	}}
}

// addShelved adds an image of a shelf, or its names to the same image that is there already. Names that are taken stay
// with whom they are. What is on a shelf counts as pinned: nobody can remove it.
func (x *index) addShelved(img *cstorage.Image, f facts, pinned pins) {
	tags, digests := references(img)
	free := func(name string) bool { return x.byName[name] == "" || x.byName[name] == img.ID }
	tags, digests = slices.DeleteFunc(tags, not(free)), slices.DeleteFunc(digests, not(free))
	at, there := slices.BinarySearchFunc(x.images, img.ID, func(i Image, id string) int { return strings.Compare(i.ID, id) })
	e := f.entry(img.ID, tags, digests)
	e.image.Pinned = true
	if there {
		before := x.byID[img.ID]
		e = before.facts.entry(img.ID, sortedSet(slices.Concat(before.image.RepoTags, tags)), sortedSet(slices.Concat(before.image.RepoDigests, digests)))
		e.image.Pinned = e.shelf != "" || pinned.have(&e.image)
		x.images[at] = e.image
	} else {
		x.images = slices.Insert(x.images, at, e.image)
	}
	x.byID[img.ID] = e
	for _, name := range slices.Concat(tags, digests) {
		x.byName[name] = img.ID
	}
}

func not(holds func(string) bool) func(string) bool {
	return func(s string) bool { return !holds(s) }
}

// addAliases lets an image also be found by the digests of its other manifests: a pod may name the manifest of
// one platform where the list of all was pulled. Names that were pulled go first.
func (x *index) addAliases(stored []cstorage.Image) {
	for i := range stored {
		e, ok := x.byID[stored[i].ID]
		if !ok {
			continue
		}
		for _, repo := range repositories(&e.image) {
			for _, d := range stored[i].Digests {
				name := repo + "@" + d.String()
				if _, taken := x.byName[name]; !taken {
					x.byName[name] = e.image.ID
				}
			}
		}
	}
}

// stored is the id of the image that was pulled so before; empty when there is none, or it lies on a shelf and lacks
// the other name, which cannot be added there.
func (x *index) stored(pulled, name reference.Named) string {
	id := x.byName[pulled.String()]
	if e := x.byID[id]; e != nil && e.shelf != "" && x.byName[name.String()] != id {
		return ""
	}
	return id
}

// byPrefix finds the image whose id begins with prefix.
func (x *index) byPrefix(prefix string) (*entry, error) {
	i, _ := slices.BinarySearchFunc(x.images, prefix, func(img Image, p string) int { return strings.Compare(img.ID, p) })
	if i == len(x.images) || !strings.HasPrefix(x.images[i].ID, prefix) {
		return nil, fmt.Errorf("image %s: %w", prefix, errdef.NotFound)
	}
	if i+1 < len(x.images) && strings.HasPrefix(x.images[i+1].ID, prefix) {
		return nil, fmt.Errorf("image %s: several ids begin so, give more of it: %w", prefix, errdef.Invalid)
	}
	return x.byID[x.images[i].ID], nil
}

func (s *Images) lookup(ref string) (*entry, error) {
	if ref == "" {
		return nil, fmt.Errorf("image: the reference is empty: %w", errdef.Invalid)
	}
	x := s.index.Load()
	id := strings.TrimPrefix(ref, "sha256:")
	if e, ok := x.byID[id]; ok {
		return e, nil
	}
	names, err := s.names(ref)
	if err != nil && !errors.Is(err, errdef.Invalid) {
		return nil, err
	}
	for _, name := range names {
		if e, ok := x.byID[x.byName[name.String()]]; ok {
			return e, nil
		}
	}
	if isHex(id) {
		return x.byPrefix(id)
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdef.NotFound)
}

// reportDamage tells of images that were left out, and no longer of those that are well or gone.
func (s *Images) reportDamage(before, now *index) {
	var text error
	for _, id := range slices.Sorted(maps.Keys(now.damaged)) {
		err := fmt.Errorf("image %s is not used, pull it again: %w", id, now.damaged[id])
		text = errors.Join(text, err)
		if before != nil && before.damaged[id] == nil { // cmd/crid logs what the start finds
			slog.Warn(err.Error())
		}
	}
	s.problems.set("damaged images", text)
}

// openWatch asks the kernel to tell when the store's list of images changes: by another tool, since crid
// publishes its own changes itself.
func (s *Images) openWatch() (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch image store: %w", err)
	}
	if err := os.MkdirAll(s.listDir(), 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("watch image store: %w", err), w.Close())
	}
	failpoint.Hit("storage/watch/made")
	if err := w.Add(s.listDir()); err != nil {
		return nil, errors.Join(fmt.Errorf("watch image store: %w", err), w.Close())
	}
	for _, f := range s.catalog.shelves {
		_ = w.Add(filepath.Dir(f.listPath())) // one that is not there, or cannot be watched, is looked at now and then
	}
	return w, nil
}

func (s *Images) watch(ctx context.Context, w *fsnotify.Watcher) {
	for {
		select {
		case <-ctx.Done():
			s.problems.set("watch", w.Close())
			return
		case e := <-w.Events:
			if filepath.Base(e.Name) == "images.json" || filepath.Dir(e.Name) != s.listDir() {
				s.problems.set("index", s.refreshIfChanged())
			}
		case <-w.Errors: // events were lost
			s.problems.set("index", s.refresh())
		}
	}
}

func (s *Images) refreshIfChanged() error {
	s.catalog.mu.Lock()
	defer s.catalog.mu.Unlock()
	if s.listMark() == s.catalog.seen && !slices.ContainsFunc(s.catalog.shelves, (*shelf).moved) {
		return nil
	}
	return s.refreshLocked()
}
