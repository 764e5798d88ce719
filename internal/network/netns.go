package network

import (
	"fmt"
	"net"
	"strconv"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// loopbackUp sets lo up inside the network namespace at path.
func loopbackUp(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback in %s: %w: %w", path, err, errdef.Unavailable)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up in %s: %w: %w", path, err, errdef.Unavailable)
	}
	failpoint.Hit("network/add/loopback-up")
	return nil
}

// isNetNS tells whether path is a namespace still, and not the file that it was pinned to, or nothing.
func isNetNS(path string) bool {
	if path == "" {
		return false
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false
	}
	return st.Type == unix.NSFS_MAGIC || st.Type == unix.PROC_SUPER_MAGIC
}

// Interface is what has gone through a network interface since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxErrors, RxPackets, RxDropped uint64
	TxBytes, TxErrors, TxPackets, TxDropped uint64
}

// Interfaces reads the counters of the interfaces in the network namespace at path, without the loopback. NotFound
// when there is no such namespace.
func Interfaces(path string) ([]Interface, error) {
	if !isNetNS(path) {
		return nil, fmt.Errorf("network namespace %s: %w", path, errdef.NotFound)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces in %s: %w: %w", path, err, errdef.Unavailable)
	}
	var all []Interface
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		all = append(all, Interface{
			Name:    readable(a.Name),
			RxBytes: s.RxBytes, RxErrors: s.RxErrors, RxPackets: s.RxPackets, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxErrors: s.TxErrors, TxPackets: s.TxPackets, TxDropped: s.TxDropped,
		})
	}
	return all, nil
}

// readable is an interface's name as text: whoever may administer the network gives it any bytes.
func readable(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return strconv.QuoteToASCII(name)
}
