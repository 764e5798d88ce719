package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

// FuzzFiles reads any bytes as each kind of a cgroup's files: there is a number, or an error that names the file.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{
		"8:0 Read 4096\nTotal 4096\n", "8:0 rbytes=1 wios=x\n", "8:0\n", "253:-1 Read 1\n", "20000 100000\n", "user 12\nsystem x\n",
		"max\n", "18446744073709551615", "-1", "", "oom_kill 3\noom_kill_disable 0\n", "anon 5\nfile x\n", "1\n2\n0\n", "oom_kill ",
		"some avg10=0.00 avg60=1.5 avg300=nan total=18446744073709551615\nfull avg10=1e999 avg60=0 avg300=0 total=1\n", "some\n", "\x00\n",
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	file := filepath.Join(dir, "cgroup.procs")
	kernels := sheet{"", "cgroup.procs", map[string]term{"": {Tasks, 1}, "user": {UserTime, tick}, "oom_kill": {OOMKills, 1}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		var rss uint64
		_, failed := number(file)
		_, failed2 := pressure(file)
		_, failed3 := counter(file, "oom_kill")
		_, failed4 := procs(dir)
		failed5 := kernels.read(dir, make([]byte, 16<<10), map[Figure]uint64{})
		failed6 := blocksV2(file, &Details{})
		for _, name := range []string{"io_service_bytes_recursive", "io_serviced_recursive"} {
			if err := os.WriteFile(file+name, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		failed7 := blocksV1(file, &Details{})
		for i, err := range []error{failed, failed2, failed3, failed4, failed5, failed6, failed7, table(file, map[string]*uint64{"anon": &rss})} {
			if err != nil && !strings.Contains(err.Error(), file) {
				t.Errorf("reader %d: error %v does not name the file", i, err)
			}
		}
		if raw := strings.TrimSpace(string(raw)); failed == nil && raw != "max" && strings.Trim(raw, "+0123456789") != "" {
			t.Errorf("%q was read as a number", raw)
		}
	})
}

// FuzzClean takes any text for a path: what passes stays below the hierarchy, and is not its root.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"/a", "/", "", "/a/../..", "/./", "//", "/a\x00", "a", "/..", "/...", "/a/b/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		cleaned, err := cleanGroup(path)
		if err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		if joined := filepath.Join("/h", cleaned); !strings.HasPrefix(joined, "/h/") || joined == "/h/" || strings.ContainsRune(joined, 0) {
			t.Errorf("%q is %q", path, joined)
		}
	})
}
