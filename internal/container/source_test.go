package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/storage"
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
	file := filepath.Join(h.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "a/b")
	for _, bad := range []string{filepath.Join(h.dir, "dangles"), filepath.Join(h.dir, "dangles/x"), file + "/x", file + "/x/y"} {
		r.Config.Mounts = []*runtime.Mount{{HostPath: missing, ContainerPath: "/fine"}, {HostPath: bad, ContainerPath: "/x"}}
		_, err := m.Create(t.Context(), r)
		wantKind(t, err, errdef.Invalid)
		if err != nil && !strings.Contains(err.Error(), "mounts[1] (/x): ") {
			t.Errorf("the mount is not named: %v", err)
		}
		if _, err := os.Lstat(filepath.Dir(missing)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory was made for a request that was refused: %v", err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
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

// swappable are two directories of the host, one of which somebody can replace, and what replaces it.
type swappable struct{ asked, secret string }

func newSwappable(t *testing.T) swappable {
	t.Helper()
	dir := t.TempDir()
	d := swappable{filepath.Join(dir, "asked"), filepath.Join(dir, "secret")}
	for _, name := range []string{d.asked, d.secret} {
		if err := os.MkdirAll(filepath.Join(name, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// swap puts a link in the place of asked until t ends.
func (d swappable) swap(t *testing.T, to string) {
	t.Helper()
	if err := errors.Join(os.Rename(d.asked, d.asked+".old"), os.Symlink(to, d.asked)); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(d.asked), os.Rename(d.asked+".old", d.asked)); err != nil {
			t.Error(err)
		}
	})
}

func TestRealSwappedSources(t *testing.T) {
	eachRuntime(t, func(t *testing.T, h *machine) {
		d := newSwappable(t)
		m, end := h.open()
		defer end()
		defer h.removeAll(m)
		plain := m.deps.Monitors
		mount := func(host, inside string) *runtime.Mount { return &runtime.Mount{HostPath: host, ContainerPath: inside} }
		usual := []*runtime.Mount{mount(d.asked, "/a"), mount(d.asked+"/sub", "/a/sub"), mount(d.asked, "/tmp/b")}
		for _, tc := range []struct {
			name   string
			to     string // empty: nobody meddles
			mounts []*runtime.Mount
			wrong  string // the mount that is refused
		}{
			{"plain", "", usual, ""},
			{"swapped", d.secret, usual, "mounts[0] (/a)"},
			{"moved", d.asked + ".old", usual, ""},
			{"another of the request", d.secret, []*runtime.Mount{mount(d.secret, "/s"), mount(d.asked, "/a")}, "mounts[1] (/a)"},
			{"below another of the request", d.secret + "/sub", []*runtime.Mount{mount(d.secret, "/s"), mount(d.asked, "/a")}, "mounts[1] (/a)"},
			{"one over the other by a link", "", []*runtime.Mount{mount(d.asked, "/opt"), mount(d.secret, "/link")}, ""},
			{"one over the other's parent by a link", "", []*runtime.Mount{mount(d.asked, "/opt/sub"), mount(d.secret, "/tmp/link")}, ""},
		} {
			t.Run(tc.name, func(t *testing.T) {
				m.deps.Rootfs = linkedRootfs{plainRootfs{filepath.Join(h.dir, "rootfs")}}
				m.deps.Monitors = meddling{plain, func() {
					if tc.to != "" {
						d.swap(t, tc.to)
					}
				}}
				r := h.request(strings.ReplaceAll(tc.name, " ", "-"), "/bin/true")
				r.Config.Mounts = tc.mounts
				_, err := m.Create(t.Context(), r)
				if tc.wrong == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				wantKind(t, err, errdef.Invalid)
				if err != nil && !strings.Contains(err.Error(), tc.wrong+": host_path was replaced") {
					t.Errorf("got %v", err)
				}
			})
		}
		if got := len(m.OfPod(testPod)); got > 4 {
			t.Errorf("%d containers are left", got)
		}
	})
}

// linkedRootfs has symbolic links to a directory.
type linkedRootfs struct{ plainRootfs }

func (l linkedRootfs) Mount(ctx context.Context, id, image string, o storage.Owner) (string, error) {
	dir, err := l.plainRootfs.Mount(ctx, id, image, o)
	return dir, errors.Join(err, os.MkdirAll(filepath.Join(dir, "tmp"), 0o755), os.MkdirAll(filepath.Join(dir, "opt/sub"), 0o755),
		os.Symlink("opt", filepath.Join(dir, "link")), os.Symlink("../opt", filepath.Join(dir, "tmp/link")))
}

// A mount of a device lies where it wants, over mounts of the request, too.
func TestMountsThatHideASource(t *testing.T) {
	c := &creation{sources: []source{{dest: "/a/b", name: "/x"}, {dest: "/a", name: "/y"}}}
	own, parent := specs.Mount{Destination: "/a/b", Source: "/x"}, specs.Mount{Destination: "/a", Source: "/y"}
	for name, tc := range map[string]struct {
		mounts []specs.Mount
		masked []string
		want   bool
	}{
		"nothing":              {[]specs.Mount{parent, own}, nil, false},
		"a later one above":    {[]specs.Mount{own, {Destination: "/a/", Source: "/device"}}, nil, true},
		"an earlier one above": {[]specs.Mount{{Destination: "/a", Source: "/device"}, own}, nil, false},
		"one in its place":     {[]specs.Mount{{Destination: "/a/b", Source: "/device"}}, nil, true},
		"one of the request":   {[]specs.Mount{own, parent}, nil, false},
		"another":              {[]specs.Mount{own, {Destination: "/a/bc", Source: "/device"}}, nil, false},
		"a masked path":        {[]specs.Mount{own}, []string{"/a/"}, true},
	} {
		s := &specs.Spec{Mounts: tc.mounts, Linux: &specs.Linux{MaskedPaths: tc.masked}}
		if got := c.hidden(c.sources[0], s); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// The test itself plays the container's process: what it has at secret was to be what it has at asked.
func TestHooksDoNotHideWhatTheRuntimeDid(t *testing.T) {
	d := newSwappable(t)
	at, real, err := openSource(d.asked)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	c := &Container{creation: &creation{sources: []source{{at: at, field: "mounts[0] (/x)", real: real, dest: d.secret, name: real}}}}
	one := []specs.Hook{{Path: "/bin/true"}}
	for name, tc := range map[string]struct {
		hooks *specs.Hooks
		blind bool // to sources that were replaced
	}{
		"none":            {nil, false},
		"empty":           {&specs.Hooks{}, false},
		"prestart":        {&specs.Hooks{Prestart: one}, true},
		"createRuntime":   {&specs.Hooks{CreateRuntime: one}, true},
		"createContainer": {&specs.Hooks{CreateContainer: one}, true},
		"startContainer":  {&specs.Hooks{StartContainer: one}, false},
		"poststart":       {&specs.Hooks{Poststart: one}, false},
		"poststop":        {&specs.Hooks{Poststop: one}, false},
	} {
		s := &specs.Spec{
			Root: &specs.Root{Path: "/"}, Process: &specs.Process{}, Linux: &specs.Linux{}, Hooks: tc.hooks,
			Mounts: []specs.Mount{{Destination: d.secret, Source: real}},
		}
		err := c.confirmMounts(os.Getpid(), s)
		if tc.blind != (err == nil) || !tc.blind && (!errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "host_path was replaced")) {
			t.Errorf("%s: a source that was replaced: %v", name, err)
		}
		s.Linux.MaskedPaths = []string{"/proc/uptime"}
		if err := c.confirmMounts(os.Getpid(), s); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "/proc/uptime") {
			t.Errorf("%s: a masked path that shows the kernel's file: %v", name, err)
		}
	}
}
