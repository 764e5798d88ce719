package storage

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A layer can name any path and any kind of file: nothing of it gets outside the layer's directory.
func TestLayersStayInTheirDirectory(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	check(t, os.WriteFile(victim, []byte("untouched"), 0o600))
	up := strings.Repeat("../", 30)
	for name, entries := range map[string][]entryOf{
		"absolute path":               {file(outside+"/new", "x")},
		"path that climbs":            {file(up+outside+"/new", "x")},
		"path that climbs from a dir": {special(tar.TypeDir, "d/", ""), file("d/"+up+outside+"/new", "x")},
		"through a symbolic link":     {special(tar.TypeSymlink, "out", outside), file("out/new", "x")},
		"through links to links":      {special(tar.TypeSymlink, "a", "b"), special(tar.TypeSymlink, "b", outside), file("a/new", "x"), file("a/victim", "x")},
		"over a symbolic link":        {special(tar.TypeSymlink, "l", victim), file("l", "x")},
		"hard link outside":           {special(tar.TypeLink, "l", victim), file("l", "x")},
		"hard link that climbs":       {special(tar.TypeLink, "l", up+victim), file("l", "x")},
		"hard link through a link":    {special(tar.TypeSymlink, "out", outside), special(tar.TypeLink, "l", "out/victim"), file("l", "x")},
		"whiteout outside":            {special(tar.TypeSymlink, "out", outside), file("out/.wh.victim", "")},
		"whiteout that climbs":        {file(".wh."+up+victim, ""), file(up+outside+"/.wh.victim", "")},
		"whiteout of all":             {file(".wh...", ""), file(".wh..wh..opq", "")},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLiar(t)
			s := newWorld(t, &fakeRegistry{host: l.host}).open(t)
			ref := l.imageOf(t, entries...)
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); err == nil {
				// What is below the layer's own root is no business of the store's check, which follows links on the host.
				defer func() { check(t, s.Remove(t.Context(), ref)) }()
			}
			if got, err := os.ReadFile(victim); err != nil || string(got) != "untouched" {
				t.Errorf("the victim is %q, %v", got, err)
			}
			if st, err := os.Stat(victim); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 1 {
				t.Errorf("the victim has another name: %v", err)
			}
			if _, err := os.Lstat(filepath.Join(outside, "new")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("something was written outside: %v", err)
			}
		})
	}
}
