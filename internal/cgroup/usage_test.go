package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crid/crid/internal/errdef"
)

// Files as kernels wrote them, shortened to what is read and a little more.
var (
	recordedV1 = map[string]string{
		"cpuset/cpuset.cpus":                          "0-3,8\n",
		"cpuset/cpuset.mems":                          "0\n",
		"cpuacct/p/crid-c/cpuacct.usage":              "123456789\n",
		"memory/p/crid-c/memory.usage_in_bytes":       "52428800\n",
		"memory/p/crid-c/memory.limit_in_bytes":       "104857600\n",
		"memory/p/crid-c/memory.memsw.limit_in_bytes": "157286400\n",
		"memory/p/crid-c/cgroup.procs":                "10\n11\n",
		"memory/p/crid-c/exec/cgroup.procs":           "12\n",
		"memory/p/crid-c/memory.stat":                 statV1,
		"cpu/p/crid-c/cpu.shares":                     "512\n",
		"cpu/p/crid-c/cpu.cfs_period_us":              "100000\n",
		"cpu/p/crid-c/cpu.cfs_quota_us":               "-1\n",
		"memory/p/crid-free/memory.usage_in_bytes":    "4096\n",
		"memory/p/crid-free/memory.stat":              "total_inactive_file 8192\nhierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n",
		"cpuacct/p/crid-free/cpuacct.usage":           "1\n",
	}
	recordedV2 = map[string]string{
		"cpuset.cpus.effective":        "0-3,8\n",
		"cpuset.mems.effective":        "0\n",
		"p/crid-c/memory.events":       "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n",
		"p/memory.max":                 "209715200\n",
		"p/memory.swap.max":            "max\n",
		"p/crid-c/cpu.stat":            "usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\nnr_periods 0\n",
		"p/crid-c/cpu.max":             "max 100000\n",
		"p/crid-c/cpu.pressure":        "some avg10=1.50 avg60=0.25 avg300=0.01 total=4242\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"p/crid-c/memory.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"p/crid-c/io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"p/crid-c/memory.current":      "52428800\n",
		"p/crid-c/memory.max":          "max\n",
		"p/crid-c/memory.high":         "max\n",
		"p/crid-c/memory.swap.current": "4096\n",
		"p/crid-c/memory.swap.max":     "8192\n",
		"p/crid-c/memory.stat":         "anon 20971520\nfile 31457280\nkernel 4096\ninactive_anon 0\nactive_anon 20971520\ninactive_file 10485760\nactive_file 20971520\npgfault 900\npgmajfault 3\n",
		"p/crid-c/cgroup.procs":        "10\n11\n",
		"p/crid-c/cgroup.freeze":       "0\n",
		"p/crid-old/cpu.stat":          "usage_usec 1\n",
		"p/crid-old/memory.current":    "1\n",
		"p/crid-old/memory.stat":       "anon 1\n",
	}
)

const statV1 = `cache 31457280
rss 1
mapped_file 4096
pgfault 1
inactive_file 1
hierarchical_memory_limit 104857600
hierarchical_memsw_limit 157286400
total_cache 31457280
total_rss 20971520
total_swap 4096
total_pgfault 900
total_pgmajfault 3
total_inactive_anon 0
total_active_anon 20971520
total_inactive_file 10485760
total_active_file 20971520
total_unevictable 0
`

func recorded(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func recordedTrees(t *testing.T) (v1, v2 *Tree) {
	t.Helper()
	root := recorded(t, recordedV1)
	v1 = &Tree{}
	for _, controller := range []string{"cpu", "cpuacct", "cpuset", "memory"} {
		v1.hierarchies = append(v1.hierarchies, hierarchy{dir: filepath.Join(root, controller), controllers: []string{controller}})
	}
	v2 = &Tree{hierarchies: []hierarchy{{dir: recorded(t, recordedV2), controllers: []string{"cpu", "cpuset", "memory", "io"}, unified: true}}}
	return v1, v2
}

func TestUsageOfRecordedFiles(t *testing.T) {
	v1, v2 := recordedTrees(t)
	memory := Memory{Usage: 50 << 20, InactiveFile: 10 << 20, ActiveFile: 20 << 20, RSS: 20 << 20,
		Limit: 100 << 20, Faults: 900, MajorFaults: 3, Swap: 4096, SwapLimit: 50 << 20}
	pressed := memory
	pressed.Limit, pressed.SwapLimit, pressed.Pressure = 200<<20, 8192, &Pressure{} // the limit is its parent's
	for _, c := range []struct {
		name, path string
		tree       *Tree
		want       Usage
	}{
		{"v1", "/p/crid-c", v1, Usage{CPU: CPU{Usage: 123456789}, Memory: memory}},
		{"v1 without limits", "/p/crid-free", v1, Usage{CPU: CPU{Usage: 1}, Memory: Memory{Usage: 4096, InactiveFile: 8192, Limit: NoLimit, SwapLimit: NoLimit}}},
		{"v2", "/p/crid-c", v2, Usage{
			CPU:    CPU{Usage: 123456000, Pressure: &Pressure{Some: Stall{4242000, 1.5, 0.25, 0.01}, Full: Stall{Total: 7000}}},
			Memory: pressed,
			IO:     &Pressure{Some: Stall{Total: 1000}},
		}},
		{"v2 of a kernel without pressure and swap", "/p/crid-old", v2, Usage{CPU: CPU{Usage: 1000}, Memory: Memory{Usage: 1, RSS: 1, Limit: 200 << 20, SwapLimit: NoLimit}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.tree.Usage(c.path)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
	for _, tree := range []*Tree{v1, v2} {
		if _, err := tree.Usage("/p/crid-none"); !errors.Is(err, errdef.NotFound) {
			t.Errorf("of a cgroup that is not there: %v", err)
		}
		if n, err := tree.MemoryInUse("/p/crid-c"); n != 20<<20 || err != nil {
			t.Errorf("in use %d, %v", n, err)
		}
	}
	if got := (Memory{Usage: 4096, InactiveFile: 8192}).WorkingSet(); got != 0 {
		t.Errorf("a working set of %d", got)
	}
	if pids, err := v1.Members("/p/crid-c"); !slices.Equal(pids, []int{10, 11, 12}) || err != nil {
		t.Errorf("members %v, %v", pids, err)
	}
	if pids, err := v2.Members("/p/crid-none"); len(pids) > 0 || err != nil {
		t.Errorf("members %v, %v", pids, err)
	}
}

func TestPlacesOfRecordedFiles(t *testing.T) {
	v1, v2 := recordedTrees(t)
	for tree, want := range map[*Tree]string{v1: "0-3,8", v2: "0-3,8", {}: ""} {
		cpus, mems, err := tree.Places()
		if err != nil || cpus != want || (mems == "0") != (want != "") {
			t.Errorf("CPUs %q, memory nodes %q, %v", cpus, mems, err)
		}
	}
}

// The kernel counts the victims of a cgroup and of those below it, and apart from them the groups that it killed whole.
func TestOOMKillsOfRecordedFiles(t *testing.T) {
	_, v2 := recordedTrees(t)
	for path, want := range map[string]uint64{"/p/crid-c": 2, "/p/crid-old": 0} {
		if n, err := v2.OOMKills(path); n != want || err != nil {
			t.Errorf("%s: %d kills, %v", path, n, err)
		}
	}
	if _, err := v2.OOMKills("/p/crid-none"); !errors.Is(err, errdef.NotFound) {
		t.Errorf("of a cgroup that is not there: %v", err)
	}
}

func TestLimitsOfRecordedFiles(t *testing.T) {
	v1, v2 := recordedTrees(t)
	want := Limits{"cpu.shares": "512", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1",
		"memory.limit_in_bytes": "104857600", "memory.memsw.limit_in_bytes": "157286400"}
	got, err := v1.Limits("/p/crid-c", "cgroup.freeze")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("v1: %v\n%s", err, diff)
	}
	want = Limits{"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max", "memory.swap.max": "8192", "cgroup.freeze": "0"}
	got, err = v2.Limits("/p/crid-c", "cgroup.freeze", "rdma.max", "memory.nonesuch")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("v2: %v\n%s", err, diff)
	}
	if _, err := v2.Limits("/p/crid-none"); !errors.Is(err, errdef.NotFound) {
		t.Errorf("of a cgroup that is not there: %v", err)
	}
	for file, tree := range map[string]*Tree{"memory.nonesuch": v2, "hugetlb.2MB.max": v2, "cgroup.freeze": v1, "memory.x/../y": v1} {
		if err := tree.SetLimits("/p/crid-c", Limits{file: "1"}); !errors.Is(err, errdef.NotFound) {
			t.Errorf("set %s: %v", file, err)
		}
	}
}

// Raised and lowered limits of memory and swap must be written in opposite orders.
func TestLimitsAreSetInAnyOrder(t *testing.T) {
	tree := open(t, hostV1.Cgroup)
	path := create(t, tree, parent(t, tree), "crid-limits")
	fresh, err := tree.Limits(path)
	if err != nil {
		t.Fatal(err)
	}
	both := func(memory, swap, quota string) Limits {
		return Limits{"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": swap, "cpu.cfs_quota_us": quota}
	}
	for _, l := range []Limits{both("10485760", "20971520", "5000"), both("104857600", "104857600", "7000"), both("4194304", "5242880", "-1"), fresh} {
		if err := tree.SetLimits(path, l); err != nil {
			t.Error(err)
		}
		now, err := tree.Limits(path)
		want := maps.Clone(fresh)
		maps.Copy(want, l)
		if diff := cmp.Diff(want, now); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	for _, quota := range []string{"5", "17592186044416"} { // the bounds of internal/oci/spec, as this kernel has them
		if err := tree.SetLimits(path, Limits{"cpu.cfs_quota_us": quota}); err == nil {
			t.Errorf("quota %s, which the kernel refuses, was set", quota)
		}
	}
	if err := tree.SetLimits(path, Limits{"cpu.cfs_quota_us": "17592186044415"}); err != nil {
		t.Error(err)
	}
}

// A list of processes is as long as it is: files of any length are read to their end.
func TestMembersOfManyProcesses(t *testing.T) {
	for _, n := range []int{0, 1, 400, 700, 5000} {
		var list strings.Builder
		for pid := range n {
			fmt.Fprintln(&list, pid+10000)
		}
		tree := &Tree{hierarchies: []hierarchy{{dir: recorded(t, map[string]string{"p/cgroup.procs": list.String()}), controllers: []string{"pids"}}}}
		if pids, err := tree.Members("/p"); len(pids) != n || err != nil || n > 0 && pids[n-1] != 10000+n-1 {
			t.Errorf("%d of %d members, %v", len(pids), n, err)
		}
	}
}
