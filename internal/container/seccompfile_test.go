package container

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// What is wrong with a profile is told with the file and the place in it, before a runtime meets it.
func TestFaultsOfSeccompProfiles(t *testing.T) {
	_, m := start(t)
	dir := t.TempDir()
	ask := func(file string) error {
		_, err := m.seccomp(&runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: file}, nil)
		return err
	}
	wants := func(name, file string, err error, want string) {
		t.Helper()
		if !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "linux.security_context.seccomp: localhost_ref") {
			t.Errorf("%s: %v; want %s", name, err, want)
		}
	}
	for name, c := range map[string]struct{ text, want string }{
		"no JSON":        {`{"defaultAction": `, "unexpected end"},
		"empty":          {`{}`, "defaultAction: not set"},
		"type":           {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": "chmod", "action": "SCMP_ACT_ERRNO"}]}`, "names of type"},
		"default action": {`{"defaultAction": "SCMP_ACT_MAYBE"}`, `defaultAction "SCMP_ACT_MAYBE"`},
		"action":         {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "ERRNO"}]}`, `syscalls (chmod): action "ERRNO"`},
		"notify":         {`{"defaultAction": "SCMP_ACT_NOTIFY"}`, "listenerPath"},
		"architecture":   {`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "amd64"]}`, `architectures[1] "amd64"`},
		"no names":       {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}`, "without names"},
		"index": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO",
			"args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}`, "syscalls (chmod): args[0].index"},
		"operator": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO",
			"args": [{"index": 0, "value": 1, "op": "=="}]}]}`, `args[0].op "=="`},
	} {
		file := filepath.Join(dir, "profile.json")
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		wants(name, file, ask(file), c.want)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	wants("pipe", pipe, ask(pipe), "not a file")
	wants("directory", dir, ask(dir), "not a file")
	wants("device", "/dev/zero", ask("/dev/zero"), "not a file")
}
