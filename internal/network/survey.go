package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// Memory is one file of libcni's memory of what was added.
type Memory struct {
	Path     string
	ID       string // empty when the file cannot be read
	Conflist json.RawMessage
	Args     map[string]string // as PodArgs
	Err      error             // why it cannot be read: libcni overlooks it
}

// Memories lists libcni's memory, with what libcni itself overlooks. A file that is just being written may pass for one
// that cannot be read.
func (c *CNI) Memories() ([]Memory, error) {
	entries, err := os.ReadDir(c.memoryDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read cached attachments: %w", err)
	}
	var all []Memory
	for _, e := range entries {
		m := readMemory(filepath.Join(c.memoryDir(), e.Name()))
		if !errors.Is(m.Err, fs.ErrNotExist) { // else deleted meanwhile
			all = append(all, m)
		}
	}
	return all, nil
}

func (c *CNI) memoryDir() string { return filepath.Join(c.cfg.CacheDir, "results") }

func readMemory(path string) Memory {
	m := Memory{Path: path, Args: map[string]string{}}
	var kept struct {
		ContainerID string      `json:"containerId"`
		Config      []byte      `json:"config"`
		Args        [][2]string `json:"cniArgs"`
	}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if err == nil && kept.ContainerID == "" {
		err = errors.New("it names no container")
	}
	m.ID, m.Conflist, m.Err = kept.ContainerID, kept.Config, err
	for _, arg := range kept.Args {
		m.Args[arg[0]] = arg[1]
	}
	return m
}

// Forget removes a file of libcni's memory that cannot be read, so that nothing can be undone by it. One that can is left.
func (c *CNI) Forget(path string) error {
	if filepath.Dir(path) != c.memoryDir() {
		return fmt.Errorf("%s is not below %s", path, c.cfg.CacheDir)
	}
	if readMemory(path).Err == nil {
		return nil
	}
	err := ignoreAbsent(os.Remove(path))
	failpoint.Hit("network/forget/removed")
	return err
}

// Lease is an address that the plugin host-local has given away.
type Lease struct {
	Path string // its file, which others of the same network name have there, too
	ID   string // whom it was given to
}

// leaseDir is where host-local keeps its leases, in a directory for each network, unless told otherwise.
const leaseDir = "/var/lib/cni/networks"

// Leases lists the leases of networks: of those of the configuration directory, whatever crid thinks of them, and of
// conflists beside.
func (c *CNI) Leases(conflists ...json.RawMessage) ([]Lease, error) {
	dirs := map[string]bool{}
	for _, raw := range append(c.conflists(), conflists...) {
		for _, dir := range leaseDirs(raw) {
			dirs[dir] = true
		}
	}
	var all []Lease
	for dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list IP leases: %w", err)
		}
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err != nil || !e.Type().IsRegular() {
				continue // the lock, the last address, or no plugin's
			}
			l := Lease{Path: filepath.Join(dir, e.Name())}
			l.ID, err = holder(l.Path)
			if errors.Is(err, fs.ErrNotExist) || err == nil && l.ID == "" {
				continue // released, or just being given
			}
			if err != nil {
				return nil, fmt.Errorf("read IP lease: %w", err)
			}
			all = append(all, l)
		}
	}
	return all, nil
}

// holder reads whom a lease was given to: the first line.
func holder(path string) (string, error) {
	raw, err := os.ReadFile(path)
	return parseLease(raw), err
}

func parseLease(raw []byte) (id string) {
	id, _, _ = strings.Cut(string(raw), "\n")
	return strings.TrimSpace(id)
}

// Release takes a lease back, under the lock that the plugin takes. One that is gone, or was given to another, is
// fine.
func (c *CNI) Release(ctx context.Context, l Lease) error {
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(l.Path), "lock"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("release IP lease %s: %w", l.Path, err)
	}
	defer lock.Close()
	failpoint.Hit("network/release/lock-made")
	if err := flock(ctx, lock); err != nil {
		return fmt.Errorf("release IP lease %s: a plugin holds %s: %w", l.Path, lock.Name(), err)
	}
	id, err := holder(l.Path)
	if err == nil && id == l.ID {
		err = os.Remove(l.Path)
		failpoint.Hit("network/release/removed")
	}
	if err := ignoreAbsent(err); err != nil {
		return fmt.Errorf("release IP lease %s: %w", l.Path, err)
	}
	return nil
}

// flock waits for the lock as long as ctx allows, or ten seconds: a plugin has it for moments. The kernel's own wait
// could not be ended.
func flock(ctx context.Context, file *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (c *CNI) conflists() []json.RawMessage {
	entries, err := os.ReadDir(c.cfg.ConfDir)
	if err != nil {
		return nil // no network is configured; Condition tells why
	}
	var all []json.RawMessage
	for _, e := range entries {
		if e.IsDir() || !isConf(e.Name()) {
			continue
		}
		if list, err := readList(filepath.Join(c.cfg.ConfDir, e.Name())); err == nil {
			all = append(all, list.Bytes)
		}
	}
	return all
}

// leaseDirs finds where the plugins of a network keep leases. Plugins may write the configuration of host-local
// themselves, so the usual place counts in any case.
func leaseDirs(conflist json.RawMessage) []string {
	var network map[string]any
	if err := json.Unmarshal(conflist, &network); err != nil {
		return nil
	}
	name, _ := network["name"].(string)
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return nil
	}
	dirs := []string{filepath.Join(leaseDir, name)}
	var look func(value any)
	look = func(value any) {
		switch v := value.(type) {
		case []any:
			for _, inner := range v {
				look(inner)
			}
		case map[string]any:
			ipam, _ := v["ipam"].(map[string]any)
			if dir, _ := ipam["dataDir"].(string); filepath.IsAbs(dir) && ipam["type"] == "host-local" {
				dirs = append(dirs, filepath.Join(dir, name))
			}
			for _, inner := range v {
				look(inner)
			}
		}
	}
	look(network)
	return dirs
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
