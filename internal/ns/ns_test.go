package ns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

var everything = Want{Net: true, IPC: true, UTS: true}

// newPinner returns one with directories of its own and checks at the end that no pin is left.
func newPinner(t *testing.T) *Pinner {
	t.Helper()
	needRoot(t)
	top := t.TempDir()
	p := New(filepath.Join(top, "netns"), filepath.Join(top, "run", "ns"))
	t.Cleanup(func() {
		if ids, err := p.List(); err != nil || len(ids) > 0 {
			t.Errorf("left behind: %q, %v", ids, err)
		}
		for _, m := range mounts(t, top) {
			if m.FSType == "nsfs" {
				t.Errorf("left behind: a mount at %s", m.Mountpoint)
			}
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Error(err)
			}
		}
	})
	return p
}

func mounts(t *testing.T, below string) []*mountinfo.Info {
	t.Helper()
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(below))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func pin(t *testing.T, p *Pinner, id string, w Want) Set {
	t.Helper()
	set, err := p.Pin(t.Context(), id, w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Unpin(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return set
}

// within runs a shell in the namespaces of set and returns what it says.
func within(t *testing.T, set Set, script string) string {
	t.Helper()
	var args []string
	for name, path := range set.pins() {
		args = append(args, "--"+name+"="+path)
	}
	out, err := exec.CommandContext(t.Context(), "nsenter", append(args, "sh", "-c", script)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func TestPinnedNamespacesAreNewAndFurnished(t *testing.T) {
	p := newPinner(t)
	w := everything
	w.Hostname = "pod-7"
	w.Sysctls = map[string]string{
		"net.ipv4.ping_group_range":           "0 1234",
		"net.ipv4.ip_unprivileged_port_start": "0",
		"kernel.shm_rmid_forced":              "1",
		"kernel.msgmax":                       "4096",
		"kernel.sem":                          "100 200 30 40",
		"fs.mqueue.msg_max":                   "100",
	}
	read := func(set Set) string {
		return within(t, set, "hostname; cd /proc/sys; cat net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start"+
			" kernel/shm_rmid_forced kernel/msgmax kernel/sem fs/mqueue/msg_max")
	}
	before := read(Set{})

	set := pin(t, p, "a", w)

	if want := p.Paths("a", w); set != want {
		t.Errorf("got %v, want %v", set, want)
	}
	want := "pod-7\n0\t1234\n0\n1\n4096\n100\t200\t30\t40\n100"
	if got := read(set); got != want {
		t.Errorf("inside:\n%s\nwant:\n%s", got, want)
	}
	if got := read(Set{}); got != before {
		t.Errorf("the host changed from\n%s\nto\n%s", before, got)
	}
	for name, path := range set.pins() {
		if inode(t, path) == inode(t, "/proc/self/ns/"+name) {
			t.Errorf("%s is the host's", name)
		}
	}
}

func TestOnlyWhatIsWantedIsPinned(t *testing.T) {
	p := newPinner(t)
	for i, w := range []Want{{}, {Net: true}, {IPC: true}, {UTS: true, Hostname: "h"}, {IPC: true, UTS: true}} {
		id := fmt.Sprint("some", i)
		set := pin(t, p, id, w)
		if set != p.Paths(id, w) {
			t.Errorf("%+v: got %+v", w, set)
		}
		if (set.Net != "") != w.Net || (set.IPC != "") != w.IPC || (set.UTS != "") != w.UTS {
			t.Errorf("%+v: got %+v", w, set)
		}
		for _, path := range set.pins() {
			inode(t, path)
		}
	}
}

func TestUnpinNeedsOnlyTheIDAndMayBeRepeated(t *testing.T) {
	p := newPinner(t)
	if _, err := p.Pin(t.Context(), "a", everything); err != nil {
		t.Fatal(err)
	}
	kept := pin(t, p, "ab", everything)
	if ids, err := p.List(); err != nil || !slices.Equal(ids, []string{"a", "ab"}) {
		t.Errorf("got %q, %v", ids, err)
	}
	again := New(p.netDir, p.dir) // as after a restart
	for range 3 {
		if err := again.Unpin(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := p.List(); err != nil || !slices.Equal(ids, []string{"ab"}) {
		t.Errorf("got %q, %v", ids, err)
	}
	if name := within(t, kept, "echo lives"); name != "lives" {
		t.Error(name)
	}
}

func TestUnpinDoesNotWaitForUsers(t *testing.T) {
	p := newPinner(t)
	set, err := p.Pin(t.Context(), "used", everything)
	if err != nil {
		t.Fatal(err)
	}
	var user []*os.File
	for _, path := range set.pins() {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		user = append(user, f)
	}
	if err := p.Unpin(t.Context(), "used"); err != nil {
		t.Error(err)
	}
	for _, f := range user {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What interrupted calls leave is listed, and Unpin takes it away.
func TestUnpinCollectsWhatACrashLeft(t *testing.T) {
	p := newPinner(t)
	pin(t, p, "other", everything)
	left := p.Paths("left", everything)
	if err := os.WriteFile(left.Net, nil, 0o444); err != nil { // made, not yet mounted
		t.Fatal(err)
	}
	if err := os.WriteFile(left.UTS, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for range 2 { // mounted twice
		if err := unix.Mount("/proc/self/ns/uts", left.UTS, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := p.List(); err != nil || !slices.Equal(ids, []string{"left", "other"}) {
		t.Errorf("got %q, %v", ids, err)
	}
	if err := p.Unpin(t.Context(), "left"); err != nil {
		t.Error(err)
	}
}

func TestPinIsAllOrNothing(t *testing.T) {
	for name, c := range map[string]struct {
		id      string
		want    Want
		arrange func(p *Pinner) error
		kind    error
		names   string // what the error must say
	}{
		"no such sysctl": {
			want: Want{Net: true, UTS: true, Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}},
			kind: errdef.Invalid, names: "net.ipv4.no_such_thing",
		},
		"refused value": {
			want: Want{Net: true, IPC: true, Sysctls: map[string]string{
				"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "many",
			}},
			kind: errdef.Invalid, names: `net.ipv4.ip_unprivileged_port_start to "many"`,
		},
		"value out of range": {
			want: Want{IPC: true, Sysctls: map[string]string{"fs.mqueue.msg_max": "-5"}},
			kind: errdef.Invalid, names: "fs.mqueue.msg_max",
		},
		"a directory of sysctls": {
			want: Want{Net: true, Sysctls: map[string]string{"net.ipv4": "1"}},
			kind: errdef.Invalid, names: "net.ipv4",
		},
		"hostname too long": {
			want: Want{UTS: true, Hostname: strings.Repeat("h", 65)},
			kind: errdef.Invalid, names: "hostname",
		},
		"ipc pinned already": {
			want: everything, kind: errdef.Exists, names: "/ipc/a",
			arrange: func(p *Pinner) error {
				_, err := p.Pin(context.Background(), "a", Want{IPC: true})
				return err
			},
		},
		"directory that cannot be": {
			want: everything, names: "directory",
			arrange: func(p *Pinner) error { return os.WriteFile(p.netDir, nil, 0o600) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPinner(t)
			if c.arrange != nil {
				if err := c.arrange(p); err != nil {
					t.Fatal(err)
				}
			}
			set, err := p.Pin(t.Context(), "a", c.want)
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.names) {
				t.Errorf("got %v", err)
			}
			if set != (Set{}) {
				t.Errorf("got %v beside the error", set)
			}
			if c.kind == errdef.Exists { // the other's pin is not touched
				inode(t, p.Paths("a", everything).IPC)
				if err := p.Unpin(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			}
			if info, err := os.Stat(p.netDir); err == nil && !info.IsDir() {
				if err := os.Remove(p.netDir); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRefusedWithoutTouchingAnything(t *testing.T) {
	p := New("/nonexistent/netns", "/nonexistent/ns")
	for _, id := range []string{"", ".", "..", "a/b", "../a", "a\x00"} {
		if _, err := p.Pin(t.Context(), id, everything); !errors.Is(err, errdef.Invalid) {
			t.Errorf("pin %q: %v", id, err)
		}
		if err := p.Unpin(t.Context(), id); !errors.Is(err, errdef.Invalid) {
			t.Errorf("unpin %q: %v", id, err)
		}
	}
	for _, c := range []struct {
		name string
		want Want
	}{
		{"net/ipv4/ip_forward", everything},
		{"net..ipv4", everything},
		{"net.//.kernel.panic", everything},
		{"net./.forwarding", everything},
		{"net.ipv4.", everything},
		{".net.ipv4", everything},
		{"net.../../kernel.panic", everything},
		{"", everything},
		{"vm.swappiness", everything},
		{"kernel.panic", everything},
		{"kernel.semaphore", everything},
		{"kernel.hostname", everything}, // that is what Hostname is for
		{"fs.file-max", everything},
		{"user.max_net_namespaces", everything},
		{"net.ipv4.ip_forward", Want{IPC: true, UTS: true}},
		{"kernel.shmmax", Want{Net: true, UTS: true}},
		{"fs.mqueue.msg_max", Want{Net: true, UTS: true}},
		{"kernel.domainname", everything},
		{"kernel.sem_next_id", everything},
		{"net.ipv4.ip_forward", Want{}},
	} {
		c.want.Sysctls = map[string]string{c.name: "1"}
		if _, err := p.Pin(t.Context(), "a", c.want); !errors.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("sysctl %q: %v", c.name, err)
		}
	}
	if ids, err := p.List(); err != nil || len(ids) > 0 {
		t.Errorf("got %q, %v", ids, err)
	}
	if err := p.Unpin(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestAnEndedContextPinsNothing(t *testing.T) {
	p := newPinner(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Pin(ctx, "a", everything); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := p.Unpin(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDirectoriesAreMountsAsOthersExpect(t *testing.T) {
	p := newPinner(t)
	for i := range 3 {
		pin(t, p, fmt.Sprint("p", i), everything)
	}
	for dir, shared := range map[string]bool{p.netDir: true, p.dir: false} {
		at := slices.DeleteFunc(mounts(t, dir), func(m *mountinfo.Info) bool { return m.Mountpoint != dir })
		if len(at) != 1 || strings.Contains(at[0].Optional, "shared:") != shared {
			t.Errorf("%s: %d mounts, %+v", dir, len(at), at)
		}
	}
	for dir, mode := range map[string]fs.FileMode{p.netDir: 0o755, p.dir: 0o700} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

// A directory that `ip netns` set up is taken as it is, and each sees the other's namespaces.
func TestSharesTheDirectoryWithOthers(t *testing.T) {
	p := newPinner(t)
	if err := errors.Join(
		os.Mkdir(p.netDir, 0o755),
		unix.Mount(p.netDir, p.netDir, "", unix.MS_BIND|unix.MS_REC, ""),
		unix.Mount("", p.netDir, "", unix.MS_SHARED|unix.MS_REC, ""),
		os.WriteFile(filepath.Join(p.netDir, "blue"), nil, 0o444),
	); err != nil {
		t.Fatal(err)
	}
	slave := exec.CommandContext(t.Context(), "unshare", "-m", "--propagation", "slave", "sh", "-c",
		"echo ready; read go; stat -c %i "+filepath.Join(p.netDir, "crid-a"))
	stdin, err := slave.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := slave.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := slave.Start(); err != nil {
		t.Fatal(err)
	}
	var seen uint64
	if _, err := fmt.Fscanln(stdout, new(string)); err != nil {
		t.Fatal(err)
	}
	set := pin(t, p, "a", Want{Net: true})
	if _, err := fmt.Fprintln(stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(stdout, &seen); err != nil || seen != inode(t, set.Net) {
		t.Errorf("a mount namespace that follows ours sees inode %d, %v", seen, err)
	}
	if err := slave.Wait(); err != nil {
		t.Error(err)
	}
	if ids, err := p.List(); err != nil || !slices.Equal(ids, []string{"a"}) {
		t.Errorf("got %q, %v", ids, err)
	}
}

func TestNoThreadStaysInTheWrongNamespaces(t *testing.T) {
	p := newPinner(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			id := fmt.Sprint("p", i)
			w := everything
			w.Hostname = id
			if i%4 == 0 {
				w.Sysctls = map[string]string{"net.core.no_such_thing": "1"} // fails inside
			}
			if _, err := p.Pin(t.Context(), id, w); (err != nil) != (i%4 == 0) {
				t.Error(err)
			}
			if err := p.Unpin(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net", "ipc", "uts"} {
		home, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			link, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns", name))
			if err == nil && link != home {
				t.Errorf("thread %s is in %s, the process in %s", task.Name(), link, home)
			}
		}
	}
}

// A thread whose way home is barred is given up with its goroutine.
func TestALostThreadDies(t *testing.T) {
	needRoot(t)
	lost := 0
	err := inNew(unsharing(unix.CLONE_NEWUTS), func() error {
		lost = unix.Gettid()
		// Without CAP_SYS_ADMIN, which a thread has for itself, setns is refused.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		return unix.Capset(&header, &none[0])
	})
	if err != nil {
		t.Fatal(err)
	}
	for try := 0; ; try++ {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", lost))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil || try == 1000 {
			t.Fatalf("thread %d lives on: %v", lost, err)
		}
		if _, err := unix.Poll(nil, 1); err != nil && !errors.Is(err, unix.EINTR) { // a thread's end has no event
			t.Fatal(err)
		}
	}
}

func BenchmarkPin(b *testing.B) {
	needRoot(b)
	top := b.TempDir()
	p := New(filepath.Join(top, "netns"), filepath.Join(top, "ns"))
	w := everything
	w.Hostname, w.Sysctls = "h", map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	for i := range b.N {
		id := fmt.Sprint(i)
		if _, err := p.Pin(b.Context(), id, w); err != nil {
			b.Fatal(err)
		}
		if err := p.Unpin(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	for _, dir := range []string{p.netDir, p.dir} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			b.Error(err)
		}
	}
}
