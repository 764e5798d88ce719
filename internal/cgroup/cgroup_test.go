package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/isolate"
)

func TestLifeOfALeaf(t *testing.T) {
	modes(t, func(t *testing.T, tree *Tree) {
		top := parent(t, tree)
		leaf := create(t, tree, Names{}.Leaf(top, "a"))
		create(t, tree, leaf) // repeatable
		monitor := create(t, tree, Names{}.MonitorLeaf(top, "b"))
		create(t, tree, top, "other")
		if ids, err := tree.Leaves(top); err != nil || !slices.Equal(ids, []string{"a", "b"}) {
			t.Errorf("leaves %q, %v", ids, err)
		}
		for id, want := range map[string][]string{"a": {leaf}, "b": {monitor}, "c": nil} {
			if found, err := tree.Find(id); err != nil || !slices.Equal(found, want) {
				t.Errorf("found %q of %s, %v; want %q", found, id, err, want)
			}
		}
		if pids, err := tree.Pids(top); err != nil || len(pids) > 0 {
			t.Errorf("pids %v, %v", pids, err)
		}

		one := shell(t, tree, leaf, "echo ready; sleep 100")
		below := shell(t, tree, create(t, tree, leaf, "deep", "er"), "trap '' TERM INT; echo ready; while :; do sleep 100; done")
		neighbour := shell(t, tree, monitor, "echo ready; exec sleep 100")
		pids, err := tree.Pids(leaf)
		if err != nil || !slices.Contains(pids, one.pid()) || !slices.Contains(pids, below.pid()) || slices.Contains(pids, neighbour.pid()) {
			t.Errorf("pids %v, %v", pids, err)
		}
		for _, h := range tree.hierarchies {
			found, err := procs(h.dir + leaf)
			if err != nil || !slices.Contains(found, one.pid()) {
				t.Errorf("%s: pids %v, %v", h.dir, found, err)
			}
		}
		if err := tree.RemoveEmpty(leaf); err != nil { // it is not empty
			t.Error(err)
		}
		if pids, err := tree.Pids(leaf); err != nil || len(pids) == 0 {
			t.Errorf("pids %v, %v", pids, err)
		}

		if err := tree.Remove(t.Context(), leaf); err != nil {
			t.Fatal(err)
		}
		one.killed(t)
		below.killed(t)
		if ids, err := tree.Leaves(top); err != nil || !slices.Equal(ids, []string{"b"}) {
			t.Errorf("leaves %q, %v", ids, err)
		}
		if err := tree.Remove(t.Context(), leaf); err != nil {
			t.Error(err)
		}
		if pids, err := tree.Pids(monitor); err != nil || !slices.Equal(pids, []int{neighbour.pid()}) {
			t.Errorf("the neighbour was touched: %v, %v", pids, err)
		}
		if err := tree.Kill(t.Context(), monitor); err != nil {
			t.Error(err)
		}
		neighbour.killed(t)
	})
}

// hopping are three processes that each fork and exit, over and over: a list of pids is old before it is read. They are
// never many, and end of themselves should the test be wrong.
const hopping = `
	hop() { n=$((n+1)); [ $n -lt 20000 ] || exit; hop & exit; }
	n=0; hop & hop & hop & echo ready; exec sleep 100`

func TestKillEndsWhatForksMeanwhile(t *testing.T) {
	modes(t, func(t *testing.T, tree *Tree) {
		leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "hopping"))
		first := shell(t, tree, leaf, hopping)
		ctx, cancel := context.WithTimeout(t.Context(), isolate.Patient(20*time.Second))
		defer cancel()
		if err := tree.Kill(ctx, leaf); err != nil {
			t.Fatal(err)
		}
		first.killed(t)
		if pids, err := tree.Pids(leaf); err != nil || len(pids) > 0 {
			t.Errorf("pids %v, %v", pids, err)
		}
	})
}

// A container that was paused, or that froze a cgroup of its own, dies all the same.
func TestKillEndsTheFrozen(t *testing.T) {
	modes(t, func(t *testing.T, tree *Tree) {
		leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "frozen"))
		deep := create(t, tree, leaf, "deep")
		outer := shell(t, tree, leaf, "echo ready; sleep 100")
		inner := shell(t, tree, deep, "echo ready; sleep 100")
		freeze(t, tree, deep, true)
		freeze(t, tree, leaf, true)
		ctx, cancel := context.WithTimeout(t.Context(), isolate.Patient(10*time.Second))
		defer cancel()
		if err := tree.Kill(ctx, leaf); err != nil {
			t.Fatal(err)
		}
		outer.killed(t)
		inner.killed(t)
	})
}

// A container that manages threads by cgroups of its own (KubeVirt does) has threads there whose process is elsewhere.
func TestKillEndsWhatHasThreadsElsewhere(t *testing.T) {
	tree := open(t, fact.CgroupV2)
	leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "a"))
	below := create(t, tree, leaf, "threads")
	dir := tree.hierarchies[0].dir + below
	if err := write(dir, "cgroup.type", "threaded"); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), threader+"="+dir)
	c := begin(t, cmd)
	if err := tree.Join(leaf, c.pid()); err != nil {
		t.Fatal(err)
	}
	if said := c.ask(t); said != "ready" {
		t.Fatalf("the process says %q", said)
	}
	if pids, err := tree.Pids(leaf); err != nil || !slices.Equal(pids, []int{c.pid()}) {
		t.Errorf("pids %v, %v; want %d", pids, err, c.pid())
	}
	if pids, err := procs(dir); err != nil || !slices.Equal(pids, []int{c.pid()}) {
		t.Errorf("pids %v, %v in the threaded cgroup; want %d", pids, err, c.pid())
	}
	if err := tree.Kill(t.Context(), leaf); err != nil {
		t.Fatal(err)
	}
	c.killed(t)
}

// A kernel before 5.14 has no cgroup.kill on v2: what is to die is frozen before it gets signals.
func TestKillFreezesWhereNoFileKills(t *testing.T) {
	tree := &Tree{hierarchies: []hierarchy{{dir: t.TempDir(), unified: true}}}
	dir := filepath.Join(tree.hierarchies[0].dir, "crid-a")
	victim := begin(t, exec.Command("sleep", "100"))
	fill := func(file, content string) {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644)); err != nil {
			t.Error(err)
		}
	}
	fill("cgroup.freeze", "0")
	fill("cgroup.procs", strconv.Itoa(victim.pid()))
	var kernel sync.WaitGroup
	kernel.Go(func() {
		victim.killed(t)
		fill("cgroup.procs", "")
	})
	if err := tree.Kill(t.Context(), "/crid-a"); err != nil {
		t.Error(err)
	}
	kernel.Wait()
	if raw, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze")); err != nil || string(raw) != "1" {
		t.Errorf("cgroup.freeze holds %q, %v", raw, err)
	}
}

// Signals alone end what forks all the time once v2 has frozen it, and need nobody to thaw it.
func TestSignalsEndTheFrozen(t *testing.T) {
	tree := open(t, fact.CgroupV2)
	leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "hopping"))
	first := shell(t, tree, leaf, hopping)
	freeze(t, tree, leaf, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for pause := newPause(); ; {
		pids, err := tree.pids(leaf)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			break
		}
		struck, err := tree.signal(leaf, pids)
		if err = errors.Join(err, struck.Close()); err != nil {
			t.Fatal(err)
		}
		if !pause.wait(ctx) {
			t.Fatalf("processes %v are still there", pids)
		}
	}
	first.killed(t)
}

func freeze(t *testing.T, tree *Tree, path string, frozen bool) {
	t.Helper()
	for _, h := range tree.hierarchies {
		var err error
		switch {
		case h.has("freezer"):
			err = write(h.dir+path, "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}[frozen])
		case h.unified:
			err = write(h.dir+path, "cgroup.freeze", map[bool]string{true: "1", false: "0"}[frozen])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKillNamesWhoSurvives(t *testing.T) {
	tree := open(t, fact.CgroupV1) // there a frozen parent keeps its children from dying
	top := parent(t, tree)
	leaf := create(t, tree, Names{}.Leaf(top, "stuck"))
	stuck := shell(t, tree, leaf, "echo ready; exec sleep 100")
	freeze(t, tree, top, true)
	defer freeze(t, tree, top, false)

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for name, op := range map[string]func(context.Context, string) error{"kill": tree.Kill, "remove": tree.Remove} {
		err := op(ctx, leaf)
		if !errors.Is(err, errdef.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%s: got %v", name, err)
		}
		for _, word := range []string{leaf, fmt.Sprintf("process %d (s", stuck.pid()), "waits in "} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: the error does not say %q: %v", name, word, err)
			}
		}
	}

	freeze(t, tree, top, false)
	stuck.killed(t) // SIGKILL was waiting for it
	if err := tree.Remove(t.Context(), leaf); err != nil {
		t.Error(err)
	}
}

func TestNobodyKillsItself(t *testing.T) {
	for mode, name := range map[fact.CgroupMode]string{fact.CgroupV1: "", fact.CgroupV2: "v2"} {
		t.Run(mode.String(), func(t *testing.T) {
			tree := open(t, mode)
			leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "own"))
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), killer+"="+leaf, killerMode+"="+name)
			c := begin(t, cmd)
			if err := tree.Join(leaf, c.pid()); err != nil {
				t.Fatal(err)
			}
			if said := c.ask(t); !strings.Contains(said, errdef.WrongState.Error()) || !strings.Contains(said, "crid itself") {
				t.Errorf("it says %q", said)
			}
			if err := c.cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

// A pid that cannot be seen reads as 0, and a signal to 0 would go to crid's own process group.
func TestForeignPIDNamespaceIsNotHarmful(t *testing.T) {
	tree := open(t, fact.CgroupV2)
	leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "outside"))
	outside := shell(t, tree, leaf, "echo ready; exec sleep 100")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killer+"="+leaf, killerMode+"=v2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setpgid: true}
	c := begin(t, cmd)
	if said := c.ask(t); said != "<nil>" {
		t.Errorf("it says %q", said)
	}
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	outside.killed(t)
}

func TestOOMKills(t *testing.T) {
	tree := open(t, fact.CgroupV1)
	leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "oom"))
	if n, err := tree.OOMKills(leaf); err != nil || n != 0 {
		t.Errorf("got %d, %v", n, err)
	}
	for i, at := range []string{leaf, create(t, tree, leaf, "deep")} {
		for _, h := range tree.hierarchies {
			if h.has("memory") {
				if err := write(h.dir+at, "memory.limit_in_bytes", "8388608"); err != nil {
					t.Fatal(err)
				}
			}
		}
		glutton := begin(t, exec.Command("sh", "-c", "read go; exec dd if=/dev/zero of=/dev/null bs=64M count=1"))
		if err := tree.Join(at, glutton.pid()); err != nil {
			t.Fatal(err)
		}
		if err := glutton.in.Close(); err != nil { // it goes on at end of file, too
			t.Fatal(err)
		}
		glutton.killed(t)
		if n, err := tree.OOMKills(leaf); err != nil || n != uint64(i+1) {
			t.Errorf("got %d, %v", n, err)
		}
	}
	if _, err := tree.OOMKills(leaf + "x"); !errors.Is(err, errdef.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	tree := &Tree{}
	ctx := t.Context()
	calls := map[string]func(path string) error{
		"create":       tree.Create,
		"join":         func(path string) error { return tree.Join(path, 1) },
		"pids":         func(path string) error { _, err := tree.Pids(path); return err },
		"kill":         func(path string) error { return tree.Kill(ctx, path) },
		"remove":       func(path string) error { return tree.Remove(ctx, path) },
		"remove empty": tree.RemoveEmpty,
		"oom kills":    func(path string) error { _, err := tree.OOMKills(path); return err },
	}
	for _, path := range []string{"", "/", "//", "/.", "crid-a", "../crid-a", "/a/../crid-a", "/a/crid-b/..", "/crid-a\x00"} {
		for name, call := range calls {
			if err := call(path); !errors.Is(err, errdef.Invalid) {
				t.Errorf("%s %q: %v", name, path, err)
			}
		}
	}
	for _, path := range []string{"/kubepods", "/kubepods/podx", "/a/xcrid-b", "/a/crid"} {
		for _, name := range []string{"kill", "remove"} {
			if err := calls[name](path); !errors.Is(err, errdef.Invalid) {
				t.Errorf("%s %q: %v", name, path, err)
			}
		}
	}
	if err := tree.Remove(ctx, "/crid-a/b"); !errors.Is(err, errdef.Invalid) {
		t.Errorf("remove what is below ours: %v", err)
	}
	for _, pid := range []int{0, -1} {
		if err := tree.Join("/crid-a", pid); !errors.Is(err, errdef.Invalid) {
			t.Errorf("join %d: %v", pid, err)
		}
	}
}

func TestAbsenceIsFine(t *testing.T) {
	modes(t, func(t *testing.T, tree *Tree) {
		top := parent(t, tree)
		leaf := Names{}.Leaf(top+"/never/made", "a")
		if pids, err := tree.Pids(leaf); err != nil || len(pids) > 0 {
			t.Errorf("pids %v, %v", pids, err)
		}
		if ids, err := tree.Leaves(leaf); err != nil || len(ids) > 0 {
			t.Errorf("leaves %v, %v", ids, err)
		}
		if err := errors.Join(tree.Kill(t.Context(), leaf), tree.Remove(t.Context(), leaf), tree.RemoveEmpty(leaf)); err != nil {
			t.Error(err)
		}
		ended := exec.Command("true")
		if err := ended.Run(); err != nil {
			t.Fatal(err)
		}
		for path, pid := range map[string]int{leaf: os.Getpid(), create(t, tree, top, "there"): ended.Process.Pid} {
			if err := tree.Join(path, pid); !errors.Is(err, errdef.NotFound) {
				t.Errorf("join %s: %v", path, err)
			}
		}
	})
}

// A default parent may go as empty while it gets a new leaf.
func TestCreateWinsAgainstRemoveEmpty(t *testing.T) {
	modes(t, func(t *testing.T, tree *Tree) {
		shared := filepath.Join(parent(t, tree), "default")
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for range 30 {
					leaf := Names{}.Leaf(shared, strconv.Itoa(i))
					err := tree.Create(leaf)
					for _, h := range tree.hierarchies {
						_, statErr := os.Stat(h.dir + leaf)
						err = errors.Join(err, statErr)
					}
					if err = errors.Join(err, tree.Remove(t.Context(), leaf), tree.RemoveEmpty(shared)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		if err := tree.RemoveEmpty(shared); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkLeaf(b *testing.B) {
	isolate.NeedRoot(b, "it makes cgroups")
	tree, err := Open(hostV1)
	if err != nil {
		b.Skip(err)
	}
	top := isolate.CgroupParent()
	for i := range b.N {
		path := Names{}.Leaf(top, strconv.Itoa(i))
		cmd := exec.Command("sleep", "100")
		if err := errors.Join(cmd.Start(), tree.Create(path)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := errors.Join(tree.Join(path, cmd.Process.Pid), tree.Remove(b.Context(), path)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = cmd.Wait() // it was killed
	}
	if err := tree.Remove(b.Context(), top); err != nil {
		b.Error(err)
	}
}
