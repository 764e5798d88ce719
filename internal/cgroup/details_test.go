package cgroup

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// More files as kernels wrote them.
var (
	detailsV1 = map[string]string{
		"cpuacct/p/crid-c/cpuacct.stat":                               "user 123\nsystem 45\n",
		"cpu/p/crid-c/cpu.stat":                                       "nr_periods 7\nnr_throttled 3\nthrottled_time 5000000000\nnr_bursts 0\nburst_time 0\n",
		"cpu/p/crid-c/cpu.cfs_quota_us":                               "20000\n",
		"cpu/p/crid-free/cpu.shares":                                  "1024\n",
		"cpu/p/crid-free/cpu.cfs_period_us":                           "100000\n",
		"cpu/p/crid-free/cpu.cfs_quota_us":                            "-1\n",
		"memory/p/crid-c/memory.kmem.usage_in_bytes":                  "12288\n",
		"memory/p/crid-c/memory.max_usage_in_bytes":                   "62914560\n",
		"memory/p/crid-c/memory.failcnt":                              "4\n",
		"memory/p/crid-c/memory.soft_limit_in_bytes":                  "9223372036854771712\n",
		"memory/p/crid-c/memory.oom_control":                          "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory/p/crid-c/exec/memory.oom_control":                     "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"memory/p/crid-free/memory.limit_in_bytes":                    "9223372036854771712\n",
		"memory/p/crid-free/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\n", // before Linux 4.13
		"pids/p/crid-c/pids.current":                                  "5\n",
		"pids/p/crid-c/pids.max":                                      "max\n",
		"hugetlb/p/crid-c/hugetlb.2MB.usage_in_bytes":                 "4194304\n",
		"hugetlb/p/crid-c/hugetlb.2MB.max_usage_in_bytes":             "6291456\n",
		"blkio/p/crid-c/blkio.throttle.io_service_bytes_recursive":    "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
		"blkio/p/crid-c/blkio.throttle.io_serviced_recursive":         "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
		"blkio/p/crid-free/blkio.throttle.io_service_bytes_recursive": "Total 0\n",
		"blkio/p/crid-free/blkio.throttle.io_serviced_recursive":      "Total 0\n",
		"blkio/p/crid-free/blkio.bfq.io_service_bytes_recursive":      "8:16 Read 512\nTotal 512\n",
		"blkio/p/crid-free/blkio.bfq.io_serviced_recursive":           "8:16 Read 1\nTotal 1\n",
	}
	detailsV2 = map[string]string{
		"p/crid-c/cpu.stat":            "usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\nnr_periods 7\nnr_throttled 3\nthrottled_usec 5000000\n",
		"p/crid-c/cpu.max":             "20000 50000\n",
		"p/crid-c/cpu.weight":          "39\n",
		"p/crid-old/cpu.max":           "max 100000\n",
		"p/crid-old/cpu.weight":        "1\n",
		"p/crid-c/memory.stat":         "anon 1\nfile 31457280\nkernel 4096\nfile_mapped 2048\n",
		"p/crid-c/memory.events":       "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n",
		"p/crid-c/memory.peak":         "62914560\n",
		"p/crid-c/memory.min":          "0\n",
		"p/crid-c/pids.current":        "5\n",
		"p/crid-c/pids.max":            "100\n",
		"p/crid-c/hugetlb.2MB.current": "4194304\n",
		"p/crid-c/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0 cost.usage=7\n253:1\n",
	}
)

// detailTrees are recordedTrees with more controllers.
func detailTrees(t *testing.T) (v1, v2 *Tree) {
	t.Helper()
	all := maps.Clone(recordedV1)
	maps.Copy(all, detailsV1)
	root := recorded(t, all)
	v1 = &Tree{pageSizes: []string{"2MB", "1GB"}}
	for _, controller := range []string{"cpu", "cpuacct", "memory", "pids", "hugetlb", "blkio"} {
		v1.hierarchies = append(v1.hierarchies, hierarchy{dir: filepath.Join(root, controller), controllers: []string{controller}})
	}
	all = maps.Clone(recordedV2)
	maps.Copy(all, detailsV2)
	v2 = &Tree{pageSizes: v1.pageSizes, hierarchies: []hierarchy{{dir: recorded(t, all), unified: true,
		controllers: []string{"cpu", "memory", "pids", "hugetlb", "io"}}}}
	return v1, v2
}

func TestDetailsOfRecordedFiles(t *testing.T) {
	v1, v2 := detailTrees(t)
	peak := uint64(6 << 20)
	for _, c := range []struct {
		name, path string
		tree       *Tree
		want       Details
	}{
		{"v1", "/p/crid-c", v1, Details{
			Figures: map[Figure]uint64{
				UserTime: 1.23e9, SystemTime: 0.45e9, Periods: 7, ThrottledPeriods: 3, ThrottledTime: 5e9,
				CPUShares: 512, CPUPeriod: 100000, CPUQuota: 20000,
				Cache: 31457280, Swap: 4096, OwnFaults: 1, KernelMemory: 12288, PeakMemory: 62914560, LimitHits: 4,
				MemoryLimit: 104857600, MemoryReservation: NoLimit, MemorySwapLimit: 157286400, OOMKills: 3, Tasks: 5, TasksLimit: NoLimit,
			},
			Blocks:    []Block{{8, 0, "Read", 4096, 1}, {8, 0, "Write", 8192, 2}, {8, 0, "Total", 12288, 3}},
			HugePages: []HugePages{{"2MB", 4 << 20, &peak}},
		}},
		{"v1 of an old kernel, without a quota, with another scheduler", "/p/crid-free", v1, Details{
			Figures: map[Figure]uint64{CPUShares: 1024, CPUPeriod: 100000, MemoryLimit: NoLimit, MemorySwapLimit: NoLimit},
			Blocks:  []Block{{8, 16, "Read", 512, 1}},
		}},
		{"v2", "/p/crid-c", v2, Details{
			Figures: map[Figure]uint64{
				UserTime: 1e8, SystemTime: 23456000, Periods: 7, ThrottledPeriods: 3, ThrottledTime: 5e9,
				CPUShares: 998, CPUPeriod: 50000, CPUQuota: 20000,
				Cache: 31457280, MappedFile: 2048, KernelMemory: 4096, PeakMemory: 62914560, Swap: 4096, LimitHits: 12,
				MemoryLimit: NoLimit, MemoryReservation: 0, MemorySwapLimit: 8192, OOMKills: 2, Tasks: 5, TasksLimit: 100,
			},
			Blocks:    []Block{{8, 0, "Read", 4096, 1}, {8, 0, "Write", 8192, 2}, {8, 0, "Discard", 0, 0}},
			HugePages: []HugePages{{"2MB", 4 << 20, nil}},
		}},
		{"v2 of an old kernel", "/p/crid-old", v2, Details{Figures: map[Figure]uint64{CPUShares: 2, CPUPeriod: 100000, OOMKills: 0}}},
		{"none", "/p/crid-none", v2, Details{Figures: map[Figure]uint64{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.tree.Details(c.path)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

// A real cgroup has what the recorded files have.
func TestDetailsOfARealCgroup(t *testing.T) {
	tree := open(t, hostV1.Cgroup)
	path := create(t, tree, parent(t, tree), "crid-details")
	got, err := tree.Details(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Figure{UserTime, SystemTime, Periods, CPUShares, CPUPeriod, Cache, MappedFile, PeakMemory, LimitHits, OwnFaults, OOMKills, MemoryLimit, MemoryReservation} {
		if _, has := got.Figures[f]; !has {
			t.Errorf("figure %d is missing", f)
		}
	}
	if got.Figures[MemoryLimit] != NoLimit {
		t.Errorf("a limit of %d", got.Figures[MemoryLimit])
	}
	if err := tree.SetLimits(path, Limits{"cpu.cfs_quota_us": "30000", "memory.limit_in_bytes": "10485760"}); err != nil {
		t.Fatal(err)
	}
	got, err = tree.Details(path)
	if err != nil || got.Figures[CPUQuota] != 30000 || got.Figures[MemoryLimit] != 10<<20 {
		t.Errorf("a quota of %d, a limit of %d, %v", got.Figures[CPUQuota], got.Figures[MemoryLimit], err)
	}
}
