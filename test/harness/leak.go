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

// nothingLeft compares the machine with what it was before crid started.
func (c *Crid) nothingLeft() {
	c.t.Helper()
	after := snap(c.t, c.Cgroup)
	for kind, things := range after.things {
		var left []string
		for name := range things {
			if !c.before.things[kind][name] && !mayStay(kind, name) {
				left = append(left, name)
			}
		}
		if sort.Strings(left); len(left) > 0 {
			c.t.Errorf("left behind: %d %s(s):\n\t%s", len(left), kind, strings.Join(left, "\n\t"))
		}
	}
	leases, err := names(filepath.Join(c.Leases(), shortName(c.t)))
	if err != nil {
		c.t.Error(err)
	}
	for _, lease := range leases {
		if lease != "lock" && !strings.HasPrefix(lease, "last_reserved_ip") {
			c.t.Error("left behind: IP lease", lease)
		}
	}
	for _, root := range []string{c.Root(), c.RunRoot} {
		c.noIDs(root)
	}
}

// mayStay excuses the mount that the directory of network namespaces is: crid shares it with `ip netns`.
func mayStay(kind, name string) bool {
	return kind == "mount" && name == "/run/netns"
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

// noIDs fails the test for every file below root that is named after a pod or container. The image store is
// left out: its layers' names are ids of another kind.
func (c *Crid) noIDs(root string) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "storage":
			return filepath.SkipDir
		case idPattern.MatchString(d.Name()):
			c.t.Error("left behind:", path)
			if d.IsDir() {
				return filepath.SkipDir
			}
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
}

// settled waits until crid is down to the goroutines and fds that it had when it had just started.
func (c *Crid) settled() {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(settleLimit)
	for {
		now := c.counts()
		if now.Goroutines <= c.before.counts.Goroutines+slack && now.FDs <= c.before.counts.FDs+slack {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			c.t.Errorf("left behind in crid: %+v, it started with %+v\n%s", now, c.before.counts, c.debug("/debug/pprof/goroutine?debug=1"))
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
	client := http.Client{Timeout: callLimit, Transport: &http.Transport{
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
