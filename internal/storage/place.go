package storage

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/crid/crid/internal/errdef"
)

// A store on a disk of its own has a name, which crid's root remembers: while the disk is not mounted, a new store would
// be made in the empty directory below, and all containers would lose their images.

const placeName = "crid-store" // the file in the store with its name

// placeRecord is what root remembers of a store that is configured.
type placeRecord struct {
	Path string `json:"path"`
	Name string `json:"name"`
}

func (c *ImagesConfig) placePath() string { return filepath.Join(c.Root, "image-store.json") }

// checkPlace refuses a configured store that is not the one which was there before. Unavailable: there is none, or
// another.
func (c *ImagesConfig) checkPlace() error {
	if c.Store == "" {
		return nil
	}
	before, err := c.readPlace()
	if err != nil || before.Path != c.Store {
		return err
	}
	now, err := c.placeNow()
	switch {
	case err != nil:
		return err
	case now == "":
		return fmt.Errorf("the image store is not in %s any more: mount the disk that it is on, or remove %s to begin with an empty one: %w", c.Store, c.placePath(), errdef.Unavailable)
	case now != before.Name:
		return fmt.Errorf("in %s is another image store than before: mount the disk that it is on, or remove %s to go on with this one: %w", c.Store, c.placePath(), errdef.Unavailable)
	}
	return nil
}

// claimPlace names a store that has no name yet, and remembers which one is in use. The name is on the disk before it
// is remembered.
func (c *ImagesConfig) claimPlace() error {
	if c.Store == "" {
		return nil
	}
	name, err := c.placeNow()
	if err == nil && name == "" {
		name = rand.Text()
		err = writeSynced(filepath.Join(c.Store, placeName), []byte(name+"\n"))
	}
	if err != nil {
		return fmt.Errorf("name image store: %w", errdef.Disk(err))
	}
	now := placeRecord{Path: c.Store, Name: name}
	before, err := c.readPlace()
	if err != nil || before == now {
		return err
	}
	raw, err := json.Marshal(now)
	if err == nil {
		err = writeSynced(c.placePath(), raw)
	}
	if err != nil {
		return fmt.Errorf("remember image store: %w", errdef.Disk(err))
	}
	return nil
}

// readPlace answers an empty record when there is none, or none that can be read: crid writes it again.
func (c *ImagesConfig) readPlace() (r placeRecord, err error) {
	raw, err := os.ReadFile(c.placePath())
	if errors.Is(err, fs.ErrNotExist) || err == nil && json.Unmarshal(raw, &r) != nil {
		return placeRecord{}, nil
	}
	if err != nil {
		err = fmt.Errorf("read which image store was in use: %w", err)
	}
	return r, err
}

// placeNow is the name of the store that is there; empty when it has none.
func (c *ImagesConfig) placeNow() (string, error) {
	raw, err := os.ReadFile(filepath.Join(c.Store, placeName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read image store's name: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// writeSynced replaces a file by one that is on the disk when it has its name.
func writeSynced(path string, content []byte) error {
	temp := path + ".tmp"
	f, err := os.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreAbsent(os.Remove(temp)))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
