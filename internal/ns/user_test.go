package ns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// owned is everything with a user namespace of two lines.
func owned() Want {
	w := everything
	w.Users = fact.IDMap{
		UIDs: []fact.IDRange{{Container: 0, Host: 100000, Length: 1000}, {Container: 1000, Host: 300000, Length: 1000}},
		GIDs: []fact.IDRange{{Container: 0, Host: 200000, Length: 1000}, {Container: 1000, Host: 201000, Length: 500}, {Container: 1500, Host: 400000, Length: 10}},
	}
	return w
}

func TestAUserNamespaceOwnsTheOthers(t *testing.T) {
	p := newPinner(t)
	w := owned()
	w.Hostname = "pod-7"
	w.Sysctls = map[string]string{
		"net.ipv4.ping_group_range":           "0 2147483647",
		"net.ipv4.ip_unprivileged_port_start": "0",
		"kernel.shm_rmid_forced":              "1",
		"kernel.msgmax":                       "4096",
		"kernel.sem":                          "100 200 30 40",
		"fs.mqueue.msg_max":                   "100",
	}
	read := "hostname; cd /proc/sys; cat net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start" +
		" kernel/shm_rmid_forced kernel/msgmax kernel/sem fs/mqueue/msg_max"
	before := within(t, Set{}, read)

	set := pin(t, p, "a", w)

	if want := p.Paths("a", w); set != want || set.User != filepath.Join(p.dir, "user", "a") {
		t.Errorf("got %v, want %v", set, want)
	}
	if got, want := within(t, set, read), "pod-7\n0\t1499\n0\n1\n4096\n100\t200\t30\t40\n100"; got != want {
		t.Errorf("inside:\n%s\nwant:\n%s", got, want)
	}
	if got := within(t, Set{}, read); got != before {
		t.Errorf("the host changed from\n%s\nto\n%s", before, got)
	}
	maps := strings.Fields(within(t, set, "cat /proc/self/uid_map /proc/self/gid_map; cat /proc/self/setgroups"))
	want := strings.Fields("0 100000 1000 1000 300000 1000 0 200000 1000 1000 201000 500 1500 400000 10 allow")
	if !slices.Equal(maps, want) {
		t.Errorf("maps %q, want %q", maps, want)
	}
	user := inode(t, set.User)
	for _, path := range []string{set.Net, set.IPC, set.UTS} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := errors.Join(unix.Fstat(owner, &st), unix.Close(owner)); err != nil {
			t.Fatal(err)
		}
		if st.Ino != user {
			t.Errorf("%s belongs to user namespace %d, not to the pod's %d", path, st.Ino, user)
		}
	}
}

func TestOnlyAUserNamespace(t *testing.T) {
	p := newPinner(t)
	w := Want{Users: owned().Users}
	if set := pin(t, p, "a", w); set != (Set{User: p.all("a").User}) {
		t.Errorf("got %+v", set)
	}
	inode(t, p.all("a").User)
}

func TestRefusedMapsLeaveNothing(t *testing.T) {
	p := newPinner(t)
	for name, uids := range map[string][]fact.IDRange{
		"overlap inside":  {{Container: 0, Host: 1000, Length: 100}, {Container: 50, Host: 5000, Length: 100}},
		"overlap outside": {{Container: 0, Host: 1000, Length: 100}, {Container: 100, Host: 1050, Length: 100}},
		"empty":           {{Container: 0, Host: 1000}},
	} {
		w := everything
		w.Users = fact.IDMap{UIDs: uids, GIDs: owned().Users.GIDs}
		if _, err := p.Pin(t.Context(), "a", w); !errors.Is(err, errdef.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := owned()
	w.Sysctls = map[string]string{"net.ipv4.no_such_thing": "1"}
	if _, err := p.Pin(t.Context(), "a", w); !errors.Is(err, errdef.Invalid) {
		t.Errorf("a sysctl that is none: %v", err)
	}
	w.Sysctls = map[string]string{"net.ipv4.ping_group_range": "5000 6000"}
	if _, err := p.Pin(t.Context(), "a", w); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "5000") {
		t.Errorf("a range outside the map: %v", err)
	}
	if ids, err := p.List(); err != nil || len(ids) > 0 {
		t.Errorf("left: %q, %v", ids, err)
	}
	out, err := exec.CommandContext(t.Context(), "pgrep", "-P", fmt.Sprint(os.Getpid()), "-f", "crid-namespaces").Output()
	if len(out) > 0 {
		t.Errorf("left processes: %s, %v", out, err)
	}
}

func TestThreadsStayThemselves(t *testing.T) {
	p := newPinner(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			id := fmt.Sprint("p", i)
			w := owned()
			w.Hostname, w.Sysctls = id, map[string]string{"kernel.shmmni": "100"}
			if _, err := p.Pin(t.Context(), id, w); err != nil {
				t.Error(err)
			}
			if err := p.Unpin(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(filepath.Join(task, "status"))
		if err == nil && !strings.Contains(string(status), "\nUid:\t0\t0\t0\t0\n") {
			t.Errorf("%s has not root's ids:\n%s", task, status)
		}
		if link, err := os.Readlink(filepath.Join(task, "ns/ipc")); err == nil && link != own {
			t.Errorf("%s is in %s, the process in %s", task, link, own)
		}
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 1 {
		t.Errorf("dumpable: %d, %v", dumpable, err)
	}
}

func TestHostRange(t *testing.T) {
	gids := owned().Users.GIDs
	for value, want := range map[string]string{
		"0 2147483647": "200000 201499",
		"0 10":         "200000 200010",
		"990 1010":     "200990 201010",
		"1 0":          "1 0",
		"1200 9999":    "201200 201499",
		"1505 9999":    "400005 400009",
	} {
		if got, err := hostRange(value, gids); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", value, got, err, want)
		}
	}
	for _, bad := range []string{"", "1", "x y", "1510 2000", "-1 5", "0 10 20"} {
		if got, err := hostRange(bad, gids); !errors.Is(err, errdef.Invalid) {
			t.Errorf("%q: %s, %v", bad, got, err)
		}
	}
}

// The kernel takes a map of less than a page. Whoever calls Pin sees to that.
func TestAMapOfNearlyAPage(t *testing.T) {
	p := newPinner(t)
	w := Want{}
	for text := 0; text < 4060; {
		i := uint32(len(w.Users.UIDs))
		r := fact.IDRange{Container: i, Host: 1000000000 + i, Length: 1}
		w.Users.UIDs = append(w.Users.UIDs, r)
		text += len(fmt.Sprintf("%d %d %d\n", r.Container, r.Host, r.Length))
	}
	w.Users.GIDs = w.Users.UIDs
	pin(t, p, "a", w)
}

func TestWhyAUserNamespaceIsRefused(t *testing.T) {
	for _, c := range []struct {
		err   error
		scope string
		kind  error
		words string
	}{
		{unix.EPERM, "3\n", errdef.Unsupported, "kernel.yama.ptrace_scope is 3"},
		{unix.EPERM, "1\n", errdef.Unsupported, "this host does not let crid"},
		{unix.EPERM, "", errdef.Unsupported, "host ids of userns_options"},
		{unix.EINVAL, "3\n", errdef.Invalid, "the kernel refuses the id mappings of userns_options"},
		{unix.ENOSPC, "0\n", errdef.Exhausted, "max_*_namespaces"},
	} {
		if err := holderError(&os.PathError{Op: "fork/exec", Err: c.err}, c.scope); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%v with ptrace_scope %q: %v", c.err, c.scope, err)
		}
	}
}

// limited, in the environment, makes the test program one that may make no user namespace.
const limited = "CRID_TEST_NO_USER_NAMESPACES"

// The kernel says ENOSPC when there are as many user namespaces as there may be, never EINVAL.
func TestNoMoreUserNamespaces(t *testing.T) {
	needRoot(t)
	if os.Getenv(limited) == "" { // the limit is one of the user namespace that it is set in
		ids := []syscall.SysProcIDMap{{Size: 1 << 20}}
		again := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNoMoreUserNamespaces$")
		again.Env = append(os.Environ(), limited+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	err := withHolder(owned(), func(string) error { return nil })
	if !errors.Is(err, errdef.Exhausted) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "max_*_namespaces") {
		t.Error(err)
	}
}
