package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

type resources = runtime.LinuxContainerResources

func TestMergeResources(t *testing.T) {
	for _, c := range []struct {
		name                string
		before, change, out *resources
	}{
		{"the CPU manager sends a cpuset alone", &resources{CpuShares: 2, MemoryLimitInBytes: 5}, &resources{CpusetCpus: "1"},
			&resources{CpuShares: 2, MemoryLimitInBytes: 5, CpusetCpus: "1"}},
		{"nothing was in force", nil, &resources{CpuQuota: -1}, &resources{CpuQuota: -1}},
		{"who must not swap still must not", &resources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}, &resources{MemoryLimitInBytes: 9},
			&resources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 9}},
		{"a limit of swap stays", &resources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 20}, &resources{MemoryLimitInBytes: 9},
			&resources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 20}},
		{"the score of running processes stays", &resources{OomScoreAdj: 3}, &resources{OomScoreAdj: 5}, &resources{OomScoreAdj: 3}},
		{"maps and lists are merged", &resources{Unified: map[string]string{"a.b": "1", "c.d": "2"}, HugepageLimits: pages("2MB", 1, "1GB", 2)},
			&resources{Unified: map[string]string{"a.b": "3"}, HugepageLimits: pages("2MB", 0)},
			&resources{Unified: map[string]string{"a.b": "3", "c.d": "2"}, HugepageLimits: pages("1GB", 2, "2MB", 0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kept := proto.Clone(c.before)
			got, err := MergeResources(c.before, c.change)
			if diff := cmp.Diff(c.out, got, protocmp.Transform()); err != nil || diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			if diff := cmp.Diff(kept, proto.Message(c.before), protocmp.Transform()); diff != "" {
				t.Errorf("what was published before is changed:\n%s", diff)
			}
		})
	}
	_, err := MergeResources(&resources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 20}, &resources{MemoryLimitInBytes: 30})
	if !errors.Is(err, errdef.Invalid) {
		t.Errorf("a memory limit above the limit of swap in force: %v", err)
	}
}

func pages(sizesAndLimits ...any) (all []*runtime.HugepageLimit) {
	for i := 0; i < len(sizesAndLimits); i += 2 {
		all = append(all, &runtime.HugepageLimit{PageSize: sizesAndLimits[i].(string), Limit: uint64(sizesAndLimits[i+1].(int))})
	}
	return all
}

func TestUpdateTellsTheRuntimeWhatChanges(t *testing.T) {
	v1 := fact.Host{Cgroup: fact.CgroupV1, Controllers: []string{"cpu", "cpuset", "memory"}}
	v2 := fact.Host{Cgroup: fact.CgroupV2, Controllers: []string{"cpu", "memory", "hugetlb"}, PageSizes: []string{"2MB"}}
	before := &resources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 2, MemoryLimitInBytes: 100}
	for _, c := range []struct {
		name   string
		host   fact.Host
		change *resources
		want   string // "" = Invalid
	}{
		{"nothing", v1, &resources{}, `{"memory":{"limit":100,"swap":100}}`},
		{"shares alone", v1, &resources{CpuShares: 9}, `{"memory":{"limit":100,"swap":100},"cpu":{"shares":9}}`},
		{"a cpuset alone", v1, &resources{CpusetCpus: "0"}, `{"memory":{"limit":100,"swap":100},"cpu":{"cpus":"0"}}`},
		{"quota and period are a pair", v1, &resources{CpuQuota: -1}, `{"memory":{"limit":100,"swap":100},"cpu":{"quota":-1,"period":100000}}`},
		{"memory", v1, &resources{MemoryLimitInBytes: 200}, `{"memory":{"limit":200,"swap":200}}`},
		{"hugepages without a controller", v1, &resources{HugepageLimits: pages("2MB", 0)}, `{"memory":{"limit":100,"swap":100}}`},
		{"hugepages", v2, &resources{HugepageLimits: pages("2MB", 0)}, `{"memory":{"limit":100,"swap":100},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}`},
		{"hugepages of another machine", v2, &resources{HugepageLimits: pages("2MB", 0, "16GB", 0)}, ""},
		{"unified on v2", v2, &resources{Unified: map[string]string{"memory.high": "max"}}, `{"memory":{"limit":100,"swap":100},"unified":{"memory.high":"max"}}`},
		{"unified on v1", v1, &resources{Unified: map[string]string{"memory.high": "max"}}, ""},
		{"unified without its controller", v2, &resources{Unified: map[string]string{"io.max": "x"}}, ""},
		{"no cpuset here", v2, &resources{CpusetCpus: "0"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			after, err := MergeResources(before, c.change)
			if err != nil {
				t.Fatal(err)
			}
			out, err := Update(c.change, after, c.host)
			if c.want == "" {
				if !errors.Is(err, errdef.Invalid) {
					t.Errorf("got %v, %v", out, err)
				}
				return
			}
			raw, jsonErr := json.Marshal(out)
			if err != nil || jsonErr != nil || string(raw) != c.want {
				t.Errorf("got %s, want %s; %v, %v", raw, c.want, err, jsonErr)
			}
		})
	}
	// As the kubelet asks for it under LimitedSwap.
	limited := &resources{MemoryLimitInBytes: 100, Unified: map[string]string{"memory.swap.max": "50", "cpu.weight": "7"}}
	for want, change := range map[string]*resources{
		`{"memory":{"limit":100},"cpu":{"shares":9},"unified":{"cpu.weight":"7","memory.swap.max":"50"}}`: {CpuShares: 9},
		`{"memory":{"limit":200},"unified":{"cpu.weight":"7","memory.max":"9","memory.swap.max":"60"}}`:   {MemoryLimitInBytes: 200, Unified: map[string]string{"memory.swap.max": "60", "memory.max": "9"}},
		`{"memory":{"limit":100},"unified":{"cpu.weight":"7","memory.swap.max":"50"}}`:                    {},
	} {
		after, err := MergeResources(limited, change)
		if err != nil {
			t.Fatal(err)
		}
		out, err := Update(change, after, v2)
		raw, jsonErr := json.Marshal(out)
		if err != nil || jsonErr != nil || string(raw) != want {
			t.Errorf("beside unified: got %s, want %s; %v, %v", raw, want, err, jsonErr)
		}
	}
	v1.NoSwapLimit = true
	for host, want := range map[*fact.Host]string{&v1: `{"memory":{"limit":-1},"cpu":{"shares":9}}`,
		&v2: `{"memory":{"limit":-1,"swap":-1},"cpu":{"shares":9}}`, {Controllers: []string{"cpu"}}: `{"cpu":{"shares":9}}`} {
		out, err := Update(&resources{CpuShares: 9}, &resources{CpuShares: 9}, *host)
		raw, jsonErr := json.Marshal(out)
		if err != nil || jsonErr != nil || string(raw) != want {
			t.Errorf("without a limit of memory: got %s, want %s; %v, %v", raw, want, err, jsonErr)
		}
	}
}

func TestCheckPlaces(t *testing.T) {
	for _, c := range []struct{ cpus, mems, want string }{
		{"", "", ""},
		{"0-3,8", "1", ""},
		{"3-4", "", `linux.cpuset_cpus "3-4": this host has "0-3,8", not 4`},
		{"4000", "", `linux.cpuset_cpus "4000"`},
		{"0", "2", `linux.cpuset_mems "2": this host has "0-1"`},
	} {
		err := CheckPlaces("linux", &resources{CpusetCpus: c.cpus, CpusetMems: c.mems}, "0-3,8", "0-1")
		if c.want == "" && err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		if c.want != "" {
			refused(t, err, errdef.Invalid, c.want)
		}
	}
}

func TestLimitFiles(t *testing.T) {
	for _, c := range []struct {
		change *resources
		v1, v2 string
	}{
		{&resources{OomScoreAdj: 5}, "", ""},
		{&resources{MemorySwapLimitInBytes: 1}, "memory.limit_in_bytes memory.memsw.limit_in_bytes", "memory.max memory.swap.max"},
		{&resources{CpuShares: 2, CpuPeriod: 3}, "cpu.cfs_period_us cpu.cfs_quota_us cpu.shares", "cpu.max cpu.weight"},
		{&resources{CpusetCpus: "0", CpusetMems: "0"}, "cpuset.cpus cpuset.mems", "cpuset.cpus cpuset.mems"},
		{&resources{HugepageLimits: pages("2MB", 1)}, "hugetlb.2MB.limit_in_bytes hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.max hugetlb.2MB.rsvd.max"},
		{&resources{Unified: map[string]string{"pids.max": "5"}}, "pids.max", "pids.max"},
	} {
		for mode, want := range map[fact.CgroupMode]string{fact.CgroupV1: c.v1, fact.CgroupV2: c.v2} {
			got := LimitFiles(c.change, mode)
			slices.Sort(got)
			if strings.Join(got, " ") != want {
				t.Errorf("%v on %s: %v, want %s", c.change, mode, got, want)
			}
		}
	}
}
