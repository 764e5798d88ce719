package harness

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"github.com/crid/crid/test/isolate"
)

// settleLimit is how long crid may take to give back what it used: watchers end and trash is deleted behind
// the answers.
const settleLimit = 10 * time.Second

// idPattern is what pods' and containers' ids look like, in the name of anything that was made for one.
var idPattern = regexp.MustCompile(`[0-9a-f]{64}`)

// snapshot is what the isolated machine holds at one moment, a set of names for each kind of thing.
type snapshot struct {
	things map[string]map[string]bool
	counts counts
}

// counts are crid's own, as its debug socket tells them.
type counts struct {
	Goroutines int `json:"goroutines"`
	FDs        int `json:"fds"`
}

func snap(t *testing.T, cgroupParent string) snapshot {
	t.Helper()
	s := snapshot{things: map[string]map[string]bool{}}
	for kind, list := range map[string]func() ([]string, error){
		"process": processes,
		"mount":   mounts,
		"link":    links,
		"netns":   func() ([]string, error) { return names("/run/netns") },
		"cgroup":  func() ([]string, error) { return isolate.Cgroups(cgroupParent) },
	} {
		found, err := list()
		if err != nil {
			t.Fatalf("list %ss: %v", kind, err)
		}
		s.things[kind] = map[string]bool{}
		for _, name := range found {
			s.things[kind][name] = true
		}
	}
	return s
}

// nothingLeft compares the machine with what it was before crid started. Containers that are left are killed: the next
// test is not to find them.
func (c *Crid) nothingLeft() {
	c.t.Helper()
	left := c.leftSince(c.before)
	for _, thing := range left {
		c.t.Error("left behind:", thing)
	}
	if len(left) == 0 {
		return
	}
	if err := isolate.KillBelow(c.Cgroup); err != nil {
		c.t.Error("kill what is left:", err)
	}
}

// Mark is what the machine held at one moment of crid's life.
type Mark struct{ at snapshot }

// Mark remembers what the machine holds now. It counts neither crid itself nor what crid holds open.
func (c *Crid) Mark() Mark {
	c.t.Helper()
	return Mark{c.snap()}
}

// snap adds to what the machine holds what crid keeps for pods and containers. Before crid was started for the first
// time there is none of that.
func (c *Crid) snap() snapshot {
	c.t.Helper()
	s := snap(c.t, c.Cgroup)
	leases, err := names(filepath.Join(c.Leases(), shortName(c.t)))
	if err != nil {
		c.t.Error(err)
	}
	s.things["IP lease"], s.things["file"] = map[string]bool{}, map[string]bool{}
	for _, lease := range leases {
		if lease != "lock" && !strings.HasPrefix(lease, "last_reserved_ip") {
			s.things["IP lease"][lease] = true
		}
	}
	for _, root := range []string{c.Root(), c.RunRoot} {
		for _, path := range c.withIDs(root) {
			s.things["file"][path] = true
		}
	}
	return s
}

// LeftSince waits until nothing is there any more that came after the mark, but for what one of the functions excuses,
// and returns what stays; crid runs on, the same or another.
func (c *Crid) LeftSince(m Mark, excuses ...func(thing string) bool) []string {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(isolate.Patient(settleLimit))
	for {
		left := c.leftSince(m.at)
		for _, excused := range excuses {
			left = slices.DeleteFunc(left, excused)
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-limit:
			return left
		}
	}
}

// leftSince lists what is there and was not.
func (c *Crid) leftSince(before snapshot) []string {
	c.t.Helper()
	after := c.snap()
	var left []string
	for kind, things := range after.things {
		for name := range things {
			if !before.things[kind][name] && !c.mayStay(kind, name) {
				left = append(left, kind+" "+name)
			}
		}
	}
	sort.Strings(left)
	return left
}

// mayStay excuses crid itself while it runs, the mount that the directory of network namespaces is, since crid shares
// it with `ip netns`, and the one that it has for its other namespaces.
func (c *Crid) mayStay(kind, name string) bool {
	switch kind {
	case "mount":
		return name == "/run/netns" || name == filepath.Join(c.RunRoot, "ns") && c.alive()
	case "process":
		if c.onHost { // where others start processes, too
			return !idPattern.MatchString(name)
		}
		return c.alive() && strings.HasPrefix(name, strconv.Itoa(c.PID())+" ")
	}
	return false
}

// alive tells whether crid runs.
func (c *Crid) alive() bool {
	select {
	case <-c.Exited():
		return false
	default:
		return true
	}
}

// removeBridge takes away what the bridge plugin keeps: the next test's bridge has the same subnet.
func (c *Crid) removeBridge() {
	c.t.Helper()
	bridge, err := netlink.LinkByName(shortName(c.t))
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return
	}
	if err == nil {
		err = netlink.LinkDel(bridge)
	}
	if err != nil {
		c.t.Error("remove the bridge:", err)
	}
}

// withIDs lists every file below root that is named after a pod or container. Left out is what has names of the same kind:
// the image store's layers, and the seccomp profiles that a newer crun keeps compiled, by their hash.
func (c *Crid) withIDs(root string) (found []string) {
	c.t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "storage" || strings.HasSuffix(path, "/crun/.cache")):
			return filepath.SkipDir
		case idPattern.MatchString(d.Name()):
			found = append(found, path)
			if d.IsDir() {
				return filepath.SkipDir
			}
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
	return found
}

// settled waits until crid is down to the goroutines and fds that it had when it had just started, and has detached the
// networks that it could not at once: of a plugin that was killed with crid, the next try comes after some seconds.
func (c *Crid) settled() {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(isolate.Patient(settleLimit))
	for {
		now := c.counts()
		attached, err := filepath.Glob(filepath.Join(c.Root(), "state", "tombstones", "*.json"))
		if err != nil {
			c.t.Fatal(err)
		}
		if now.Goroutines <= c.before.counts.Goroutines+slack && now.FDs <= c.before.counts.FDs+slack && len(attached) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			c.t.Errorf("left behind in crid: %+v, it started with %+v; networks still attached: %q\n%s", now, c.before.counts, attached, c.debug("/debug/pprof/goroutine?debug=1"))
			return
		}
	}
}

// slack allows for the connections of this very check and of the two clients, which come and go.
const slack = 6

func (c *Crid) counts() counts {
	c.t.Helper()
	var n counts
	if err := json.Unmarshal([]byte(c.debug("/counts")), &n); err != nil {
		c.t.Fatal("read counts:", err)
	}
	if n.Goroutines == 0 || n.FDs == 0 {
		c.t.Fatalf("the debug socket counts nothing: %+v", n)
	}
	return n
}

// debug asks crid's debug socket.
func (c *Crid) debug(path string) string {
	c.t.Helper()
	client := http.Client{Timeout: isolate.Patient(callLimit), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.Node.Debug)
		},
	}}
	resp, err := client.Get("http://crid" + path)
	if err != nil {
		c.t.Fatal("ask the debug socket:", err)
	}
	defer resp.Body.Close()
	var body strings.Builder
	if err := resp.Write(&body); err != nil {
		c.t.Fatal("ask the debug socket:", err)
	}
	_, text, _ := strings.Cut(body.String(), "\r\n\r\n")
	return text
}

// processes lists the processes that are neither this one nor its registry's.
func processes() ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, dir := range dirs {
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if pid == os.Getpid() || strings.Contains(string(stat), ") Z ") {
			continue // a zombie is its parent's: the isolation reaps it
		}
		found = append(found, strconv.Itoa(pid)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
	return found, nil
}

func mounts() ([]string, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, info := range infos {
		found = append(found, info.Mountpoint)
	}
	return found, nil
}

func links() ([]string, error) {
	all, err := netlink.LinkList()
	for tries := 0; errors.Is(err, netlink.ErrDumpInterrupted) && tries < 20; tries++ { // links came or went meanwhile
		all, err = netlink.LinkList()
	}
	if err != nil {
		return nil, err
	}
	var found []string
	for _, link := range all {
		found = append(found, link.Type()+" "+link.Attrs().Name)
	}
	return found, nil
}

// names lists a directory; an absent one is empty.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found, err
}
