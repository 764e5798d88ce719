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
