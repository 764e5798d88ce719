// Package hooks finds the programs that the host's administrator wants run along with containers: files of the OCI
// hooks schema 1.0.0 that Podman and CRI-O read too. It runs nothing and knows of a container only what a file's
// conditions ask for.
package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
)

// Hooks is the hooks of some directories.
type Hooks struct {
	dirs []string

	mu   sync.Mutex // guards what follows; held while files are read, so that one reading serves all who wait
	seen string     // what the directories looked like when all was read without a fault
	all  []hook     // in the order in which they are added

	known atomic.Pointer[findings] // what the last look found
}

// findings are for an operator.
type findings struct {
	fault   string
	ignored []string
}

// New is the hooks of dirs: a file of a later directory takes the place of one with the same name in an earlier. It
// does no I/O: directories are looked at with each Inject, and their files read when they have changed.
func New(dirs []string) *Hooks { return &Hooks{dirs: dirs} }

// Inject adds the hooks whose conditions hold for a container to its configuration, in the order of their files'
// names. annotations are the pod's and the container's as they came; bindMounts tells whether the request has
// mounts. A file that cannot be understood is Unavailable, named with what is wrong in it: a container that might
// have to have its hook is not made without.
func (h *Hooks) Inject(s *specs.Spec, annotations map[string]string, bindMounts bool) error {
	all, err := h.current()
	if err != nil {
		return err
	}
	for _, hook := range all {
		if hook.when.holds(s, annotations, bindMounts) {
			hook.add(s)
		}
	}
	return nil
}

// Check reads the directories as Inject does and tells what is wrong with them.
func (h *Hooks) Check() error {
	_, err := h.current()
	return err
}

// Fault is what Check or Inject found wrong at their last look; empty when nothing was. It never waits.
func (h *Hooks) Fault() string {
	if found := h.known.Load(); found != nil {
		return found.fault
	}
	return ""
}

// Ignored is what Check or Inject found at their last look of which crid does nothing. It never waits.
func (h *Hooks) Ignored() []string {
	if found := h.known.Load(); found != nil {
		return found.ignored
	}
	return nil
}

func (h *Hooks) current() ([]hook, error) {
	all, err := h.look()
	var found findings
	if err != nil {
		found.fault = err.Error()
	}
	for _, hook := range all {
		if hook.precreate {
			found.ignored = append(found.ignored, fmt.Sprintf("hook %s: stage %q is Podman's alone", hook.file, precreate))
		}
	}
	h.known.Store(&found)
	return all, err
}

func (h *Hooks) look() ([]hook, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	files, look, err := list(h.dirs)
	if err != nil {
		return nil, err
	}
	if look == h.seen {
		return h.all, nil
	}
	// A fault is looked for again each time: it may be in the hook's program, of which the directories tell nothing.
	all, err := read(files)
	if err != nil {
		return nil, err
	}
	h.all, h.seen = all, look
	return all, nil
}

// list finds the files that count, by name, and how they look from outside: the same look means the same content.
func list(dirs []string) (files map[string]string, look string, err error) {
	files = map[string]string{}
	var outside strings.Builder
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("read hooks: %w: %w", errdef.Unavailable, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if filepath.Ext(path) != ".json" {
				continue
			}
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile, or a link to nowhere
			}
			if err != nil {
				return nil, "", fmt.Errorf("read hooks: %w: %w", errdef.Unavailable, err)
			}
			files[e.Name()] = path
			fmt.Fprintf(&outside, "%s %d %d %d\n", path, info.Size(), info.ModTime().UnixNano(), inode(info))
		}
	}
	return files, outside.String(), nil
}

// inode tells a file from another that was renamed over it.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// read parses files in the order of their names in lower case; the first fault spoils all.
func read(files map[string]string) ([]hook, error) {
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		if c := strings.Compare(strings.ToLower(a), strings.ToLower(b)); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	var all []hook
	for _, name := range names {
		raw, err := os.ReadFile(files[name])
		if err != nil {
			return nil, fmt.Errorf("read hook: %w: %w", errdef.Unavailable, err)
		}
		parsed, err := parse(raw)
		if err != nil {
			return nil, fmt.Errorf("hook %s: %w: %w", files[name], errdef.Unavailable, err)
		}
		parsed.file = files[name]
		all = append(all, parsed)
	}
	return all, nil
}
