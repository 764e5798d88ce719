package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crid/crid/conf"
)

// FuzzLoad reads any text as crid.toml: what is wrong with it is told with the file's name, a fault on a line.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		conf.TOML, strings.ReplaceAll(conf.TOML, "\n# ", "\n"), "", "root = 1", "rot = '/x'", "[runtimes.a]\npath = 1", "[runtimes]\na = 1", "[streaming]\nport = 70000",
		"[metrics]\naddress = 'unix://x'\n[tracing]\nendpoint = 'http://[::1]:1/'\nsampling = nan", "[runtimes.'']\n", "root = \"\\u0000\"", "x = [", "[[runtimes]]\n", "streaming.port = 1\n[streaming]\nport = 2", "runtimes.a.b.c = 1",
	} {
		f.Add(s)
	}
	file := filepath.Join(f.TempDir(), "crid.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file, true)
		if err == nil {
			return
		}
		for line := range strings.Lines(err.Error()) {
			if !strings.Contains(line, file) {
				t.Errorf("fault %q has no file", line)
			}
		}
	})
}
