package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// guarded is a host with both security modules.
type guarded struct {
	relabels *[]string
	meddle   func() // before anything that a request names is relabelled
}

func (guarded) AppArmor(_ context.Context, asked *runtime.SecurityProfile, old string, privileged bool) (string, error) {
	if asked.GetLocalhostRef() == "missing" {
		return "", fmt.Errorf("profile %q is not loaded: %w", "missing", errdef.Invalid)
	}
	return fmt.Sprintf("%s/%s/%v", asked.GetLocalhostRef(), old, privileged), nil
}

func (guarded) SELinux(pod fact.Labels, sc *runtime.LinuxContainerSecurityContext) (fact.Labels, error) {
	if sc.GetPrivileged() {
		pod.Process = "u:r:spc_t:s0"
	}
	return pod, nil
}

func (g guarded) Relabel(path, label string) error {
	*g.relabels = append(*g.relabels, path+" "+label)
	return nil
}

func (g guarded) RelabelOpen(at *os.File, label string) error {
	if g.meddle != nil {
		g.meddle()
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if path == "/usr" {
		err = fmt.Errorf("relabel /usr: %w", errdef.Invalid)
	}
	if err != nil {
		return err
	}
	return g.Relabel(path, label)
}

func TestModulesConfineContainers(t *testing.T) {
	h, m := start(t)
	var relabels []string
	m.deps.Security = guarded{relabels: &relabels}
	dir := t.TempDir()
	request := func(name string) Request {
		r := h.request(name)
		r.Pod.SELinux = fact.Labels{Process: "u:r:container_t:s0", Mount: "u:r:file_t:s0"}
		r.Pod.Shm, r.Pod.Hosts = "/run/pod/shm", "/run/pod/hosts"
		r.Config.Mounts = []*runtime.Mount{
			{HostPath: dir, ContainerPath: "/a", SelinuxRelabel: true},
			{HostPath: "/usr", ContainerPath: "/b"},
		}
		r = r.withData("")
		r.Config.Mounts[2].SelinuxRelabel = true
		r.Config.Linux.SecurityContext.ApparmorProfile = "old"
		r.Config.Linux.SecurityContext.Apparmor = &runtime.SecurityProfile{LocalhostRef: "new"}
		return r
	}
	s := h.config(mustCreate(t, m, request("web")).ID())
	if s.Process.ApparmorProfile != "new/old/false" || s.Process.SelinuxLabel != "u:r:container_t:s0" || s.Linux.MountLabel != "u:r:file_t:s0" {
		t.Errorf("profile %q, labels %q, %q", s.Process.ApparmorProfile, s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
	want := []string{"/run/pod/hosts u:r:file_t:s0", "/run/pod/shm u:r:file_t:s0", dir + " u:r:file_t:s0"}
	if !slices.Equal(relabels, want) {
		t.Errorf("relabelled %q, want %q", relabels, want)
	}

	relabels = nil
	r := request("root")
	r.Config.Linux.SecurityContext.Privileged = true
	s = h.config(mustCreate(t, m, r).ID())
	if s.Process.ApparmorProfile != "new/old/true" || s.Process.SelinuxLabel != "u:r:spc_t:s0" || len(relabels) != 2 {
		t.Errorf("privileged: profile %q, label %q, relabelled %q", s.Process.ApparmorProfile, s.Process.SelinuxLabel, relabels)
	}

	r = request("lost")
	r.Config.Linux.SecurityContext.Apparmor.LocalhostRef = "missing"
	_, err := m.Create(t.Context(), r)
	wantKind(t, err, errdef.Invalid)
	r = request("system")
	r.Config.Mounts[1].SelinuxRelabel = true
	if _, err = m.Create(t.Context(), r); err == nil || !strings.Contains(err.Error(), "mounts[1] (/b): selinux_relabel") {
		t.Errorf("relabelling of /usr: %v", err)
	}
}

func TestPausesAreConfinedAsTheirPodsAsk(t *testing.T) {
	h, m := start(t)
	m.deps.Security = guarded{relabels: new([]string)}
	file := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction": "SCMP_ACT_LOG"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	standard := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
	own := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: file}
	none := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
	const confined, free = "u:r:container_t:s0:c9", "u:r:spc_t:s0"
	for name, c := range map[string]struct {
		asked          *runtime.LinuxSandboxSecurityContext
		armor, selinux string
		seccomp        specs.LinuxSeccompAction // of calls that the profile does not name; empty = no profile
	}{
		"nothing":            {asked: nil, armor: "//false", selinux: confined},
		"seccomp-default":    {asked: &runtime.LinuxSandboxSecurityContext{Seccomp: standard}, armor: "//false", selinux: confined, seccomp: specs.ActErrno},
		"seccomp-of-a-file":  {asked: &runtime.LinuxSandboxSecurityContext{Seccomp: own}, armor: "//false", selinux: confined, seccomp: specs.ActLog},
		"seccomp-unconfined": {asked: &runtime.LinuxSandboxSecurityContext{Seccomp: none}, armor: "//false", selinux: confined},
		"privileged":         {asked: &runtime.LinuxSandboxSecurityContext{Privileged: true, Seccomp: own}, armor: "//true", selinux: free},
		"apparmor":           {asked: &runtime.LinuxSandboxSecurityContext{Apparmor: own}, armor: file + "//false", selinux: confined},
	} {
		env := h.pod()
		env.ID, env.SELinux.Process = name, confined
		env.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: c.asked}
		if _, err := m.StartPause(t.Context(), env); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s, seccomp := h.config(PauseID(name)), specs.LinuxSeccompAction("")
		if s.Linux.Seccomp != nil {
			seccomp = s.Linux.Seccomp.DefaultAction
		}
		if s.Process.ApparmorProfile != c.armor || s.Process.SelinuxLabel != c.selinux || seccomp != c.seccomp {
			t.Errorf("%s: AppArmor profile %q, SELinux label %q, seccomp %q; want %+v", name, s.Process.ApparmorProfile, s.Process.SelinuxLabel, seccomp, c)
		}
	}
	env := h.pod()
	env.ID = "lost"
	env.Config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		Apparmor: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "missing"}}}
	_, err := m.StartPause(t.Context(), env)
	wantKind(t, err, errdef.Invalid)
}

// Somebody puts a link to another directory in the place of the one that is about to be relabelled.
func TestWhatTakesAVolumesPlaceIsNotRelabelled(t *testing.T) {
	h, m := start(t)
	d := newSwappable(t)
	var relabels []string
	m.deps.Security = guarded{&relabels, func() { d.swap(t, d.secret) }}
	r := h.request("web")
	r.Pod.SELinux = fact.Labels{Process: "u:r:container_t:s0", Mount: "u:r:file_t:s0"}
	r.Config.Mounts = []*runtime.Mount{{HostPath: d.asked, ContainerPath: "/a", SelinuxRelabel: true}}
	mustCreate(t, m, r) // the fake runtime has mounted nothing that could be looked at
	if want := d.asked + ".old u:r:file_t:s0"; !slices.Contains(relabels, want) || slices.ContainsFunc(relabels, func(s string) bool { return strings.HasPrefix(s, d.secret) }) {
		t.Errorf("relabelled %q, want %q", relabels, want)
	}
}
