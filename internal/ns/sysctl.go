package ns

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// checkSysctls refuses, without I/O, every sysctl that would not be written into one of w's new namespaces: what is
// left of the name would be the host's own setting.
func checkSysctls(w Want) error {
	for _, name := range slices.Sorted(maps.Keys(w.Sysctls)) {
		words := strings.Split(sysctlPath(name), "/")
		if slices.ContainsFunc(words, func(word string) bool { return word == "" || word == "." || word == ".." }) ||
			strings.ContainsRune(name, 0) {
			return fmt.Errorf("sysctl %q: a name is words with single dots between them: %w", name, errdef.Invalid)
		}
		owner, made := w.owner(name)
		if owner == "" {
			return fmt.Errorf("sysctl %s belongs to the whole host, not to a pod: %w", name, errdef.Invalid)
		}
		if !made {
			return fmt.Errorf("sysctl %s needs a %s namespace of the pod's own: %w", name, owner, errdef.Invalid)
		}
	}
	return nil
}

// owner returns which namespace a sysctl belongs to, empty when to none, and whether w asks for a new one.
func (w Want) owner(name string) (owner string, made bool) {
	owner = fact.SysctlNamespace(name)
	return owner, owner == "net" && w.Net || owner == "ipc" && w.IPC
}

// SysctlError tells which of Want.Sysctls could not be set.
type SysctlError struct {
	Name string
	err  error
}

func (e *SysctlError) Error() string { return e.err.Error() }
func (e *SysctlError) Unwrap() error { return e.err }

// writeSysctls writes the settings for the namespaces of the calling thread: what /proc/sys shows of net, kernel.shm*,
// fs.mqueue and their like follows the thread that opens it. The order is that of the names, so that a failure is
// the same one each time; it also puts net.ipv4.ip_local_port_range before the ip_unprivileged_port_start that the
// kernel measures by it.
func writeSysctls(w Want) error {
	for _, name := range slices.Sorted(maps.Keys(w.Sysctls)) {
		if err := w.setSysctl(name, w.Sysctls[name]); err != nil {
			return &SysctlError{name, fmt.Errorf("set sysctl %s to %q: %w", name, w.Sysctls[name], err)}
		}
	}
	return nil
}

// sysctlPath is where a setting lies below /proc/sys: in a name, dots part words, and a slash is a dot in a word.
func sysctlPath(name string) string {
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// setSysctl knows what differs where a user namespace owns the others: this thread is not in it, so that groups go
// by the host's numbers, and the settings of IPC namespaces obey their root alone, capabilities or not.
func (w Want) setSysctl(name, value string) error {
	if w.Users.None() {
		return writeSysctl(name, value)
	}
	if name == "net.ipv4.ping_group_range" {
		outside, err := hostRange(value, w.Users.GIDs)
		if err != nil {
			return err
		}
		return writeSysctl(name, outside)
	}
	if owner, _ := w.owner(name); owner == "ipc" {
		uid, _ := w.Users.Root()
		return actingAs(uid, func() error { return writeSysctl(name, value) })
	}
	return writeSysctl(name, value)
}

// hostRange turns a range of groups of the pod into the host's numbers. It ends where the map does: the usual default
// names all groups there can be. A range that is none ("1 0": nobody) stays as it is.
func hostRange(value string, gids []fact.IDRange) (string, error) {
	var low, high uint32
	if n, err := fmt.Sscan(value, &low, &high); n != 2 || err != nil || len(strings.Fields(value)) != 2 {
		return "", fmt.Errorf("two numbers are asked for: %w", errdef.Invalid)
	}
	if low > high {
		return value, nil
	}
	ranges := slices.SortedFunc(slices.Values(gids), func(a, b fact.IDRange) int { return cmp.Compare(a.Container, b.Container) })
	first, last, found := uint32(0), uint32(0), false
	for _, r := range ranges {
		switch {
		case !found && low >= r.Container && low-r.Container < r.Length:
			first, found = r.Host+(low-r.Container), true
			last = r.Host + min(high-r.Container, r.Length-1)
		case found && high >= r.Container && r.Container-low == last+1-first && r.Host == last+1:
			last = r.Host + min(high-r.Container, r.Length-1)
		}
	}
	if !found {
		return "", fmt.Errorf("group %d is not in the pod's gid mappings: %w", low, errdef.Invalid)
	}
	return fmt.Sprintf("%d %d", first, last), nil
}

func writeSysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/"+sysctlPath(name), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("this kernel has no such setting: %w", errdef.Invalid)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("the setting is read-only inside a pod: %w", errdef.Invalid)
	case err != nil:
		return invalidIf(err, unix.EISDIR, unix.ENOTDIR, unix.ENAMETOOLONG)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return invalidIf(err, unix.EINVAL, unix.ERANGE, unix.EDOM, unix.E2BIG, unix.EPERM)
	}
	return checkTaken(name, value)
}

// checkTaken reads a setting back: the kernel takes the words that it understands and drops the rest silently. Some
// settings can only be written.
func checkTaken(name, value string) error {
	got, err := os.ReadFile("/proc/sys/" + sysctlPath(name))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return err
	}
	if asked, taken := strings.Fields(value), strings.Fields(string(got)); len(asked) == 0 || len(taken) < len(asked) {
		return fmt.Errorf("the kernel took %q of it: %w", strings.Join(taken, " "), errdef.Invalid)
	}
	return nil
}
