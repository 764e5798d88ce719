package container

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// The image decides what its passwd file is: nothing of the host is read in its place, nothing is waited for, and no
// more is read than accounts can need.
func TestPasswdFilesOfAllKinds(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "shadow")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(secret, []byte("root:secret"), 0o600))
	for name, c := range map[string]struct {
		put  func(at string) error
		want error // nil = there is none
	}{
		"a link to the host's":   {func(at string) error { return os.Symlink(secret, at) }, nil},
		"a link that climbs":     {func(at string) error { return os.Symlink("../../../../../../../.."+secret, at) }, nil},
		"a link to itself":       {func(at string) error { return os.Symlink("passwd", at) }, errAny},
		"a link to a process":    {func(at string) error { return os.Symlink("/proc/self/root"+secret, at) }, nil},
		"a pipe":                 {func(at string) error { return unix.Mkfifo(at, 0o644) }, errdef.Invalid},
		"a directory":            {func(at string) error { return os.Mkdir(at, 0o755) }, errdef.Invalid},
		"10 GB that are no data": {func(at string) error { return errors.Join(os.WriteFile(at, nil, 0o644), os.Truncate(at, 10<<30)) }, errdef.Invalid},
	} {
		root := t.TempDir()
		must(os.Mkdir(filepath.Join(root, "etc"), 0o755))
		must(c.put(filepath.Join(root, "etc", "passwd")))
		raw, err := readAccounts(root, "/etc/passwd")
		if raw != nil || (err == nil) != (c.want == nil) || c.want != errAny && !errors.Is(err, c.want) {
			t.Errorf("%s: %.100q, %v; want %v", name, raw, err, c.want)
		}
	}
}

var errAny = errors.New("any")
