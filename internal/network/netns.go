package network

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
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
// when there is no such namespace. It does not ask by netlink: that would wait for the lock under which the kernel makes
// and removes interfaces, for as long as it takes to remove those of other pods.
func Interfaces(path string) ([]Interface, error) {
	if !isNetNS(path) {
		return nil, fmt.Errorf("network namespace %s: %w", path, errdef.NotFound)
	}
	file, err := openIn(path, "/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("open the counters of network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	defer file.Close()
	raw, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read the counters of network namespace %s: %w: %w", path, err, errdef.Unavailable)
	}
	all, err := parseCounters(string(raw))
	if err != nil {
		return nil, fmt.Errorf("read the counters of network namespace %s: %w", path, err)
	}
	return all, nil
}

// openIn opens a file on a thread that is in the network namespace at path. The file stays what it was there.
func openIn(path, name string) (*os.File, error) {
	inside, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	var file *os.File
	done := make(chan error, 1)
	go func() { // ends at once
		runtime.LockOSThread()
		outside, err := netns.Get()
		if err == nil {
			defer outside.Close()
			err = netns.Set(inside)
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		file, err = os.Open(name)
		back := netns.Set(outside)
		if back == nil {
			runtime.UnlockOSThread() // a thread that is astray ends with its goroutine
		}
		done <- errors.Join(err, back)
	}()
	err = <-done
	if err != nil && file != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, err
}

// parseCounters reads /proc/net/dev: two lines of headings, then a line for each interface, of its name and 16 numbers.
func parseCounters(text string) ([]Interface, error) {
	var all []Interface
	for line := range strings.Lines(text) {
		name, numbers, found := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !found || name == "lo" {
			continue
		}
		i := Interface{Name: readable(name)}
		fields := strings.Fields(numbers)
		if len(fields) < 12 {
			return nil, fmt.Errorf("interface %s has %d counters: %w", i.Name, len(fields), errdef.Unsupported)
		}
		for at, into := range map[int]*uint64{
			0: &i.RxBytes, 1: &i.RxPackets, 2: &i.RxErrors, 3: &i.RxDropped,
			8: &i.TxBytes, 9: &i.TxPackets, 10: &i.TxErrors, 11: &i.TxDropped,
		} {
			n, err := strconv.ParseUint(fields[at], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("counters of interface %s: %w", i.Name, err)
			}
			*into = n
		}
		all = append(all, i)
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
