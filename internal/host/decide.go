package host

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

func decide(r reading) (fact.Host, error) {
	host := fact.Host{
		BootID: r.bootID,
		Kernel: r.release,
		// A kernel with filters looks at the address and finds it bad; one without does not know the mode.
		Seccomp:  errors.Is(r.filters, unix.EFAULT),
		AppArmor: r.appArmor == "Y",
		SELinux:  r.mounted("selinuxfs"),
	}
	var err error
	if host.OOMScoreAdj, err = strconv.Atoi(r.oomScoreAdj); err != nil {
		return fact.Host{}, fmt.Errorf("parse oom_score_adj: %w", err)
	}
	if host.Capabilities, err = r.capabilities(); err != nil {
		return fact.Host{}, err
	}
	host.RaiseLimits = host.Capabilities&(1<<unix.CAP_SYS_RESOURCE) != 0 && !r.inUserNamespace()
	if host.Cgroup, host.Controllers, err = r.cgroup(); err != nil {
		return fact.Host{}, err
	}
	host.NoSwapLimit = r.noSwapLimit()
	host.PageSizes, err = r.pageSizes()
	return host, err
}

// pageSizes names the sizes of huge pages in the greatest unit that fits, as the kernel names its files.
func (r reading) pageSizes() ([]string, error) {
	var names []string
	for _, dir := range r.hugepages {
		text := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB")
		size, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse the size of huge pages: %w", err)
		}
		unit := "KB"
		for _, greater := range []string{"MB", "GB"} {
			if size >= 1024 {
				size, unit = size/1024, greater
			}
		}
		names = append(names, fmt.Sprint(size, unit))
	}
	return names, nil
}

// noSwapLimit tells whether memory can be limited and swap cannot. Where there is no cgroup to tell by, as on a v2
// host without any below its root, swap is taken to be like memory.
func (r reading) noSwapLimit() bool {
	isSwap := func(file string) bool {
		name := filepath.Base(file)
		return name == "memory.memsw.limit_in_bytes" || name == "memory.swap.max"
	}
	return len(r.memory) > 0 && !slices.ContainsFunc(r.memory, isSwap)
}

func (r reading) mounted(fstype string) bool {
	for _, m := range r.mounts {
		if m.FSType == fstype {
			return true
		}
	}
	return false
}

// inUserNamespace tells whether this is not the host's: the kernel does not honour CAP_SYS_RESOURCE for limits and
// scores there.
func (r reading) inUserNamespace() bool {
	return r.uidMap != "" && !slices.Equal(strings.Fields(r.uidMap), []string{"0", "0", "4294967295"})
}

// capabilities are those that are effective and that a program crid runs can have too.
func (r reading) capabilities() (uint64, error) {
	both := ^uint64(0)
	for _, set := range []string{"CapEff", "CapBnd"} {
		_, rest, found := strings.Cut("\n"+r.status, "\n"+set+":")
		if !found {
			return 0, fmt.Errorf("/proc/self/status has no %s", set)
		}
		text, _, _ := strings.Cut(rest, "\n")
		mask, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("parse %s of /proc/self/status: %w", set, err)
		}
		both &= mask
	}
	return both, nil
}

// cgroup decides by what is mounted at and below /sys/fs/cgroup: a v2 hierarchy elsewhere (Cilium and Calico mount
// their own) is not the host's choice.
func (r reading) cgroup() (fact.CgroupMode, []string, error) {
	if r.rootMagic == unix.CGROUP2_SUPER_MAGIC {
		return fact.CgroupV2, strings.Fields(r.controllers), nil
	}
	known := r.controllersV1()
	mode, found := fact.CgroupV1, []string{}
	for _, m := range r.mounts {
		if m.Mountpoint != cgroupRoot && filepath.Dir(m.Mountpoint) != cgroupRoot {
			continue
		}
		if m.FSType == "cgroup2" {
			mode = fact.CgroupHybrid
			continue
		}
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			if m.FSType == "cgroup" && slices.Contains(known, option) {
				found = append(found, option)
			}
		}
	}
	if len(found) == 0 {
		return 0, nil, fmt.Errorf("no cgroup controller is mounted below %s: %w", cgroupRoot, errdef.Unavailable)
	}
	slices.Sort(found)
	return mode, slices.Compact(found), nil
}

// controllersV1 returns the controllers that v1 hierarchies have, by lines like "3:cpu,cpuacct:/a/path".
func (r reading) controllersV1() []string {
	var known []string
	for line := range strings.Lines(r.cgroups) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && parts[1] != "" && !strings.HasPrefix(parts[1], "name=") {
			known = append(known, strings.Split(parts[1], ",")...)
		}
	}
	return known
}
