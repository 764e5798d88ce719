package network

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/isolate"
)

// A container that may administer its network gives interfaces any names: one that is no text would make an answer for
// all pods unsendable.
func TestInterfacesHaveReadableNames(t *testing.T) {
	isolate.NeedRoot(t, "it makes network namespaces")
	path := filepath.Join(t.TempDir(), "ns")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, pinNewNetNS(path))
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	ns, err := netns.GetFromPath(path)
	must(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	for _, name := range []string{"\xff\xfe", "\xff\xfd", "ok0"} {
		must(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
	}
	all, err := Interfaces(path)
	must(t, err)
	seen := map[string]bool{}
	for _, i := range all {
		if !utf8.ValidString(i.Name) || seen[i.Name] {
			t.Errorf("interface %q, of %v", i.Name, all)
		}
		seen[i.Name] = true
	}
	if len(all) != 3 || !seen["ok0"] {
		t.Errorf("interfaces %v", all)
	}
	if _, err := Interfaces(filepath.Join(t.TempDir(), "none")); !errors.Is(err, errdef.NotFound) {
		t.Errorf("of a namespace that is not there: %v", err)
	}
}

func TestCountersAreParsed(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     123       4    0    0    0     0          0         0      123       4    0    0    0     0       0          0
  eth0:       1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
`
	all, err := parseCounters(text)
	want := Interface{"eth0", 1, 3, 2, 4, 9, 11, 10, 12}
	if err != nil || len(all) != 1 || all[0] != want {
		t.Errorf("%v, %v", all, err)
	}
	for _, broken := range []string{"eth0: 1 2 3\n", "eth0: 1 2 3 4 5 6 7 8 9 10 x 12 13 14 15 16\n"} {
		if all, err := parseCounters(broken); err == nil {
			t.Errorf("%q is %v", broken, all)
		}
	}
}

// The thread that has been elsewhere comes back, and the counters are those of there.
func TestCountersAreOfTheNamespace(t *testing.T) {
	isolate.NeedRoot(t, "it makes network namespaces")
	path := filepath.Join(t.TempDir(), "ns")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, pinNewNetNS(path))
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	own, err := netns.Get()
	must(t, err)
	defer own.Close()
	for range 50 {
		if all, err := Interfaces(path); err != nil || len(all) != 0 {
			t.Fatalf("interfaces %v, %v", all, err)
		}
		now, err := netns.Get()
		must(t, err)
		if !now.Equal(own) {
			t.Fatal("a thread stayed in the namespace")
		}
		must(t, now.Close())
	}
}
