package lsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

func wantKind(t *testing.T, what string, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v; want %v", what, err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v; want it to contain %q", what, err, w)
		}
	}
}

// A host without security modules takes all that asks for none by name.
func TestWithoutModules(t *testing.T) {
	m := Open(t.Context(), fact.Host{})
	if len(m.Warnings()) != 0 {
		t.Errorf("warnings %q", m.Warnings())
	}
	for _, asked := range []*runtime.SecurityProfile{nil, profile(runtime.SecurityProfile_RuntimeDefault, ""), profile(runtime.SecurityProfile_Unconfined, "")} {
		if got, err := m.AppArmor(t.Context(), asked, "", false); got != "" || err != nil {
			t.Errorf("%v: %q, %v", asked, got, err)
		}
	}
	_, err := m.AppArmor(t.Context(), profile(runtime.SecurityProfile_Localhost, "mine"), "", false)
	wantKind(t, "a profile of the node", err, errdef.Invalid, "linux.security_context.apparmor:", `"mine"`, "does not enforce AppArmor")
	labels, err := m.Reserve(&runtime.SELinuxOption{Level: "nonsense"})
	if labels != (fact.Labels{}) || err != nil {
		t.Errorf("labels %v, %v", labels, err)
	}
	was := fact.Labels{Process: "u:r:t:s0:c1,c2"} // of a boot that had SELinux
	if err := errors.Join(m.Retake(was), m.Relabel("/nowhere", "u:r:t:s0")); err != nil {
		t.Error(err)
	}
	m.Release(was)
	if got, err := m.SELinux(was, &runtime.LinuxContainerSecurityContext{}); got != (fact.Labels{}) || err != nil {
		t.Errorf("labels of a container %v, %v", got, err)
	}
}

func profile(typ runtime.SecurityProfile_ProfileType, ref string) *runtime.SecurityProfile {
	return &runtime.SecurityProfile{ProfileType: typ, LocalhostRef: ref}
}

// armor is a kernel that enforces AppArmor.
type armor struct {
	list   string
	listed error
	load   error
	loads  int
}

func (a *armor) Loaded() ([]byte, error) { return []byte(a.list), a.listed }

func (a *armor) Load(_ context.Context, name string) error {
	if a.load != nil {
		return a.load
	}
	a.loads++
	a.list += name + " (enforce)\n"
	return nil
}

func TestAppArmor(t *testing.T) {
	const (
		standard = runtime.SecurityProfile_RuntimeDefault
		free     = runtime.SecurityProfile_Unconfined
		node     = runtime.SecurityProfile_Localhost
	)
	m := &Modules{armor: &armor{list: "mine (enforce)\nhis own (complain)\nfree (unconfined)\nmine//child (enforce)\n"}}
	for _, c := range []struct {
		name       string
		asked      *runtime.SecurityProfile
		deprecated string
		privileged bool
		want       string
		fault      string // in an error of kind Invalid
	}{
		{name: "nothing", want: DefaultProfile},
		{name: "nothing, privileged", privileged: true},
		{name: "default", asked: profile(standard, ""), want: DefaultProfile},
		{name: "default, privileged", asked: profile(standard, ""), privileged: true},
		{name: "unconfined", asked: profile(free, "")},
		{name: "of the node", asked: profile(node, "mine"), want: "mine"},
		{name: "of the node, privileged", asked: profile(node, "mine"), privileged: true, want: "mine"},
		{name: "with the prefix", asked: profile(node, "localhost/mine"), want: "mine"},
		{name: "with a space", asked: profile(node, "his own"), want: "his own"},
		{name: "child", asked: profile(node, "mine//child"), want: "mine//child"},
		{name: "not loaded", asked: profile(node, "localhost/yours"), fault: `apparmor: profile "yours" is not loaded`},
		{name: "part of a name", asked: profile(node, "his"), fault: `"his"`},
		{name: "no name", asked: profile(node, "localhost/"), fault: "localhost_ref is empty"},
		{name: "unknown type", asked: profile(9, ""), fault: "profile_type"},
		{name: "old default", deprecated: "runtime/default", want: DefaultProfile},
		{name: "old unconfined", deprecated: "unconfined"},
		{name: "old of the node", deprecated: "localhost/mine", want: "mine"},
		{name: "old, not loaded", deprecated: "localhost/yours", fault: `apparmor_profile: profile "yours"`},
		{name: "old without prefix", deprecated: "mine", fault: `apparmor_profile: "mine" is none of`},
		{name: "new wins", asked: profile(node, "mine"), deprecated: "localhost/yours", want: "mine"},
		{name: "new wins with none", asked: profile(free, ""), deprecated: "localhost/mine"},
		{name: "new wins with a fault", asked: profile(node, "yours"), deprecated: "localhost/mine", fault: "linux.security_context.apparmor:"},
	} {
		got, err := m.AppArmor(t.Context(), c.asked, c.deprecated, c.privileged)
		if c.fault != "" {
			wantKind(t, c.name, err, errdef.Invalid, c.fault)
			continue
		}
		if got != c.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestTheDefaultProfileIsLoadedWhereItIsMissing(t *testing.T) {
	a := &armor{}
	m := &Modules{armor: a}
	for range 2 {
		if got, err := m.AppArmor(t.Context(), nil, "", false); got != DefaultProfile || err != nil || a.loads != 1 {
			t.Errorf("got %q, %v after %d loads", got, err, a.loads)
		}
	}
	a.list, a.load = "", errors.New("no parser")
	if got, err := m.AppArmor(t.Context(), nil, "", false); got != "" || err != nil {
		t.Errorf("nobody asked for it: %q, %v", got, err)
	}
	_, err := m.AppArmor(t.Context(), profile(runtime.SecurityProfile_RuntimeDefault, ""), "", false)
	wantKind(t, "asked for", err, errdef.Unavailable, DefaultProfile, "no parser")
	a.listed = errors.New("no securityfs")
	_, err = m.AppArmor(t.Context(), profile(runtime.SecurityProfile_Localhost, "mine"), "", false)
	wantKind(t, "unreadable list", err, errdef.Unavailable, "no securityfs")
}

// mandatory is a host with an SELinux policy that knows the types container_t, spc_t and own_t.
type mandatory struct {
	next     int
	taken    map[string]bool
	unknown  string // a type that it does not know after all
	relabels []string
}

func (s *mandatory) Fresh() (process, file string, err error) {
	s.next++
	level := fmt.Sprintf("s0:c%d,c%d", s.next, s.next+500)
	s.taken[level] = true
	return "system_u:system_r:container_t:" + level, "system_u:object_r:container_file_t:" + level, nil
}

func (s *mandatory) Reserve(l string) error { s.taken[levelOf(l)] = true; return nil }
func (s *mandatory) Release(l string)       { delete(s.taken, levelOf(l)) }

func (s *mandatory) Check(l string) error {
	kind := strings.Split(l, ":")[2]
	if kind == s.unknown || !strings.Contains(" container_t spc_t own_t container_file_t ", " "+kind+" ") {
		return unix.EINVAL
	}
	return nil
}

func (s *mandatory) Relabel(path, l string) error {
	if path == "/nfs" {
		return fmt.Errorf("chcon: %w", unix.ENOTSUP)
	}
	if strings.HasPrefix(path, "/proc/") {
		var err error
		if path, err = os.Readlink(path); err != nil {
			return err
		}
	}
	s.relabels = append(s.relabels, path+" "+l)
	return nil
}

func withPolicy() (*Modules, *mandatory) {
	s := &mandatory{taken: map[string]bool{}}
	return &Modules{linux: s, pods: map[string]int{}}, s
}

func TestLabelsOfPods(t *testing.T) {
	m, s := withPolicy()
	one, err := m.Reserve(nil)
	two, err2 := m.Reserve(&runtime.SELinuxOption{Type: "own_t"})
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if one.Process != "system_u:system_r:container_t:s0:c1,c501" || one.Mount != "system_u:object_r:container_file_t:s0:c1,c501" {
		t.Errorf("got %+v", one)
	}
	if two.Process != "system_u:system_r:own_t:s0:c2,c502" || two.Mount != "system_u:object_r:container_file_t:s0:c2,c502" {
		t.Errorf("got %+v", two)
	}
	shared := &runtime.SELinuxOption{Level: "s0:c9,c8"}
	three, err := m.Reserve(shared)
	four, err2 := m.Reserve(shared)
	if err = errors.Join(err, err2); err != nil || three != four || levelOf(three.Mount) != "s0:c9,c8" || len(s.taken) != 3 {
		t.Errorf("two pods of one level: %+v, %+v, %v; taken %v", three, four, err, s.taken)
	}
	m.Release(three)
	if !s.taken["s0:c9,c8"] {
		t.Error("the level is free while a pod has it")
	}
	for _, l := range []fact.Labels{four, one, two} {
		m.Release(l)
	}
	if len(s.taken) != 0 {
		t.Errorf("still taken: %v", s.taken)
	}
	if err := m.Retake(one); err != nil || !s.taken["s0:c1,c501"] {
		t.Errorf("after a restart: %v, %v", s.taken, err)
	}
	m.Release(one)
	for field, o := range map[string]*runtime.SELinuxOption{
		"selinux_options.level":      {Level: "s0,c4,c5"},
		"selinux_options.type":       {Type: "a:b"},
		"selinux_options: the polic": {Type: "unheard_of_t"},
	} {
		_, err := m.Reserve(o)
		wantKind(t, field, err, errdef.Invalid, "linux.security_context."+field)
	}
	if len(s.taken) != 0 {
		t.Errorf("taken by pods that failed: %v", s.taken)
	}
}

func TestLabelsOfContainers(t *testing.T) {
	const node = runtime.NamespaceMode_NODE
	pod := fact.Labels{Process: "system_u:system_r:container_t:s0:c1,c2", Mount: "system_u:object_r:container_file_t:s0:c1,c2"}
	type options = runtime.SELinuxOption
	for _, c := range []struct {
		name    string
		sc      *runtime.LinuxContainerSecurityContext
		process string
		level   string // of files
	}{
		{"the pod's", nil, pod.Process, "s0:c1,c2"},
		{"own level", &runtime.LinuxContainerSecurityContext{SelinuxOptions: &options{Level: "s0"}}, "system_u:system_r:container_t:s0", "s0"},
		{"all", &runtime.LinuxContainerSecurityContext{SelinuxOptions: &options{User: "u", Role: "r", Type: "own_t", Level: "s0:c4,c5"}}, "u:r:own_t:s0:c4,c5", "s0:c4,c5"},
		{"privileged", &runtime.LinuxContainerSecurityContext{Privileged: true}, "system_u:system_r:spc_t:s0:c1,c2", "s0:c1,c2"},
		{"privileged with a level", &runtime.LinuxContainerSecurityContext{Privileged: true, SelinuxOptions: &options{Level: "s0"}}, "system_u:system_r:spc_t:s0", "s0"},
		{"privileged with a type", &runtime.LinuxContainerSecurityContext{Privileged: true, SelinuxOptions: &options{Type: "own_t"}}, "system_u:system_r:own_t:s0:c1,c2", "s0:c1,c2"},
		{"host network", &runtime.LinuxContainerSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Network: node}}, "system_u:system_r:spc_t:s0:c1,c2", "s0:c1,c2"},
		{"host IPC", &runtime.LinuxContainerSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Ipc: node}}, "system_u:system_r:spc_t:s0:c1,c2", "s0:c1,c2"},
		{"host PID", &runtime.LinuxContainerSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: node}}, "system_u:system_r:spc_t:s0:c1,c2", "s0:c1,c2"},
	} {
		m, _ := withPolicy()
		got, err := m.SELinux(pod, c.sc)
		if err != nil || got.Process != c.process || levelOf(got.Mount) != c.level || !strings.Contains(got.Mount, ":container_file_t:") {
			t.Errorf("%s: %+v, %v; want %s", c.name, got, err, c.process)
		}
	}
	m, s := withPolicy()
	_, err := m.SELinux(pod, &runtime.LinuxContainerSecurityContext{SelinuxOptions: &options{Level: "s0,c4,c5"}})
	wantKind(t, "level", err, errdef.Invalid, "selinux_options.level")
	s.unknown = "spc_t"
	got, err := m.SELinux(pod, &runtime.LinuxContainerSecurityContext{Privileged: true})
	if err != nil || got.Process != "" || got.Mount != pod.Mount {
		t.Errorf("a policy without spc_t: %+v, %v", got, err)
	}
}

func TestLevels(t *testing.T) {
	for _, good := range []string{"", "s0", "s0:c1", "s0:c4,c5", "s0:c0.c1023", "s0-s0:c0.c1023", "s1:c1.c3,c7-s15:c1.c9,c12"} {
		if !validLevel(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{"s0,c4,c5", "c1", "s", "s0:", "s0:c", "s0:c1,", "s0:c1.", "s0:c1;c2", "s0-", "s0 ", "s0\n", "s0-s1-s2", "s0:c1.c2.c3"} {
		if validLevel(bad) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestRelabel(t *testing.T) {
	m, s := withPolicy()
	if err := errors.Join(m.Relabel("/vol", "l"), m.Relabel("/nfs", "l"), m.Relabel("/vol", "")); err != nil {
		t.Error(err)
	}
	if len(s.relabels) != 1 || s.relabels[0] != "/vol l" {
		t.Errorf("relabelled %q", s.relabels)
	}
	relabel := func(path string) error {
		at, err := os.OpenFile(path, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
		return m.RelabelOpen(at, "l")
	}
	dir := t.TempDir()
	if err := relabel(dir); err != nil || len(s.relabels) != 2 || s.relabels[1] != dir+" l" {
		t.Errorf("%v, relabelled %q", err, s.relabels)
	}
	for _, own := range []string{"/", "/usr", "/etc/passwd"} {
		wantKind(t, own, relabel(own), errdef.Invalid, own)
	}
}

// Labels are kept, if not obeyed, by a kernel without SELinux.
func TestTheKernelRelabelsWhatIsOpen(t *testing.T) {
	const want = "u:object_r:file_t:s0"
	dir := t.TempDir()
	one, other := filepath.Join(dir, "one"), filepath.Join(dir, "other")
	inside := []string{one, one + "/a", one + "/a/b", one + "/f", other}
	err := errors.Join(os.MkdirAll(one+"/a/b", 0o755), os.Mkdir(other, 0o755), os.WriteFile(one+"/f", nil, 0o600), os.Symlink(other, one+"/link"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir, "security.selinux", []byte(want), 0); err != nil {
		t.Skipf("files have no labels here: %v", err)
	}
	labels := func(moved string) (all []string) {
		for _, path := range inside {
			raw := make([]byte, 99)
			n, err := unix.Lgetxattr(strings.Replace(path, one, moved, 1), "security.selinux", raw)
			all = append(all, strings.TrimRight(string(raw[:max(n, 0)]), "\x00"))
			if err != nil && !errors.Is(err, unix.ENODATA) {
				t.Fatal(err)
			}
		}
		return all
	}
	before := labels(one)
	at, err := os.OpenFile(one, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if err := errors.Join(os.Rename(one, one+".old"), os.Symlink(other, one)); err != nil {
		t.Fatal(err)
	}
	m := &Modules{linux: policy{}}
	if err := m.RelabelOpen(at, want); err != nil {
		t.Fatal(err)
	}
	if got := labels(one + ".old"); !slices.Equal(got, []string{want, want, want, want, before[4]}) || before[4] == want {
		t.Errorf("labels %q, before %q", got, before)
	}
	file, err := os.OpenFile(one+".old/f", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := m.RelabelOpen(file, want+":c1"); err != nil {
		t.Fatal(err)
	}
	if got := labels(one + ".old"); got[3] != want+":c1" {
		t.Errorf("label of a file %q", got[3])
	}
}

func TestAPolicyWithoutContainers(t *testing.T) {
	m := &Modules{linux: bare{}}
	m.tryPolicy()
	if len(m.Warnings()) != 1 || !strings.Contains(m.Warnings()[0], "container-selinux") {
		t.Errorf("warnings %q", m.Warnings())
	}
	if l, err := m.Reserve(nil); l != (fact.Labels{}) || err != nil {
		t.Errorf("got %v, %v", l, err)
	}
	m, s := withPolicy()
	m.tryPolicy()
	if len(m.Warnings()) != 0 || len(s.taken) != 0 || m.linux == nil || m.FileLabel() != "system_u:object_r:container_file_t:s0" {
		t.Errorf("warnings %q, taken %v, label %q", m.Warnings(), s.taken, m.FileLabel())
	}
}

// bare is a policy without labels for containers.
type bare struct{ mandatory }

func (bare) Fresh() (process, file string, err error) { return "", "", nil }
func (bare) Reserve(string) error                     { return nil }
func (bare) Release(string)                           {}
func (bare) Check(string) error                       { return nil }
func (bare) Relabel(string, string) error             { return nil }
