package host

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/fact"
)

// FuzzDecide takes any text for what the kernel says.
func FuzzDecide(f *testing.F) {
	f.Add("0", allCaps, "0 0 4294967295", "cpu memory", "3:cpu,cpuacct:/a\n0::/x\n", true)
	f.Add("-1000", "CapEff:\tzz\n", "", "", ":::::\n1:\n", false)
	f.Fuzz(func(t *testing.T, score, status, uids, controllers, cgroups string, unified bool) {
		r := reading{oomScoreAdj: score, status: status, uidMap: uids, controllers: controllers, cgroups: cgroups}
		if unified {
			r.rootMagic = unix.CGROUP2_SUPER_MAGIC
		}
		host, err := decide(r)
		if err == nil && (!unified || host.Cgroup != fact.CgroupV2) {
			t.Errorf("without any mount it is %+v", host)
		}
	})
}
