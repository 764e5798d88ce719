package host

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const (
	allCaps = "Name:\tcrid\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nSeccomp:\t0\n"
	// Bit 24, CAP_SYS_RESOURCE, is clear in one set and bit 21, CAP_SYS_ADMIN, in the other.
	fewCaps = "Name:\tcrid\nCapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\nCapBnd:\t000001ffffdfffff\nSeccomp:\t0\n"

	mountsV2 = "26 22 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n" +
		"40 22 0:30 / /sys/fs/selinux rw - selinuxfs selinuxfs rw\n"
	mountsV1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
		"35 27 0:35 / /run/cilium/cgroupv2 rw - cgroup2 none rw\n" +
		"36 27 0:36 / /var/elsewhere/pids rw - cgroup cgroup rw,pids\n"
	unified   = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	cgroupsV1 = "4:name=systemd:/\n3:memory:/user\n2:pids:/\n1:cpu,cpuacct:/a,b\n0::/\n"
)

// modern is a host with everything: v2, systemd, all security modules.
func modern(t *testing.T) reading {
	t.Helper()
	return reading{
		bootID: "b7", release: "6.12.0", rootMagic: unix.CGROUP2_SUPER_MAGIC, mounts: parse(t, mountsV2),
		cgroups: "0::/system.slice/crid.service\n", controllers: "cpuset cpu io memory hugetlb pids", oomScoreAdj: "-999",
		status: allCaps, uidMap: "         0          0 4294967295", appArmor: "Y", filters: unix.EFAULT,
		hugepages: []string{"/x/hugepages-1048576kB", "/x/hugepages-2048kB", "/x/hugepages-64kB"},
	}
}

func parse(t *testing.T, text string) []*mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func TestDecide(t *testing.T) {
	full := fact.Host{
		BootID: "b7", Kernel: "6.12.0", Cgroup: fact.CgroupV2, OOMScoreAdj: -999, RaiseLimits: true, Capabilities: 0x1ffffffffff,
		Controllers: []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}, Seccomp: true, AppArmor: true, SELinux: true,
		PageSizes: []string{"1GB", "2MB", "64KB"},
	}
	legacy := func(mounts string) func(*reading) {
		return func(r *reading) {
			r.rootMagic, r.controllers, r.cgroups = unix.TMPFS_MAGIC, "", cgroupsV1
			r.mounts = parse(t, mounts)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*reading)
		want   func(*fact.Host)
	}{
		{"modern", func(*reading) {}, func(*fact.Host) {}},
		{"no capability", func(r *reading) { r.status = fewCaps }, func(h *fact.Host) { h.RaiseLimits, h.Capabilities = false, 0x1fffedfffff }},
		{"in a user namespace", func(r *reading) { r.uidMap = "0 100000 65536" }, func(h *fact.Host) { h.RaiseLimits = false }},
		{"kernel without user namespaces", func(r *reading) { r.uidMap = "" }, func(*fact.Host) {}},
		{"no seccomp", func(r *reading) { r.filters = unix.EINVAL }, func(h *fact.Host) { h.Seccomp = false }},
		{"AppArmor built, not on", func(r *reading) { r.appArmor = "N" }, func(h *fact.Host) { h.AppArmor = false }},
		{"no AppArmor", func(r *reading) { r.appArmor = "" }, func(h *fact.Host) { h.AppArmor = false }},
		{"not critical", func(r *reading) { r.oomScoreAdj = "500" }, func(h *fact.Host) { h.OOMScoreAdj = 500 }},
		{"v1", legacy(mountsV1), func(h *fact.Host) {
			h.Cgroup, h.Controllers, h.SELinux = fact.CgroupV1, []string{"cpu", "cpuacct", "memory"}, false
		}},
		{"hybrid", legacy(mountsV1 + unified), func(h *fact.Host) {
			h.Cgroup, h.Controllers, h.SELinux = fact.CgroupHybrid, []string{"cpu", "cpuacct", "memory"}, false
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, want := modern(t), full
			c.change(&r)
			c.want(&want)
			got, err := decide(r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecideRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*reading)
		kind   error
	}{
		{"no cgroups", func(r *reading) { r.rootMagic, r.mounts = unix.SYSFS_MAGIC, nil }, errdef.Unavailable},
		{"only name=systemd", func(r *reading) {
			r.rootMagic, r.cgroups = unix.TMPFS_MAGIC, cgroupsV1
			r.mounts = parse(t, "34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n")
		}, errdef.Unavailable},
		{"strange score", func(r *reading) { r.oomScoreAdj = "low" }, nil},
		{"strange status", func(r *reading) { r.status = "Name:\tcrid\n" }, nil},
		{"strange capabilities", func(r *reading) { r.status = "CapEff:\tall\nCapBnd:\t0\n" }, nil},
		{"no bounding set", func(r *reading) { r.status = "CapEff:\t0\n" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := modern(t)
			c.change(&r)
			host, err := decide(r)
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("got %+v, %v", host, err)
			}
		})
	}
}

// What Probe says of this machine agrees with what can be seen of it by other ways.
func TestProbe(t *testing.T) {
	host, err := Probe()
	if errors.Is(err, errdef.Unavailable) && os.Getenv("CRID_TEST_ROOT") != "1" {
		t.Skipf("this machine has no cgroups: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(host.BootID) != 36 || strings.Count(host.Kernel, ".") < 2 || len(host.Controllers) == 0 {
		t.Errorf("got %+v", host)
	}
	if host.HasController("name=systemd") || host.HasController("rw") || !slices.IsSorted(host.Controllers) && host.Cgroup != fact.CgroupV2 {
		t.Errorf("controllers %q", host.Controllers)
	}
	if _, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail"); host.Seccomp != (err == nil) {
		t.Errorf("seccomp is %v, yet %v", host.Seccomp, err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(status), "Seccomp:\t0") && !strings.Contains(string(status), "Seccomp:\t2") {
		t.Errorf("looking for filters set one: %v\n%s", err, status)
	}
	t.Logf("%+v", host)
}

func TestSwapIsLimitedWhereMemoryShowsIt(t *testing.T) {
	for _, c := range []struct {
		files string
		none  bool
	}{
		{"", false},
		{"/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", false},
		{"/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory/memory.kmem.limit_in_bytes", true},
		{"/sys/fs/cgroup/system.slice/memory.max /sys/fs/cgroup/system.slice/memory.swap.max", false},
		{"/sys/fs/cgroup/system.slice/memory.max", true},
	} {
		r := modern(t)
		r.memory = strings.Fields(c.files)
		if host, err := decide(r); err != nil || host.NoSwapLimit != c.none {
			t.Errorf("with %q: NoSwapLimit %v, %v", c.files, host.NoSwapLimit, err)
		}
	}
}
