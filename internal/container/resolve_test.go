package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

func TestSeccomp(t *testing.T) {
	h, m := start(t)
	m.deps.Options.SeccompDir = t.TempDir()
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`
	named := filepath.Join(m.deps.Options.SeccompDir, "deny.json")
	if err := os.WriteFile(named, []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	local := func(ref string) *runtime.SecurityProfile {
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	standard := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	for _, c := range []struct {
		name   string
		asked  *runtime.SecurityProfile
		action specs.LinuxSeccompAction // of the default; empty = unconfined
		kind   error
	}{
		{"none", nil, "", nil},
		{"unconfined", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}, "", nil},
		{"default", standard, specs.ActErrno, nil},
		{"relative", local("deny.json"), specs.ActAllow, nil},
		{"absolute", local(named), specs.ActAllow, nil},
		{"out of the directory", local("../deny.json"), "", errdef.Invalid},
		{"absent", local("none.json"), "", errdef.Invalid},
		{"no profile", local("/etc/passwd"), "", errdef.Invalid},
		{"no name", local(""), "", errdef.Invalid},
		{"a name with another type", &runtime.SecurityProfile{LocalhostRef: named}, "", errdef.Invalid},
		{"unknown type", &runtime.SecurityProfile{ProfileType: 7}, "", errdef.Invalid},
	} {
		got, err := m.seccomp(c.asked, nil)
		if c.kind != nil {
			wantKind(t, err, c.kind)
			continue
		}
		if err != nil || (got == nil) != (c.action == "") || got != nil && got.DefaultAction != c.action {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}

	plain, _ := m.seccomp(standard, []string{"CAP_KILL"})
	again, _ := m.seccomp(standard, []string{"CAP_KILL"})
	admin, _ := m.seccomp(standard, []string{"CAP_SYS_ADMIN", "CAP_KILL"})
	if plain != again || allows(plain, "mount") || !allows(admin, "mount") {
		t.Error("the default profile is not that of the capabilities, or is made anew each time")
	}

	r := h.request("web")
	r.Config.Linux.SecurityContext.Seccomp = standard
	confined := mustCreate(t, m, r)
	r = h.request("root")
	r.Config.Linux.SecurityContext.Seccomp = standard
	r.Config.Linux.SecurityContext.Privileged = true
	free := mustCreate(t, m, r)
	if h.config(confined.ID()).Linux.Seccomp == nil || h.config(free.ID()).Linux.Seccomp != nil {
		t.Error("the profile did not reach the configuration, or that of a privileged container")
	}

	m.deps.Host.Seccomp = false
	if got, err := m.seccomp(standard, nil); got != nil || err != nil {
		t.Errorf("a kernel without seccomp: %v, %v", got, err)
	}
	_, err := m.seccomp(local(named), nil)
	wantKind(t, err, errdef.Invalid)
}

func allows(p *specs.LinuxSeccomp, call string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, call)
	})
}

func TestDevices(t *testing.T) {
	link := filepath.Join(t.TempDir(), "zero")
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	found, err := devicesAt(link, "/dev/z")
	if err != nil || len(found) != 1 || found[0].Path != "/dev/z" || found[0].Type != "c" || found[0].Major != 1 || found[0].Minor != 5 {
		t.Errorf("a linked device: %+v, %v", found, err)
	}
	below, err := devicesAt("/dev", "/hostdev")
	if err != nil || !slices.ContainsFunc(below, func(d spec.Device) bool { return d.Path == "/hostdev/null" }) {
		t.Errorf("a directory: %d devices, %v", len(below), err)
	}
	for _, bad := range []string{"/etc/passwd", "/dev/none", "dev/null"} {
		_, err := devicesAt(bad, "/dev/x")
		wantKind(t, err, errdef.Invalid)
	}

	h, m := start(t)
	r := h.request("web")
	r.Config.Linux.SecurityContext.Privileged = true
	r.Config.Devices = []*runtime.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/null", Permissions: "r"}}
	devices := h.config(mustCreate(t, m, r).ID()).Linux.Devices
	nulls := slices.DeleteFunc(slices.Clone(devices), func(d specs.LinuxDevice) bool { return d.Path != "/dev/null" })
	if len(devices) < 2 || len(nulls) != 1 || nulls[0].Minor != 5 {
		t.Errorf("privileged: %d devices, at /dev/null %+v", len(devices), nulls)
	}
}

func TestImageRef(t *testing.T) {
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for _, c := range []struct {
		asked   string
		digests []string
		want    string
	}{
		{"busybox:1", []string{"quay.io/b/box" + digest, "docker.io/library/busybox" + digest}, "docker.io/library/busybox" + digest},
		{"other", []string{"quay.io/b/box" + digest}, "quay.io/b/box" + digest},
		{"", []string{"quay.io/b/box" + digest}, "quay.io/b/box" + digest},
		{"busybox", nil, "the-id"},
	} {
		if got := imageRef(storage.Image{ID: "the-id", RepoDigests: c.digests}, c.asked); got != c.want {
			t.Errorf("%q of %v: %s", c.asked, c.digests, got)
		}
	}
}

func TestOwnDirectoriesAreRecognised(t *testing.T) {
	dir := t.TempDir()
	own, link := filepath.Join(dir, "lib", "crid"), filepath.Join(dir, "link")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, link); err != nil {
		t.Fatal(err)
	}
	m := &Manager{deps: Deps{Options: Options{Roots: []string{link}}}}
	for path, want := range map[string]bool{
		"/": true, dir: true, own: true, own + "/mounts": true, own + "2": false, filepath.Join(dir, "other"): false,
	} {
		if got := m.coversOwn(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// grouped are devices that bring groups along.
type grouped []uint32

func (g grouped) Inject(s *specs.Spec, _ []string) error {
	s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, g...)
	return nil
}

func TestStatusTellsTheGroupsOfDevices(t *testing.T) {
	h, m := start(t)
	m.deps.Devices = grouped{4711, 33}
	r := h.request("web")
	r.Config.CDIDevices = []*runtime.CDIDevice{{Name: "example.com/gadget=one"}}
	r.Config.Linux.SecurityContext.RunAsUsername = "web"
	r.Config.Linux.SecurityContext.SupplementalGroups = []int64{4711, 100}
	c := mustStart(t, m, r)
	want := spec.User{UID: 33, GID: 34, Additional: []uint32{33, 34, 100, 4711}, Home: "/srv"}
	if diff := cmp.Diff(want, c.Status().User); diff != "" {
		t.Error(diff)
	}
	again, errs := restart(t, h, m, func() {})
	if diff := cmp.Diff(want, loaded(t, again, c).Status().User); diff != "" || len(errs) > 0 {
		t.Errorf("after a restart: %s, %v", diff, errs)
	}
}

func TestLinksWhereTheKernelsFilesystemsGo(t *testing.T) {
	for _, dir := range kernelDirs {
		root := t.TempDir()
		if err := wantKernelDirs(root); err != nil {
			t.Errorf("without %s: %v", dir, err)
		}
		at := filepath.Join(root, dir)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := wantKernelDirs(root); err != nil {
			t.Errorf("a directory at %s: %v", dir, err)
		}
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("etc", at); err != nil {
			t.Fatal(err)
		}
		err := wantKernelDirs(root)
		wantKind(t, err, errdef.Invalid)
		if !strings.Contains(err.Error(), "symbolic link at "+dir) {
			t.Errorf("the error does not say what is where: %v", err)
		}
	}
}
