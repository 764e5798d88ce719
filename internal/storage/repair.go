package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/failpoint"
)

// repair is what keeps a damaged store at work. A damaged part is set aside, that is renamed: containers that stand
// on it keep it, nobody new gets it, and the next pull that wants it brings it again. Nothing is deleted before the
// next boot, when no container can stand on it any more.
type repair struct {
	trash    *trash
	turn     chan struct{} // holds one while somebody mends layers
	listLost atomic.Bool   // a list of the store was set aside since the boot: what containers stand on is unknown
	due      atomic.Bool   // layers are still to be verified
}

var bootForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// bootName is the name of this boot's directory.
func (c *ImagesConfig) bootName() string {
	if bootForm.MatchString(c.BootID) {
		return c.BootID
	}
	return "unknown-boot"
}

// The directories of the store that are crid's: what was set aside, for each boot, and what is being deleted.
const (
	asideName    = "crid-quarantine"
	trashOfStore = "crid-trash"
)

func (s *Images) asideDir() string { return filepath.Join(s.root, asideName) }

// openRepair throws away what earlier boots set aside.
func (s *Images) openRepair() {
	r := &s.repair
	r.turn = make(chan struct{}, 1)
	trashDir := filepath.Join(s.root, trashOfStore)
	failed := os.MkdirAll(trashDir, 0o700)
	failpoint.Hit("storage/repair/trash-made")
	r.trash = openTrash(trashDir, &s.problems)
	boots, err := os.ReadDir(s.asideDir())
	failed = errors.Join(failed, ignoreAbsent(err))
	for _, boot := range boots {
		if boot.Name() != s.cfg.bootName() {
			failed = errors.Join(failed, r.trash.put(filepath.Join(s.asideDir(), boot.Name())))
		}
	}
	s.problems.set("old quarantine", failed)
	s.reportAside()
}

// setAside takes a file or directory of the store away from its place; one that is not there is away.
func (s *Images) setAside(path string) error {
	dir := filepath.Join(s.asideDir(), s.cfg.bootName())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("set %s aside: %w", path, err)
	}
	failpoint.Hit("storage/aside/dir-made")
	place, err := filepath.Rel(s.root, path)
	if err != nil {
		return fmt.Errorf("set %s aside: %w", path, err)
	}
	name := fmt.Sprintf("%s.%d", strings.ReplaceAll(place, "/", "."), time.Now().UnixNano())
	if err := ignoreAbsent(os.Rename(path, filepath.Join(dir, name))); err != nil {
		return fmt.Errorf("set %s aside: %w", path, err)
	}
	failpoint.Hit("storage/aside/renamed")
	s.reportAside()
	return nil
}

// reportAside tells what was set aside since the boot.
func (s *Images) reportAside() {
	dir := filepath.Join(s.asideDir(), s.cfg.bootName())
	names, err := entryNames(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("the image store was damaged: what was set aside lies in %s until the next boot, since containers may still use it: %s",
			dir, strings.Join(names, ", "))
	}
	for _, name := range names {
		if strings.Contains(name, ".json.") {
			s.repair.listLost.Store(true)
		}
	}
	s.problems.set("quarantine", err)
}

// listFile is one of the files in which the store keeps its objects.
type listFile struct {
	path  string // below the store
	check func(raw []byte) error
}

func listFiles() []listFile {
	layer := checkListedLayer
	container := func(c cstorage.Container) error { return checkIDs(c.ID, c.LayerID, c.ImageID) }
	return []listFile{
		{"overlay-layers/layers.json", wellFormed(layer)},
		{"overlay-layers/volatile-layers.json", wellFormed(layer)},
		{"overlay-images/images.json", wellFormed(checkListedImage)},
		{"overlay-containers/containers.json", wellFormed(container)},
		{"overlay-containers/volatile-containers.json", wellFormed(container)},
	}
}

func wellFormed[T any](check func(T) error) func([]byte) error {
	return func(raw []byte) error {
		_, err := parseList(raw, check)
		return err
	}
}

func parseList[T any](raw []byte, check func(T) error) ([]T, error) {
	var all []T
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	for i, object := range all {
		if err := check(object); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return all, nil
}

func checkListedLayer(l cstorage.Layer) error { return checkIDs(l.ID, l.Parent) }

// checkIDs looks at an object's own id and those that it names: the store has directories of these names, and deletes
// those of layers that are marked as incomplete when it is opened.
func checkIDs(own string, others ...string) error {
	if own == "" {
		return errors.New("it has no id")
	}
	for _, id := range append(others, own) {
		if id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
			return fmt.Errorf("%q is no id", id)
		}
	}
	return nil
}

// checkListedImage looks besides at the digests without which the store does not open.
func checkListedImage(i cstorage.Image) error {
	if err := checkIDs(i.ID, append(i.MappedTopLayers, i.TopLayer)...); err != nil {
		return err
	}
	for key, d := range i.BigDataDigests {
		if strings.HasPrefix(key, cstorage.ImageDigestManifestBigDataNamePrefix) && d.Validate() != nil {
			return fmt.Errorf("%q, of its %s, is no digest", d, key)
		}
	}
	if i.Digest != "" && i.Digest.Validate() != nil {
		return fmt.Errorf("%q is no digest", i.Digest)
	}
	return nil
}

// setAsideLists sets aside the lists that cannot be read, which the store could not be opened with. What they named is
// pulled again; its layers, where the list of layers is well, need not be.
func (s *Images) setAsideLists() error {
	for _, l := range listFiles() {
		path := filepath.Join(s.root, l.path)
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = l.check(raw)
		}
		if err == nil {
			continue
		}
		slog.Warn("a list of the image store cannot be read; it is set aside, and what it named is pulled again when it is wanted",
			"list", path, "err", err)
		if err := s.setAside(path); err != nil {
			return err
		}
	}
	return nil
}

var layerForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// setAsideStrays sets aside the directories of layers that are on no list: the store would delete one when a layer of
// that name is pulled, and containers may stand on it if a list was lost. The store's own probes, which a crash left
// beside them, are thrown away.
func (s *Images) setAsideStrays() error {
	driver, err := s.store.GraphDriver()
	if err != nil {
		return fmt.Errorf("read layers of the image store: %w", err)
	}
	names, err := driver.ListLayers() // before the list: a layer is on that first
	if err != nil {
		return fmt.Errorf("read layers of the image store: %w", err)
	}
	layers, err := s.layerMap()
	if err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(s.root, "overlay", name)
		switch {
		case layers[name] != nil:
		case !layerForm.MatchString(name):
			s.problems.set("stray "+name, s.repair.trash.put(path))
		default:
			slog.Warn("a layer of the image store is on no list; it is set aside", "layer", name)
			s.problems.set("stray "+name, s.setAside(path))
		}
	}
	return nil
}
