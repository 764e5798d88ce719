package cgroup

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/isolate"
)

// limiting returns the tree of a machine with v2 alone whose root hands controllers down already, as systemd has it do: a
// test does not change it.
func limiting(t *testing.T) *Tree {
	t.Helper()
	isolate.NeedRoot(t, "it makes cgroups")
	gives, err := os.ReadFile(mountRoot + "/cgroup.subtree_control")
	given := strings.Fields(string(gives))
	if err != nil || !slices.Contains(given, "memory") || !slices.Contains(given, "cpu") {
		t.Skipf("the root of this machine's cgroups hands down %q, %v", given, err)
	}
	tree, err := Open(fact.Host{Cgroup: fact.CgroupV2, Controllers: given})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestLimitsOfARealCgroupOnV2(t *testing.T) {
	tree := limiting(t)
	path := create(t, tree, parent(t, tree), "crid-limits")
	for _, set := range []Limits{
		{"cpu.max": "30000 100000", "memory.max": "10485760", "memory.high": "8388608"},
		{"cpu.max": "max 50000", "memory.max": "max", "memory.high": "max"},
	} {
		if err := tree.SetLimits(path, set); err != nil {
			t.Fatal(err)
		}
		now, err := tree.Limits(path)
		if err != nil {
			t.Fatal(err)
		}
		for file, want := range set {
			if now[file] != want {
				t.Errorf("%s holds %q, want %q", file, now[file], want)
			}
		}
	}
	if err := tree.SetLimits(path, Limits{"cpu.max": "30000 100000", "memory.max": "10485760"}); err != nil {
		t.Fatal(err)
	}
	got, err := tree.Details(path)
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[Figure]uint64{CPUQuota: 30000, CPUPeriod: 100000, MemoryLimit: 10 << 20, MemoryReservation: 0, OOMKills: 0, LimitHits: 0} {
		if n, has := got.Figures[f]; n != want || !has {
			t.Errorf("figure %d is %d, %v, want %d", f, n, has, want)
		}
	}
	for _, f := range []Figure{UserTime, SystemTime, Periods, CPUShares, Cache, MappedFile, KernelMemory} {
		if _, has := got.Figures[f]; !has {
			t.Errorf("figure %d is missing", f)
		}
	}
}

// The kernel counts for a whole subtree, also what was in a cgroup that is gone.
func TestOOMKillsOfARealCgroupOnV2(t *testing.T) {
	tree := limiting(t)
	leaf := create(t, tree, Names{}.Leaf(parent(t, tree), "oom"))
	deep := create(t, tree, leaf, "deep")
	if err := tree.SetLimits(leaf, Limits{"memory.max": "8388608"}); err != nil {
		t.Fatal(err)
	}
	want := func(when string, kills uint64) {
		t.Helper()
		if n, err := tree.OOMKills(leaf); err != nil || n != kills {
			t.Errorf("%s: %d, %v, want %d", when, n, err, kills)
		}
	}
	want("at first", 0)
	glutton := begin(t, exec.Command("sh", "-c", "read go; exec dd if=/dev/zero of=/dev/null bs=64M count=1"))
	if err := tree.Join(deep, glutton.pid()); err != nil {
		t.Fatal(err)
	}
	if err := glutton.in.Close(); err != nil { // it goes on at end of file, too
		t.Fatal(err)
	}
	glutton.killed(t)
	want("after a kill", 1)
	if err := tree.RemoveEmpty(deep); err != nil {
		t.Fatal(err)
	}
	want("when its cgroup is gone", 1)
}
