package lsm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// unconfined is the type of processes that SELinux is not to keep from the host.
const unconfined = "spc_t"

// seLinux is the policy's side, and the memory of which pairs of categories are taken.
type seLinux interface {
	Fresh() (process, file string, err error) // a container's, with a pair that nobody has; empty = the policy has none
	Reserve(label string) error               // taken already = nil
	Release(label string)
	Check(context string) error // nil = the policy knows it
	Relabel(path, label string) error
}

// Reserve gives a pod its labels: what its options say, and else the policy's for containers with a pair of
// categories that no other pod has. Each success needs one Release. Without SELinux the labels are empty, whatever the
// options say.
func (m *Modules) Reserve(options *runtime.SELinuxOption) (fact.Labels, error) {
	if m.linux == nil {
		return fact.Labels{}, nil
	}
	process, file, err := m.linux.Fresh()
	if err != nil {
		return fact.Labels{}, fmt.Errorf("choose SELinux labels: %w", err)
	}
	labels, err := m.amend(fact.Labels{Process: process, Mount: file}, options)
	if err != nil || options.GetLevel() != "" {
		m.linux.Release(process)
	}
	if err != nil {
		return fact.Labels{}, err
	}
	return labels, m.Retake(labels)
}

// Retake reserves the labels of a pod that was there before crid started. Each success needs one Release.
func (m *Modules) Retake(l fact.Labels) error {
	if m.linux == nil || l.Process == "" {
		return nil
	}
	level := levelOf(l.Process)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[level] == 0 {
		if err := m.linux.Reserve(l.Process); err != nil {
			return fmt.Errorf("reserve SELinux label %s: %w", l.Process, err)
		}
	}
	m.pods[level]++
	return nil
}

// Release lets others have the pair of categories once no pod has it any more: several may have asked for the same.
func (m *Modules) Release(l fact.Labels) {
	if m.linux == nil || l.Process == "" {
		return
	}
	level := levelOf(l.Process)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[level]--; m.pods[level] <= 0 {
		delete(m.pods, level)
		m.linux.Release(l.Process)
	}
}

// levelOf is what follows user, role and type.
func levelOf(l string) string {
	parts := strings.SplitN(l, ":", 4)
	return parts[len(parts)-1]
}

// SELinux is the labels of one of the pod's containers: the pod's with the container's own options over them. A
// privileged container, and one in a namespace of the host, is not confined unless it names a type. Options that the
// policy does not know are Invalid.
func (m *Modules) SELinux(pod fact.Labels, sc *runtime.LinuxContainerSecurityContext) (fact.Labels, error) {
	if m.linux == nil || pod.Process == "" {
		return fact.Labels{}, nil
	}
	labels, err := m.amend(pod, sc.GetSelinuxOptions())
	if err != nil || sc.GetSelinuxOptions().GetType() != "" || !free(sc) {
		return labels, err
	}
	process, err := selinux.NewContext(labels.Process)
	if err != nil {
		return fact.Labels{}, fmt.Errorf("SELinux label %q: %w", labels.Process, err)
	}
	process["type"] = unconfined
	labels.Process = process.Get()
	if m.linux.Check(labels.Process) != nil {
		labels.Process = "" // a policy without the type: its transition from the runtime decides
	}
	return labels, nil
}

// free tells whether a container is meant to reach the host.
func free(sc *runtime.LinuxContainerSecurityContext) bool {
	o := sc.GetNamespaceOptions()
	const node = runtime.NamespaceMode_NODE
	return sc.GetPrivileged() || o.GetNetwork() == node || o.GetIpc() == node || o.GetPid() == node
}

// amend puts options over labels. Files have the user and level of the process, and keep their role and type.
func (m *Modules) amend(l fact.Labels, o *runtime.SELinuxOption) (fact.Labels, error) {
	if o.GetUser() == "" && o.GetRole() == "" && o.GetType() == "" && o.GetLevel() == "" {
		return l, nil
	}
	const field = "linux.security_context.selinux_options"
	for _, part := range []struct{ name, value string }{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}} {
		if strings.ContainsAny(part.value, ": \t\n\x00") {
			return fact.Labels{}, fmt.Errorf("%s.%s %q: not a single word: %w", field, part.name, part.value, errdef.Invalid)
		}
	}
	if !validLevel(o.GetLevel()) {
		return fact.Labels{}, fmt.Errorf("%s.level %q: not a sensitivity with categories, such as s0 or s0:c1,c2: %w",
			field, o.GetLevel(), errdef.Invalid)
	}
	process, err := set(l.Process, map[string]string{
		"user": o.GetUser(), "role": o.GetRole(), "type": o.GetType(), "level": o.GetLevel()})
	if err != nil {
		return fact.Labels{}, err
	}
	mount, err := set(l.Mount, map[string]string{"user": o.GetUser(), "level": o.GetLevel()})
	if err != nil {
		return fact.Labels{}, err
	}
	for _, l := range []string{process, mount} {
		if err := m.linux.Check(l); err != nil {
			return fact.Labels{}, fmt.Errorf("%s: the policy does not know %s: %w: %w", field, l, errdef.Invalid, err)
		}
	}
	return fact.Labels{Process: process, Mount: mount}, nil
}

// set replaces the parts of a label that have a value.
func set(l string, parts map[string]string) (string, error) {
	c, err := selinux.NewContext(l)
	if err != nil {
		return "", fmt.Errorf("SELinux label %q: %w", l, err)
	}
	for part, value := range parts {
		if value != "" {
			c[part] = value
		}
	}
	return c.Get(), nil
}

// validLevel tells whether s is a level of the usual form, or none: one or two sensitivities, each with categories.
func validLevel(s string) bool {
	const one = `s\d{1,4}(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?`
	return s == "" || regexp.MustCompile(`^`+one+`(-`+one+`)?$`).MatchString(s)
}

// Relabel gives a file, or a directory with all in it, the label that lets containers with it in. What cannot have
// labels keeps what it has. The path is one that nobody but crid can replace.
func (m *Modules) Relabel(path, fileLabel string) error {
	if m.linux == nil || fileLabel == "" {
		return nil
	}
	if err := m.linux.Relabel(path, fileLabel); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

// hostsOwn is what containers would shut the host's programs out of if it had their label.
var hostsOwn = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt", "/proc",
	"/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", "/var", "/var/lib", "/var/log",
}

// RelabelOpen is Relabel for what at was opened on (O_PATH suffices), whatever has its name by now. Invalid for the
// host's own directories.
func (m *Modules) RelabelOpen(at *os.File, fileLabel string) error {
	if m.linux == nil || fileLabel == "" {
		return nil
	}
	held := fmt.Sprintf("/proc/self/fd/%d", at.Fd())
	name, err := os.Readlink(held)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", at.Name(), err)
	}
	if slices.Contains(hostsOwn, name) {
		return fmt.Errorf("relabel %s: it is the host's own, mount a directory below it: %w", name, errdef.Invalid)
	}
	if err := m.Relabel(held, fileLabel); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// policy is the real kernel.
type policy struct{}

func (policy) Fresh() (process, file string, err error) { return label.InitLabels(nil) }

func (policy) Reserve(l string) error {
	if err := selinux.ReserveLabelV2(l); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		return err
	}
	return nil
}

func (policy) Release(l string)           { selinux.ReleaseLabel(l) }
func (policy) Check(context string) error { return selinux.SecurityCheckContext(context) }

// Relabel follows path, which may be a link to an open file, and no link below it. The library follows none, and labels
// what its walk begins with last, as this does.
func (policy) Relabel(path, l string) error {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for _, e := range entries {
		if err := selinux.Chcon(filepath.Join(path, e.Name()), l, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return selinux.SetFileLabel(path, l)
}
