package container

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/crid/crid/internal/errdef"
)

// FuzzSeccompProfile reads any bytes as a profile of the node: a runtime gets only what crid understood.
func FuzzSeccompProfile(f *testing.F) {
	for _, s := range []string{
		`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/x","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null,{"name":"a","names":["b"]},{"includes":{"caps":["CAP_SYS_ADMIN"],"minKernel":"4.8"}}]}`,
		"null", "", "[]", `{"defaultAction":1}`,
	} {
		f.Add([]byte(s))
	}
	file := filepath.Join(f.TempDir(), "profile.json")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		profile, err := readProfile(file, []string{"CAP_SYS_ADMIN"})
		if err != nil && !errors.Is(err, errdef.Invalid) {
			t.Errorf("error %v is not Invalid", err)
		}
		if err == nil && profile == nil {
			t.Error("no profile and no error")
		}
	})
}

// FuzzParseProcess reads any bytes as files of /proc.
func FuzzParseProcess(f *testing.F) {
	f.Add([]byte("77 (a) b (c) S 5 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9 9"), []byte("NSpid:\t77\t1\n"))
	f.Add([]byte("77 () "), []byte("NSpid:"))
	f.Add([]byte(""), []byte(""))
	f.Fuzz(func(_ *testing.T, stat, status []byte) { parseProcess(stat, status) })
}

// FuzzLoad starts a crid that finds any bytes in the place of a record: it serves, its other container is as it was,
// and a client can remove what is left.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		``, `{"version":1,"record":{}}`, `{"version":1,"record":{"state":"running","bootId":"boot-1","config":{}}}`,
		`{"version":1,"record":{"state":"created","config":{"metadata":{"name":"a"}},"monitor":{"pid":-1,"start":1,"monitorPid":0}}}`,
		`{"version":1,"record":{"state":"nonsense","plan":{"key":{"podId":"p"},"pause":true},"config":{}}}`,
		`{"version":1,"record":{"state":"exited","config":{"linux":{}},"resources":{"cpuShares":"5"},"undo":{"cpuShares":1}}}`,
		`{"version":1,"record":{"state":"creating","config":{},"volumes":["/x"],"logPath":"/etc/passwd"}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		synctest.Test(t, func(t *testing.T) {
			h, m := start(t)
			good := mustStart(t, m, h.request("good"))
			m, _ = restart(t, h, m, func() {
				if err := os.WriteFile(filepath.Join(h.dir, "records", "strange.json"), raw, 0o600); err != nil {
					t.Fatal(err)
				}
			})
			synctest.Wait()
			wantState(t, loaded(t, m, good), Running)
			bad, err := m.Get("strange")
			if errors.Is(err, errdef.NotFound) {
				return // collected
			}
			if err != nil {
				t.Fatal(err)
			}
			bad.Status()
			if err := bad.Remove(t.Context()); err != nil {
				t.Errorf("remove: %v", err)
			}
			if _, err := m.Get("strange"); !errors.Is(err, errdef.NotFound) {
				t.Errorf("after the removal: %v", err)
			}
		})
	})
}
