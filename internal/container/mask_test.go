package container

import (
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
)

func TestMasksAreConfirmed(t *testing.T) {
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	confirm := func(terminal bool, masked ...string) error {
		return confirmMasks(root, &specs.Spec{Process: &specs.Process{Terminal: terminal}, Linux: &specs.Linux{MaskedPaths: masked}})
	}
	if err := confirm(false, "/no/such/file", "/dev/null", "/dev/null/below", "/dev"); err != nil {
		t.Errorf("what is masked, or is not there: %v", err)
	}
	if err := confirm(true); err != nil {
		t.Errorf("a console: %v", err)
	}
	err = confirm(false, "/dev/null", "/proc/uptime")
	wantKind(t, err, errdef.Invalid)
	if !strings.Contains(err.Error(), "/proc/uptime") {
		t.Errorf("the error does not name the path: %v", err)
	}
}
