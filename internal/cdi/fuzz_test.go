package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
)

// FuzzInject reads any text as a vendor's description and asks it for any device: whoever asked wrongly is told so, and
// a description with a fault is left out and named.
func FuzzInject(f *testing.F) {
	for _, s := range []string{
		`{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"env":["A=b"]}}]}`,
		`{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"deviceNodes":[{"path":"/dev/null"}],"mounts":[{"hostPath":"/a","containerPath":"/b"}],"hooks":[{"hookName":"prestart","path":"/x"}]}}],"containerEdits":{"additionalGids":[0,1]}}`,
		`{"cdiVersion":"9.9.9","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"deviceNodes":[null]}}]}`,
		`{"cdiVersion":"0.6.0","kind":"c","devices":null}`, "a: [b", "", "null",
		`{"cdiVersion":"0.7.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{"intelRdt":{"closID":"../x"},"deviceNodes":[{"path":"/dev/nope","type":"q","permissions":"z"}]}}]}`,
	} {
		f.Add(s, "v.com/c=d")
		f.Add(s, "v.com/c=")
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text, device string) {
		if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
		if err := r.Inject(s, []string{device}); err != nil && !errors.Is(err, errdef.Invalid) && !errors.Is(err, errdef.Unavailable) {
			t.Errorf("error %v is neither Invalid nor Unavailable", err)
		}
		r.Faults()
	})
}
