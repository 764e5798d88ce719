package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/crid/crid/internal/errdef"
)

// FuzzLoad starts a crid that finds any bytes in the place of a record and of a tombstone: it serves, its other pod is
// as it was, and a client can remove what is left.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		``, `{"version":1,"record":{}}`, `{"version":1,"record":{"state":"ready","bootId":"boot-1","config":{}}}`,
		`{"version":1,"record":{"state":"ready","bootId":"boot-1","config":{"linux":{"securityContext":{"namespaceOptions":{"network":"NODE","usernsOptions":{"mode":"POD"}}}}}}}`,
		`{"version":1,"record":{"state":"notready","erasing":true,"config":null,"network":{"ID":"../x"},"cgroupParent":"/../.."}}`,
		`{"version":1,"record":{"state":"creating","key":{"name":"a","namespace":"default","uid":"uid-a"},"config":{}}}`,
		`{"version":1,"record":{"state":"nonsense","ips":["x"],"config":{"metadata":{"name":"a"}}}}`,
		`{"version":1,"record":{"request":{"id":"strange"},"attempts":-1,"next":"2026-01-02T03:04:05Z"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost(t)
			m, _ := h.start(t)
			good := run(t, m, "a")
			shutDown(t, m)
			for _, dir := range []string{h.recordDir, h.graveDir} {
				if err := os.WriteFile(filepath.Join(dir, "strange.json"), raw, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m, _ = h.boots()
			m.Load(t.Context())
			synctest.Wait()
			if p, err := m.Get(good.ID()); err != nil || p.Status().State != Ready {
				t.Errorf("the other pod: %v", err)
			}
			if bad, err := m.Get("strange"); err == nil {
				bad.Status()
				if err := errors.Join(m.Stop(t.Context(), bad), m.Remove(t.Context(), bad)); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if _, err := m.Get("strange"); !errors.Is(err, errdef.NotFound) {
				t.Errorf("after the removal: %v", err)
			}
			shutDown(t, m)
		})
	})
}
