package storage

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	splittar "github.com/vbatts/tar-split/archive/tar"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"
)

// unpackLayer makes files of an archive in a new directory.
func unpackLayer(t testing.TB, raw []byte) (dir string, err error) {
	t.Helper()
	dir = t.TempDir()
	check(t, os.Chmod(dir, 0o755))
	files, err := openLayerFiles(dir)
	check(t, err)
	defer files.close()
	r := splittar.NewReader(bytes.NewReader(raw)) // no recipe, which knows no path twice
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir, files.finish()
		}
		if err == nil {
			err = files.add(h, r)
		}
		if err != nil {
			return dir, err
		}
	}
}

// described tells of all below dir, line by line: what only the time of the test explains is left out.
func described(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		check(t, unix.Lstat(path, &st))
		said := fmt.Sprintf("%o %d:%d device %d, %d names, changed %d.%09d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			check(t, err)
			said += fmt.Sprintf(" %q", content)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			check(t, err)
			said += " to " + to
		}
		names, err := xattrNames(path)
		slices.Sort(names)
		check(t, err)
		for _, name := range names {
			if name == "" { // there is none
				continue
			}
			buf := make([]byte, 1000)
			n, err := unix.Lgetxattr(path, name, buf)
			check(t, err)
			said += fmt.Sprintf(" %s=%q", name, buf[:max(n, 0)])
		}
		name, err := filepath.Rel(dir, path)
		all[name] = said
		return err
	}))
	return all
}

// owned gives an entry another owner, mode and time.
func owned(e entryOf, uid, gid int, mode int64, at time.Time) entryOf {
	e.Uid, e.Gid, e.Mode, e.ModTime = uid, gid, mode, at
	return e
}

func with(e entryOf, records map[string]string) entryOf {
	e.Format, e.PAXRecords = tar.FormatPAX, records
	return e
}

// Files are what the store's own unpacker makes of the same archive.
func TestFilesOfLayersAreThoseOfTheStore(t *testing.T) {
	needRoot(t)
	at := time.Unix(1234567890, 0)
	for name, entries := range map[string][]entryOf{
		"nothing": {},
		"all kinds": {
			special(tar.TypeDir, "d/", ""), file("d/f", "content"), special(tar.TypeSymlink, "d/s", "f"), special(tar.TypeLink, "d/h", "d/f"),
			special(tar.TypeChar, "d/c", ""), special(tar.TypeBlock, "d/b", ""), special(tar.TypeFifo, "d/p", ""), file("d/empty", ""),
		},
		"large files": {file("a", strings.Repeat("a", fileWindow)), file("b", strings.Repeat("b", 2*fileWindow+1)), file("c", strings.Repeat("c", archiveWindow))},
		"owners, modes and times": {
			owned(special(tar.TypeDir, "./", ""), 1, 2, 0o750, at), owned(special(tar.TypeDir, "d", ""), 0, 5, 0o2775, at),
			owned(file("d/inherits", "x"), 0, 0, 0o644, at), owned(file("d/suid", "x"), 3, 4, 0o6755, at), owned(special(tar.TypeSymlink, "s", "x"), 7, 8, 0o777, at),
			owned(special(tar.TypeDir, "d/sticky", ""), 1<<30, 1<<30, 0o1777, at.Add(time.Hour)), owned(special(tar.TypeDir, "d/", ""), 9, 9, 0o700, at.Add(time.Minute)),
		},
		"fractions of seconds, and times before all times": {
			with(owned(file("fraction", ""), 0, 0, 0o600, time.Unix(5, 123456789)), nil), with(owned(file("early", ""), 0, 0, 0o600, time.Unix(-5, 0)), nil),
		},
		"replaced": {
			special(tar.TypeDir, "a/", ""), file("a/x", ""), file("a", "a file now"), special(tar.TypeSymlink, "b", "a"), file("b", "no link now"),
			file("c", ""), special(tar.TypeDir, "c/", ""), file("c/x", ""), file("d", "one"), file("d", "two"), special(tar.TypeSymlink, "d", "three"),
			file("e", ""), special(tar.TypeLink, "e2", "e"), file("e2", "another"), special(tar.TypeLink, "a", "e"), special(tar.TypeFifo, "e", ""),
		},
		"through links": {
			special(tar.TypeDir, "usr/", ""), special(tar.TypeDir, "usr/lib/", ""), special(tar.TypeSymlink, "lib", "usr/lib"), file("lib/a", "a"),
			special(tar.TypeSymlink, "abs", "/usr"), file("abs/b", "b"), special(tar.TypeSymlink, "up", "../../../usr/lib"), file("up/c", "c"),
			special(tar.TypeLink, "lib/d", "abs/b"), special(tar.TypeLink, "ll", "lib"), file("lib/.wh.gone", ""),
		},
		"a directory that becomes a link": {
			owned(special(tar.TypeDir, "d/", ""), 0, 0, 0o755, at), special(tar.TypeDir, "real/", ""), special(tar.TypeSymlink, "d", "real"), file("d/x", "x"),
		},
		"names": {file("/absolute", "x"), file("//twice//x", ""), file("./dot/./x", ""), file("d/../x", ""), file("/../climbs", ""), file(strings.Repeat("long", 50)+"/"+strings.Repeat("n", 255), "x")},
		"attributes": {
			with(file("f", "x"), map[string]string{"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.security.selinux": "label"}),
			with(special(tar.TypeDir, "d/", ""), map[string]string{"SCHILY.xattr.user.b": "2"}), with(special(tar.TypeSymlink, "s", "f"), map[string]string{"SCHILY.xattr.trusted.c": "3"}),
		},
		"whiteouts":                    {special(tar.TypeDir, "d/", ""), file("d/.wh.x", ""), file(".wh.y", ""), file(".wh.d2", ""), file("d2/.wh.z", ""), special(tar.TypeDir, "o/", ""), file("o/.wh..wh..opq", ""), file("o/x", "")},
		"a whiteout, then a file":      {file(".wh.x", ""), file("x", "back")},
		"a global header":              {{tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""}, file("x", "")},
		"outside":                      {file("../x", "")},
		"a link outside":               {special(tar.TypeLink, "x", "../y")},
		"a link to nothing":            {special(tar.TypeLink, "x", "y")},
		"a link to itself":             {file("x", ""), special(tar.TypeLink, "x", "x")},
		"a file as directory":          {file("x", ""), file("x/y", "")},
		"a root that is a file":        {file(".", "")},
		"a root that is a link":        {special(tar.TypeSymlink, "./", "/")},
		"a whiteout of no file":        {file(".wh.", "")},
		"a link that leads to itself":  {special(tar.TypeSymlink, "x", "x"), file("x/y", "")},
		"a contiguous file":            {special(tar.TypeCont, "x", "")},
		"an attribute that is refused": {with(special(tar.TypeSymlink, "s", "f"), map[string]string{"SCHILY.xattr.user.c": "3"})},
	} {
		t.Run(name, func(t *testing.T) {
			raw := packed(t, entries...)
			want := t.TempDir()
			check(t, os.Chmod(want, 0o755))
			wanted := archive.Unpack(bytes.NewReader(raw), want, &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
			got, err := unpackLayer(t, raw)
			if (err == nil) != (wanted == nil) {
				t.Errorf("got %v, the store %v", err, wanted)
			}
			if err != nil || wanted != nil {
				return
			}
			if diff := cmp.Diff(explained(entries, described(t, want)), explained(entries, described(t, got))); diff != "" {
				t.Errorf("by the store (-) and by crid (+):\n%s", diff)
			}
		})
	}
}

// explained leaves out what no entry says: owner and time of whiteouts, and all but the attributes of directories that the
// archive does not have.
func explained(entries []entryOf, all map[string]string) map[string]string {
	said := map[string]bool{}
	for _, e := range entries {
		said[filepath.Clean("/"+e.Name)] = true
	}
	for name, about := range all {
		_, attributes, _ := strings.Cut(about, "changed ")
		_, attributes, _ = strings.Cut(attributes, " ")
		switch {
		case strings.HasPrefix(about, "20") && strings.Contains(about, " device 0,"):
			all[name] = "whiteout"
		case strings.HasPrefix(about, "4") && !said[filepath.Clean("/"+name)]:
			all[name] = "directory " + attributes
		}
	}
	return all
}

// What the store's own unpacker refuses or makes otherwise than the specification of images says.
func TestFilesOfLayersThatTheStoreMakesOtherwise(t *testing.T) {
	needRoot(t)
	hidden := ` trusted.overlay.opaque="y"`
	for name, c := range map[string]struct {
		entries []entryOf
		name    string
		want    string // begins what is there
		opaque  bool
	}{
		"a file that was in the layer before its whiteout": {[]entryOf{file("x", "x"), file(".wh.x", "")}, "x", "100644 ", false},
		"a directory before its whiteout":                  {[]entryOf{special(tar.TypeDir, "x/", ""), file(".wh.x", "")}, "x", "40644 ", true},
		"a directory behind its whiteout":                  {[]entryOf{file(".wh.x", ""), special(tar.TypeDir, "x/", "")}, "x", "40644 ", true},
		"a directory that has no entry":                    {[]entryOf{file("x/y", "")}, "x", "40755 0:0 ", false},
		"a directory in one that became a file":            {[]entryOf{special(tar.TypeDir, "d/", ""), special(tar.TypeDir, "d/d/", ""), file("d", "")}, "d", "100644 ", false},
		"what AUFS keeps for itself":                       {[]entryOf{special(tar.TypeDir, "x/", ""), file("x/.wh..wh.plnk", "")}, "x", "40644 ", false},
		"an attribute of an overlay":                       {[]entryOf{with(special(tar.TypeDir, "x/", ""), map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"})}, "x", "40644 ", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := unpackLayer(t, packed(t, c.entries...))
			check(t, err)
			got := described(t, dir)
			if len(got) > 3 || !strings.HasPrefix(got[c.name], c.want) || strings.Contains(got[c.name], hidden) != c.opaque {
				t.Errorf("there is %q, want %q, opaque %t", got, c.want, c.opaque)
			}
		})
	}
}

// FuzzLayerFiles makes files of any bytes that are read as an archive, beside something that must stay as it is.
func FuzzLayerFiles(f *testing.F) {
	needRoot(f)
	for _, entries := range [][]entryOf{
		{special(tar.TypeDir, "a/", ""), file("a/b", "content"), special(tar.TypeLink, "c", "a/b"), file("a/.wh.d", ""), file("a/.wh..wh..opq", "")},
		{special(tar.TypeSymlink, "out", ".."), file("out/bait", "x"), file("out/new", "x"), special(tar.TypeLink, "mine", "out/bait"), file("out/.wh.bait", "")},
		{special(tar.TypeSymlink, "a", "b"), special(tar.TypeSymlink, "b", "/../.."), special(tar.TypeDir, "a/layer/", ""), special(tar.TypeSymlink, "./", "..")},
		{with(file("../bait", "x"), map[string]string{"SCHILY.xattr.user.a": "1"}), special(tar.TypeFifo, "p", ""), file("p", "x"), special(tar.TypeChar, "c", "")},
	} {
		f.Add(packed(f, entries...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		outside := t.TempDir()
		check(t, os.WriteFile(filepath.Join(outside, "bait"), []byte("good"), 0o600))
		before := described(t, outside)
		dir := filepath.Join(outside, "layer")
		check(t, os.Mkdir(dir, 0o700))
		files, err := openLayerFiles(dir)
		check(t, err)
		defer files.close()
		s := newSplitter(io.Discard, func(h *splittar.Header, c *content) error {
			if isSparse(h) || h.Size > 1<<20 {
				return errBounds // which takes only time
			}
			return files.add(h, c)
		})
		if err := s.run(bytes.NewReader(raw)); err == nil {
			_ = files.finish() // a directory may have any name
		}
		check(t, os.RemoveAll(dir))
		after := described(t, outside)
		delete(before, ".") // it has changed
		delete(after, ".")
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("outside of the layer:\n%s", diff)
		}
	})
}
