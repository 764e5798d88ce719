// Package host finds out, once at start, what the machine allows: cgroups, capabilities, security modules. It
// changes nothing, and does not know what the answers are for.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const cgroupRoot = "/sys/fs/cgroup"

// Probe reads the facts. It fails only when /proc or the cgroups are not mounted as crid needs them (Unavailable);
// a feature that is missing is a fact like any other.
func Probe() (fact.Host, error) {
	r, err := read()
	if err != nil {
		return fact.Host{}, fmt.Errorf("probe the host: %w", err)
	}
	host, err := decide(r)
	if err != nil {
		return fact.Host{}, fmt.Errorf("probe the host: %w", err)
	}
	return host, nil
}

// reading is what read found, as it was found; decide makes sense of it.
type reading struct {
	bootID      string // /proc/sys/kernel/random/boot_id
	release     string // uname -r
	rootMagic   int64  // statfs type of /sys/fs/cgroup
	mounts      []*mountinfo.Info
	cgroups     string   // /proc/self/cgroup
	controllers string   // cgroup.controllers at the root of v2; empty elsewhere
	oomScoreAdj string   // /proc/self/oom_score_adj
	status      string   // /proc/self/status
	uidMap      string   // /proc/self/uid_map; empty without user namespaces
	appArmor    string   // /sys/module/apparmor/parameters/enabled; empty without
	memory      []string // files of cgroups that limit memory, and swap where that can be limited
	hugepages   []string // directories of /sys/kernel/mm/hugepages, one for each size
	filters     error    // what prctl(2) says to a seccomp filter at address 0
}

func read() (reading, error) {
	var r reading
	var uname unix.Utsname
	var root unix.Statfs_t
	if err := unix.Uname(&uname); err != nil {
		return r, fmt.Errorf("uname: %w", err)
	}
	r.release = string(uname.Release[:bytes.IndexByte(uname.Release[:], 0)])
	if err := unix.Statfs(cgroupRoot, &root); err != nil {
		return r, fmt.Errorf("statfs %s: %w: %w", cgroupRoot, errdef.Unavailable, err)
	}
	r.rootMagic = int64(root.Type)
	var err error
	if r.mounts, err = mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2", "selinuxfs")); err != nil {
		return r, fmt.Errorf("read mounts: %w", err)
	}
	for _, file := range []struct {
		path     string
		into     *string
		optional bool // the kernel may be built without it
	}{
		{"/proc/sys/kernel/random/boot_id", &r.bootID, false},
		{"/proc/self/cgroup", &r.cgroups, false},
		{"/proc/self/oom_score_adj", &r.oomScoreAdj, false},
		{"/proc/self/status", &r.status, false},
		{"/proc/self/uid_map", &r.uidMap, true},
		{cgroupRoot + "/cgroup.controllers", &r.controllers, true},
		{"/sys/module/apparmor/parameters/enabled", &r.appArmor, true},
	} {
		raw, err := os.ReadFile(file.path)
		if err != nil && !(file.optional && errors.Is(err, fs.ErrNotExist)) {
			return r, fmt.Errorf("%w: %w", errdef.Unavailable, err)
		}
		*file.into = strings.TrimSpace(string(raw))
	}
	for _, pattern := range []string{"/memory/memory.*limit_in_bytes", "/*/memory.max", "/*/memory.swap.max"} {
		files, err := filepath.Glob(cgroupRoot + pattern)
		if err != nil {
			return r, fmt.Errorf("look for memory limits: %w", err)
		}
		r.memory = append(r.memory, files...)
	}
	if r.hugepages, err = filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB"); err != nil {
		return r, fmt.Errorf("look for huge pages: %w", err)
	}
	r.filters = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0) // sets none: see decide
	return r, nil
}
