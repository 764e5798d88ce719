package ns

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// FuzzSysctls takes any text for the name of a sysctl: what passes is a file below the directories of namespaces.
func FuzzSysctls(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.eth0/1.forwarding", "net.//.//.x", "net", "kernel.sem", "net.\x00", "net.a/b", "net./"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := checkSysctls(Want{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{name: "1"}})
		if err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		file := path.Join("/proc/sys", sysctlPath(name))
		if file != "/proc/sys/"+sysctlPath(name) || strings.ContainsRune(file, 0) ||
			!strings.HasPrefix(file, "/proc/sys/net/") && !strings.HasPrefix(file, "/proc/sys/kernel/") && !strings.HasPrefix(file, "/proc/sys/fs/mqueue/") {
			t.Errorf("%q is the file %q", name, file)
		}
	})
}

// FuzzHostRange takes any text for a range of groups, in any map: the groups that come out are the map's.
func FuzzHostRange(f *testing.F) {
	f.Add("0 2147483647", uint32(0), uint32(100000), uint32(65536), uint32(65536), uint32(165536), uint32(10))
	f.Add("1 0", uint32(0), uint32(1), uint32(1), uint32(1), uint32(2), uint32(1))
	f.Add("5", uint32(5), uint32(4294967290), uint32(5), uint32(0), uint32(0), uint32(5))
	f.Fuzz(func(t *testing.T, value string, c1, h1, n1, c2, h2, n2 uint32) {
		gids := []fact.IDRange{{Container: c1, Host: h1, Length: n1}, {Container: c2, Host: h2, Length: n2}}
		for i, r := range gids {
			if r.Length == 0 || uint64(max(r.Container, r.Host))+uint64(r.Length) >= 1<<32 || i == 1 && overlaps(gids[0], r) {
				return // validation lets none of these pass
			}
		}
		out, err := hostRange(value, gids)
		if err != nil {
			if !errors.Is(err, errdef.Invalid) {
				t.Errorf("error %v is not Invalid", err)
			}
			return
		}
		var low, high, first, last uint32
		if _, err := fmt.Sscan(value, &low, &high); err != nil || low > high {
			return
		}
		if _, err := fmt.Sscan(out, &first, &last); err != nil || first > last || last-first > high-low {
			t.Fatalf("%q became %q", value, out)
		}
		for _, edge := range []uint32{first, last} {
			if !mapsTo(gids[0], edge) && !mapsTo(gids[1], edge) {
				t.Errorf("%q became %q: %d is nobody's in %+v", value, out, edge, gids)
			}
		}
	})
}

func mapsTo(r fact.IDRange, host uint32) bool { return host >= r.Host && host-r.Host < r.Length }

func overlaps(a, b fact.IDRange) bool {
	cross := func(x, y uint32) bool {
		return uint64(x) < uint64(y)+uint64(b.Length) && uint64(y) < uint64(x)+uint64(a.Length)
	}
	return cross(a.Container, b.Container) || cross(a.Host, b.Host)
}
