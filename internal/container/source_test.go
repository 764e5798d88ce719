package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
)

func TestOpenSource(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "real/sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "real/file"), nil, 0o600),
		os.Symlink("real", filepath.Join(dir, "link")),
		os.Symlink("loop", filepath.Join(dir, "loop")),
		os.Symlink("none", filepath.Join(dir, "dangles")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"real/sub": "real/sub", "link/sub": "real/sub", "link/file": "real/file", "link": "real"} {
		at, real, err := openSource(filepath.Join(dir, name))
		if err != nil || real != filepath.Join(dir, want) {
			t.Errorf("%s is %s, %v", name, real, err)
			continue
		}
		at.Close()
	}
	if _, _, err := openSource(filepath.Join(dir, "dangles")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dangling link: %v", err)
	}
	for _, name := range []string{"loop", "real/file/x", strings.Repeat("x", 300)} {
		_, _, err := openSource(filepath.Join(dir, name))
		wantKind(t, badPath(err), errdef.Invalid)
	}
}

// A missing source behind a dangling link cannot be made: that is the request's fault.
func TestAHostPathThatCannotBe(t *testing.T) {
	h, m := start(t)
	if err := os.Symlink("/nonexistent/target", filepath.Join(h.dir, "dangles")); err != nil {
		t.Fatal(err)
	}
	r := h.request("web")
	r.Config.Mounts = []*runtime.Mount{{HostPath: h.dir, ContainerPath: "/fine"}, {HostPath: filepath.Join(h.dir, "dangles"), ContainerPath: "/x"}}
	_, err := m.Create(t.Context(), r)
	wantKind(t, err, errdef.Invalid)
	if !strings.Contains(err.Error(), "mounts[1] (/x): ") {
		t.Errorf("the mount is not named: %v", err)
	}
	h.wantNothingLeft(m)
}

// meddling does something in the moment between crid's look at the mounts and the runtime's.
type meddling struct {
	Monitors
	meddle func()
}

func (f meddling) Start(ctx context.Context, s monitor.Spec) (Process, monitor.Ref, error) {
	f.meddle()
	return f.Monitors.Start(ctx, s)
}

func TestRealSwappedSources(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		dir := t.TempDir()
		asked, secret := filepath.Join(dir, "asked"), filepath.Join(dir, "secret")
		for _, name := range []string{asked, secret} {
			if err := os.MkdirAll(filepath.Join(name, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		swap := func(to string) func() {
			return func() {
				if err := errors.Join(os.Rename(asked, asked+".old"), os.Symlink(to, asked)); err != nil {
					t.Error(err)
				}
			}
		}
		back := func() {
			if err := os.Remove(asked); err != nil {
				t.Error(err)
			}
			if err := os.Rename(asked+".old", asked); err != nil {
				t.Error(err)
			}
		}
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		plain := m.deps.Monitors
		create := func(name string, meddle func()) error {
			m.deps.Monitors = meddling{plain, meddle}
			r := h.request(name, "/bin/true")
			r.Config.Mounts = []*runtime.Mount{
				{HostPath: asked, ContainerPath: "/a"},
				{HostPath: filepath.Join(asked, "sub"), ContainerPath: "/a/sub", Readonly: true},
				{HostPath: asked, ContainerPath: "/tmp/b"},
			}
			_, err := m.Create(t.Context(), r)
			return err
		}
		if err := create("plain", func() {}); err != nil {
			t.Errorf("nobody meddles: %v", err)
		}
		err := create("swapped", swap(secret))
		wantKind(t, err, errdef.Invalid)
		if err != nil && !strings.Contains(err.Error(), "mounts[0] (/a): host_path was replaced") {
			t.Errorf("got %v", err)
		}
		back()
		if err := create("moved", swap(asked+".old")); err != nil {
			t.Errorf("another way to the same directory: %v", err)
		}
		back()
		if got := len(m.OfPod(testPod)); got > 2 {
			t.Errorf("%d containers are left", got)
		}
	})
}
