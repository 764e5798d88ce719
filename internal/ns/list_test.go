package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// List returns, sorted, the ids that have a pin or what an interrupted Pin or Unpin left of one.
func (p *Pinner) List() ([]string, error) {
	var ids []string
	for _, place := range [...]struct{ dir, prefix string }{
		{p.netDir, netPrefix},
		{filepath.Join(p.dir, "ipc"), ""},
		{filepath.Join(p.dir, "uts"), ""},
		{filepath.Join(p.dir, "user"), ""},
	} {
		entries, err := os.ReadDir(place.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list namespaces: %w", err)
		}
		for _, entry := range entries {
			if id, ours := strings.CutPrefix(entry.Name(), place.prefix); ours && id != "" {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}
