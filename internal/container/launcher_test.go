package container

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/test/isolate"
)

// odd is a request whose environment is not UTF-8. The command lies in a volume, so that only a launcher can tell
// whether it is there.
func (h *host) odd() Request {
	r := h.request("odd")
	r.Config.Command = []string{"/vol/run", "x"}
	r.Config.Mounts = []*runtime.Mount{{HostPath: h.dir, ContainerPath: "/vol"}}
	r.Config.Envs = []*runtime.KeyValue{{Key: "ODD", Value: []byte("\xff\xfe")}, {Key: "EVEN", Value: []byte("\u20ac")}}
	r.Config.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: int64(os.Getuid())}
	return r
}

func TestALauncherSetsWhatIsNotUTF8(t *testing.T) {
	isolate.NeedRoot(t, "it gives files to the pod's root")
	h, m := start(t)
	c := mustStart(t, m, h.odd())
	config := h.config(c.ID())
	if want := []string{spec.LauncherPath, "/vol/run", "x"}; !slices.Equal(config.Process.Args, want) {
		t.Errorf("arguments %q, want %q", config.Process.Args, want)
	}
	if !slices.Contains(config.Process.Env, "ODD=") || !slices.Contains(config.Process.Env, "EVEN=\u20ac") {
		t.Errorf("environment %q", config.Process.Env)
	}
	launcher := filepath.Join(config.Root.Path, spec.LauncherPath)
	raw, err := os.ReadFile(launcher)
	if err != nil || !bytes.Contains(raw, []byte("ODD=\xff\xfe\x00")) {
		t.Errorf("the launcher does not know the value: %v, %q", err, raw)
	}
	if info, err := os.Stat(launcher); err != nil || info.Mode() != 0o500 {
		t.Errorf("the launcher's mode is %v, %v", info.Mode(), err)
	}
	closeManager(t, m)

	again := h.boot().open()
	defer closeManager(t, again)
	if errs := again.Load(t.Context()); len(errs) > 0 {
		t.Fatal(errs)
	}
	for _, manager := range []*Manager{m, again} {
		c, err := manager.Get(c.ID())
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Exec(t.Context(), []string{"ls", "-l"}, 0, 100)
		if err != nil || string(out.Stdout) != spec.LauncherPath+" ls -l" {
			t.Errorf("exec: %q, %v", out.Stdout, err)
		}
	}
	if c, err := again.Get(c.ID()); err != nil || c.Remove(t.Context()) != nil {
		t.Errorf("remove: %v", err)
	}
	h.wantNothingLeft(again)
}

func TestNoLauncherWhereAllIsUTF8(t *testing.T) {
	h, m := start(t)
	r := h.odd()
	r.Config.Envs = r.Config.Envs[1:]
	config := h.config(mustCreate(t, m, r).ID())
	if _, err := os.Lstat(filepath.Join(config.Root.Path, spec.LauncherPath)); !errors.Is(err, os.ErrNotExist) || config.Process.Args[0] != "/vol/run" {
		t.Errorf("%v, arguments %q", err, config.Process.Args)
	}
}

func TestAMissingCommandIsRefusedBeforeItsLauncher(t *testing.T) {
	h, m := start(t)
	r := h.odd()
	r.Config.Command = []string{"nonesuch"}
	_, err := m.Create(t.Context(), r)
	wantKind(t, err, errdef.Invalid)
	if err == nil || !strings.Contains(err.Error(), `"nonesuch"`) {
		t.Errorf("it does not name the command: %v", err)
	}
	h.wantNothingLeft(m)
}

func TestALauncherTakesThePlaceOfWhatTheImageHas(t *testing.T) {
	name := filepath.Join(t.TempDir(), "launcher")
	if err := os.Symlink("elsewhere", name); err != nil {
		t.Fatal(err)
	}
	if err := installLauncher(name, []byte("new"), os.Getuid(), os.Getgid()); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(name); err != nil || string(raw) != "new" {
		t.Errorf("%q, %v", raw, err)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(name), "elsewhere")); err == nil {
		t.Error("a link of the image was followed")
	}
	full := filepath.Join(t.TempDir(), "full")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := installLauncher(full, nil, os.Getuid(), os.Getgid()); err == nil {
		t.Error("a directory was replaced")
	}
}

func TestFindCommand(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"bin", "usr/bin", "vol", "srv/deep"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"bin/sh": "/usr/bin/busybox", "lib": "usr/lib", "away": "/vol/x", "vol/hidden": "/usr", "through": "vol/hidden/bin",
		"loop": "/loop", "srv/up": "../usr/bin", "run": "vol", "out": "../../../../usr/bin/busybox", "broken": "/no/such",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/bin/busybox"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		found      bool
	}{
		{"sh", "/usr/bin:/bin", true},
		{"sh", "/usr/bin:/lib:/broken", false},
		{"sh", "", false},
		{"busybox", "bin:", false},
		{"busybox", "../usr/bin", true},
		{"tool", "/vol", true},          // who knows
		{"tool", "/usr/bin:/run", true}, // a mount point behind a link
		{"/bin/sh", "", true},
		{"/bin/sh/x", "/bin", false},
		{"/bin/bash", "/bin", false},
		{"/away/tool", "", true},    // a link into a volume
		{"/through/tool", "", true}, // a link that a volume hides
		{"/loop", "", true},
		{"/srv/up/busybox", "", true},
		{"/srv/up/sh", "", false},
		{"/out", "", true},
		{"/broken", "", false},
		{"./deep", "", true},
		{"../bin/sh", "", true},
		{"/nested/mount/tool", "", true},
	} {
		s := &specs.Spec{
			Process: &specs.Process{Args: []string{spec.LauncherPath, c.name}, Cwd: "/srv"},
			Mounts:  []specs.Mount{{Destination: "/run"}, {Destination: "/nested/mount"}},
		}
		err := findCommand(root, s, c.path)
		if c.found != (err == nil) {
			t.Errorf("%s, PATH %q: %v; want found: %v", c.name, c.path, err, c.found)
		}
		if err != nil {
			wantKind(t, err, errdef.Invalid)
		}
	}
}
