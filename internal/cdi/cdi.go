// Package cdi puts devices into containers as their vendors describe them in files of the Container Device
// Interface. It does not know who asks for a device, nor what the container is otherwise.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/crid/crid/internal/errdef"
)

// Registry is the devices that are described now.
type Registry struct {
	dirs  []string
	cache *cdi.Cache
}

// Open reads the descriptions in dirs, of which a later one counts more, and follows their changes until Close.
// Directories may be missing, and come and go.
func Open(dirs []string) (*Registry, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(len(dirs) > 0))
	if err != nil {
		return nil, fmt.Errorf("read CDI descriptions: %w", err)
	}
	return &Registry{dirs: dirs, cache: cache}, nil
}

// Inject adds the devices of these qualified names ("vendor.com/class=name") to a configuration: nodes, mounts,
// environment, hooks, whatever their descriptions say. A name that is none or that nobody describes is Invalid, a
// device that is described but cannot be had is Unavailable; the error names it. The configuration of a failed
// call is not to be used.
func (r *Registry) Inject(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return fmt.Errorf("CDI device %q: %w: %w", name, errdef.Invalid, err)
		}
	}
	unresolved, err := r.cache.InjectDevices(s, names...)
	if len(unresolved) > 0 {
		// A description may have been written just now, before its watcher heard of it.
		if err := r.rescan(); err != nil {
			return err
		}
		unresolved, err = r.cache.InjectDevices(s, names...)
	}
	if len(unresolved) > 0 {
		return fmt.Errorf("CDI device %s: not described in %s%s: %w", strings.Join(unresolved, ", "),
			strings.Join(r.dirs, ", "), r.hint(), errdef.Invalid)
	}
	if err != nil {
		return fmt.Errorf("CDI device %s: %w: %w", strings.Join(names, ", "), errdef.Unavailable, err)
	}
	return nil
}

// rescan reads the directories again, whatever their watcher believes.
func (r *Registry) rescan() error {
	if err := r.cache.Configure(cdi.WithAutoRefresh(len(r.dirs) > 0)); err != nil {
		return fmt.Errorf("read CDI descriptions: %w", err)
	}
	return nil
}

// hint tells which files were left out because of their faults: the device may be in one of them.
func (r *Registry) hint() string {
	faults := r.Faults()
	if len(faults) == 0 {
		return ""
	}
	return " (left out: " + strings.Join(faults, "; ") + ")"
}

// Faults is what is wrong with the files that were left out and with directories that cannot be followed, sorted by
// their paths. A directory that is not there is no fault.
func (r *Registry) Faults() []string {
	byPath := r.cache.GetErrors()
	var faults []string
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		if slices.Contains(r.dirs, path) && missing(path) {
			continue
		}
		text := strings.ReplaceAll(errors.Join(byPath[path]...).Error(), "\n", "; ")
		faults = append(faults, fmt.Sprintf("%s: %s", path, text))
	}
	return faults
}

func missing(dir string) bool {
	_, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// Close ends the following of changes. It may be repeated.
func (r *Registry) Close() error {
	return r.cache.Configure(cdi.WithAutoRefresh(false))
}
