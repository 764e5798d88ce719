package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/golden"
)

// describe writes a description of one device whose only edit is a variable.
func describe(t *testing.T, dir, file, device, variable string) {
	t.Helper()
	text := fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "example.com/gadget",
		"devices": [{"name": %q, "containerEdits": {"env": [%q]}}]}`, device, variable)
	write(t, filepath.Join(dir, file), text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dirs ...string) *Registry {
	t.Helper()
	r, err := Open(dirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// environment is what injecting the devices into an empty configuration sets.
func environment(r *Registry, names ...string) ([]string, error) {
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	err := r.Inject(s, names)
	return s.Process.Env, err
}

func TestDevicesComeAndGo(t *testing.T) {
	base := t.TempDir()
	etc, run := filepath.Join(base, "etc"), filepath.Join(base, "run")
	r := open(t, etc, run) // neither is there yet
	if _, err := environment(r, "example.com/gadget=one"); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "example.com/gadget=one") {
		t.Errorf("before it is described: %v", err)
	}
	if faults := r.Faults(); faults != nil {
		t.Errorf("missing directories are faults: %q", faults)
	}
	describe(t, etc, "a.json", "one", "FROM=etc")
	if got, err := environment(r, "example.com/gadget=one"); err != nil || !slices.Equal(got, []string{"FROM=etc"}) {
		t.Errorf("right after it was described: %v, %v", got, err)
	}
	describe(t, etc, "b.json", "two", "SECOND=yes")
	got, err := environment(r, "example.com/gadget=one", "example.com/gadget=two")
	if err != nil || !slices.Equal(got, []string{"FROM=etc", "SECOND=yes"}) {
		t.Errorf("two: %v, %v", got, err)
	}
	if _, err := environment(open(t), "example.com/gadget=one"); !errors.Is(err, errdef.Invalid) {
		t.Errorf("without directories: %v", err)
	}
	describe(t, run, "a.json", "one", "FROM=run")
	if got, err := environment(open(t, etc, run), "example.com/gadget=one"); err != nil || !slices.Equal(got, []string{"FROM=run"}) {
		t.Errorf("the later directory: %v, %v", got, err)
	}
}

// Nothing but the watching tells that a description that is known has changed.
func TestDescriptionsAreWatched(t *testing.T) {
	dir := t.TempDir()
	describe(t, dir, "a.json", "one", "VERSION=1")
	r := open(t, dir)
	if got, err := environment(r, "example.com/gadget=one"); err != nil || !slices.Equal(got, []string{"VERSION=1"}) {
		t.Fatalf("at first: %v, %v", got, err)
	}
	eventually := func(what string, holds func(env []string, err error) bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; <-time.After(5 * time.Millisecond) {
			got, err := environment(r, "example.com/gadget=one")
			if holds(got, err) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v, %v", what, got, err)
			}
		}
	}
	describe(t, dir, "a.json", "one", "VERSION=2")
	eventually("changed", func(env []string, err error) bool { return err == nil && slices.Equal(env, []string{"VERSION=2"}) })
	if err := os.Remove(filepath.Join(dir, "a.json")); err != nil {
		t.Fatal(err)
	}
	eventually("removed", func(_ []string, err error) bool { return errors.Is(err, errdef.Invalid) })
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	describe(t, dir, "b.json", "one", "VERSION=3")
	eventually("in a directory that came again", func(env []string, err error) bool { return err == nil && slices.Equal(env, []string{"VERSION=3"}) })
	describe(t, dir, "b.json", "one", "VERSION=4")
	eventually("changed there", func(env []string, err error) bool { return err == nil && slices.Equal(env, []string{"VERSION=4"}) })
}

// All that a description can say of a device arrives in the configuration.
func TestWhatADescriptionBrings(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{Env: []string{"A=kept"}, User: specs.User{AdditionalGids: []uint32{5}}},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := open(t, "testdata/cdi").Inject(s, []string{"example.com/gadget=all"}); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "gadget", s)
}

func TestBadDevices(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "node.json"), `{"cdiVersion": "0.6.0", "kind": "example.com/gadget",
		"devices": [{"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/not-there"}]}}]}`)
	write(t, filepath.Join(dir, "broken.json"), `{"cdiVersion": `)
	r := open(t, dir)
	for _, c := range []struct {
		device string
		kind   error
		words  string
	}{
		{"gadget", errdef.Invalid, `"gadget"`},
		{"example.com/gadget=", errdef.Invalid, `"example.com/gadget="`},
		{"example.com/other=x", errdef.Invalid, "broken.json"},
		{"example.com/gadget=gone", errdef.Unavailable, "/dev/not-there"},
	} {
		if _, err := environment(r, c.device); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v; want %v with %s", c.device, err, c.kind, c.words)
		}
	}
	if faults := r.Faults(); len(faults) != 1 || !strings.Contains(faults[0], "broken.json") || strings.Contains(faults[0], "\n") {
		t.Errorf("faults %q", faults)
	}
	if got, err := environment(r); err != nil || got != nil {
		t.Errorf("no devices: %v, %v", got, err)
	}
}
