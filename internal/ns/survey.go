package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Found is a pin, or what is left of one.
type Found struct {
	ID     string
	Path   string
	Bound  bool // a namespace is mounted there
	Shared bool // the directory is one that others pin in, too
}

// Survey finds all pins. Directories that are absent hold none.
func (p *Pinner) Survey() ([]Found, error) {
	var all []Found
	for _, in := range []struct{ dir, prefix string }{
		{p.netDir, netPrefix},
		{filepath.Join(p.dir, "ipc"), ""}, {filepath.Join(p.dir, "uts"), ""}, {filepath.Join(p.dir, "user"), ""},
	} {
		entries, err := os.ReadDir(in.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list pinned namespaces: %w", err)
		}
		for _, e := range entries {
			id, ok := strings.CutPrefix(e.Name(), in.prefix)
			if !ok {
				continue
			}
			path := filepath.Join(in.dir, e.Name())
			var st unix.Statfs_t
			bound := unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
			all = append(all, Found{ID: id, Path: path, Bound: bound, Shared: in.prefix != ""})
		}
	}
	return all, nil
}
