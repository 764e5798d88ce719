package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/isolate"
)

// realDirs are where distributions install CNI plugins.
var realDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// host is this test's network namespace with a dual-stack bridge network of real plugins.
type host struct {
	t      *testing.T
	cni    *CNI
	dir    string
	leases string
}

func newHost(t *testing.T) *host {
	t.Helper()
	requireReal(t)
	// The namespaces of the test binary hide all but files: iptables has its lock in /run.
	must(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount("/run", 0)) })
	must(t, loopbackUp("/proc/self/ns/net"))
	h := &host{t: t, dir: t.TempDir()}
	h.leases = filepath.Join(h.dir, "leases")
	conf := filepath.Join(h.dir, "net.d")
	must(t, os.Mkdir(conf, 0o755))
	must(t, os.WriteFile(filepath.Join(conf, "10-real.conflist"), fmt.Appendf(nil, `{
		"cniVersion": "1.0.0", "name": "real", "plugins": [
			{"type": "bridge", "bridge": "real0", "isGateway": true, "ipMasq": true, "ipam": {
				"type": "host-local", "dataDir": %q,
				"ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd00:99::/64"}]],
				"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
			{"type": "portmap", "capabilities": {"portMappings": true}}]}`, h.leases), 0o600))
	h.cni = New(Config{ConfDir: conf, BinDirs: realDirs, CacheDir: filepath.Join(h.dir, "cache")})
	must(t, h.cni.Watch(t.Context()))
	if got := h.cni.Condition(); !got.Ready {
		t.Fatalf("not ready: %s", got.Message)
	}
	t.Cleanup(func() {
		if br, err := netlink.LinkByName("real0"); err == nil {
			must(t, netlink.LinkDel(br))
		}
	})
	return h
}

// requireReal skips the test without root or without plugins, or fails it where CRID_TEST_ROOT asks for all.
func requireReal(t *testing.T) {
	t.Helper()
	isolate.NeedRoot(t, "it makes network namespaces")
	missing := ""
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if _, err := findPlugin(plugin, realDirs); err != nil {
			missing = err.Error()
		}
	}
	if _, err := exec.LookPath("iptables"); err != nil {
		missing = "iptables, for the plugin portmap"
	}
	if missing != "" {
		isolate.Lacking(t, missing)
	}
}

// pod makes a network namespace and a request for it.
func (h *host) pod(id string, ports ...PortMapping) Request {
	h.t.Helper()
	path := filepath.Join(h.dir, "ns-"+id)
	must(h.t, os.WriteFile(path, nil, 0o600))
	must(h.t, pinNewNetNS(path))
	h.t.Cleanup(func() { h.unpin(path) })
	r, err := h.cni.Prepare(Request{ID: id, NetNS: path, Args: PodArgs("default", id, "uid", id), Ports: ports})
	must(h.t, err)
	return r
}

// pinNewNetNS binds a new network namespace to the file at path.
func pinNewNetNS(path string) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	bound := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	if err := netns.Set(own); err != nil {
		return err // and the thread, astray, stays locked
	}
	runtime.UnlockOSThread()
	return bound
}

// unpin takes a namespace away; it may be repeated.
func (h *host) unpin(path string) {
	h.t.Helper()
	if err := unix.Unmount(path, 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		h.t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
}

// wantClean fails when an attachment of the pods is left.
func (h *host) wantClean(pods ...Request) {
	h.t.Helper()
	leased, err := filepath.Glob(filepath.Join(h.leases, "real", "*[.:]*"))
	must(h.t, err)
	leased = slices.DeleteFunc(leased, func(p string) bool { return strings.HasPrefix(filepath.Base(p), "last_reserved_ip") })
	if len(leased) > 0 {
		h.t.Errorf("leases left: %v", leased)
	}
	links, err := netlink.LinkList()
	must(h.t, err)
	for _, l := range links {
		if l.Type() == "veth" {
			h.t.Errorf("link left: %s", l.Attrs().Name)
		}
	}
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.CommandContext(h.t.Context(), tool).Output()
		must(h.t, err)
		for _, p := range pods {
			if strings.Contains(string(out), p.ID) {
				h.t.Errorf("%s has rules of %s left:\n%s", tool, p.ID, out)
			}
		}
	}
	if known, err := h.cni.Recall(""); err != nil || len(known) > 0 {
		h.t.Errorf("remembered: %v, %v", known, err)
	}
}

// in runs a function on the network of a namespace.
func in(t *testing.T, path string, do func(h *netlink.Handle)) {
	t.Helper()
	ns, err := netns.GetFromPath(path)
	must(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	do(h)
}

func TestRealDualStack(t *testing.T) {
	h := newHost(t)
	r := h.pod("pod-one", PortMapping{HostPort: 18080, ContainerPort: 80, Protocol: "tcp"})
	a, err := h.cni.Add(t.Context(), r)
	must(t, err)
	if len(a.IPs) != 2 || net.ParseIP(a.IPs[0]).To4() == nil || net.ParseIP(a.IPs[1]).To4() != nil {
		t.Fatalf("IPs %v", a.IPs)
	}
	in(t, r.NetNS, func(inside *netlink.Handle) {
		lo, err := inside.LinkByName("lo")
		must(t, err)
		if lo.Attrs().Flags&net.FlagUp == 0 {
			t.Error("the loopback is down")
		}
		eth0, err := inside.LinkByName("eth0")
		must(t, err)
		addrs, err := inside.AddrList(eth0, netlink.FAMILY_ALL)
		must(t, err)
		for _, ip := range a.IPs {
			if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.String() == ip }) {
				t.Errorf("eth0 has %v and not %s", addrs, ip)
			}
		}
	})
	rules, err := exec.CommandContext(t.Context(), "iptables-save", "-t", "nat").Output()
	must(t, err)
	if !strings.Contains(string(rules), "--dport 18080") {
		t.Errorf("host port is not mapped:\n%s", rules)
	}
	must(t, h.cni.Status(t.Context()))
	must(t, h.cni.GC(t.Context(), func() []Request { return []Request{r} }))
	if known, err := h.cni.Recall("pod-one"); err != nil || len(known) != 1 {
		t.Errorf("collected as garbage: %v, %v", known, err)
	}
	for range 2 {
		must(t, h.cni.Del(t.Context(), r))
	}
	h.wantClean(r)
}

// Without host ports: the check of portmap 1.1.1 is wrong for dual stack.
func TestRealCheck(t *testing.T) {
	h := newHost(t)
	r := h.pod("pod-check")
	_, err := h.cni.Add(t.Context(), r)
	must(t, err)
	must(t, h.cni.Check(t.Context(), r))
	in(t, r.NetNS, func(inside *netlink.Handle) {
		eth0, err := inside.LinkByName("eth0")
		must(t, err)
		routes, err := inside.RouteList(eth0, netlink.FAMILY_V4)
		must(t, err)
		for _, route := range routes {
			if route.Gw != nil {
				must(t, inside.RouteDel(&route))
			}
		}
	})
	wantKind(t, h.cni.Check(t.Context(), r), errdef.Unavailable, "plugin bridge, CHECK")
	must(t, h.cni.Del(t.Context(), r))
	h.wantClean(r)
}

// The plugins find the rules to masquerade by the addresses inside, so only Del before unpinning cleans all up;
// what must never stay is the address.
func TestRealDelWithoutNamespace(t *testing.T) {
	h := newHost(t)
	r := h.pod("pod-gone", PortMapping{HostPort: 18081, ContainerPort: 80, Protocol: "udp"})
	_, err := h.cni.Add(t.Context(), r)
	must(t, err)
	must(t, unix.Unmount(r.NetNS, 0)) // the pin is a plain file now
	must(t, h.cni.Del(t.Context(), r))
	h.unpin(r.NetNS)
	must(t, h.cni.Del(t.Context(), r))
	leased, err := filepath.Glob(filepath.Join(h.leases, "real", "1*"))
	must(t, err)
	if len(leased) > 0 {
		t.Errorf("leases left: %v", leased)
	}
}

// The address is taken when the chain fails at its second plugin; Del gives it back.
func TestRealAddThatFailsHalfWay(t *testing.T) {
	h := newHost(t)
	r := h.pod("pod-half", PortMapping{HostPort: 18082, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"})
	r.Conflist = []byte(strings.Replace(string(r.Conflist), `"type":"portmap"`, `"type":"portmap","conditionsV4":["--no-such-option"]`, 1))
	_, err := h.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, "plugin portmap, ADD", "pod-half")
	must(t, h.cni.Del(t.Context(), r))
	h.wantClean(r)
}

func TestRealManyAtTheSameTime(t *testing.T) {
	h := newHost(t)
	var pods []Request
	for i := range 10 {
		pods = append(pods, h.pod(fmt.Sprint("pod-many-", i), PortMapping{HostPort: int32(18100 + i), ContainerPort: 80, Protocol: "tcp"}))
	}
	ips := make([][]string, len(pods))
	var adds, dels errgroup.Group
	for i, r := range pods {
		adds.Go(func() error {
			a, err := h.cni.Add(t.Context(), r)
			ips[i] = a.IPs
			return err
		})
	}
	must(t, adds.Wait())
	seen := map[string]bool{}
	for _, ip := range slices.Concat(ips...) {
		if seen[ip] {
			t.Errorf("%s was given twice", ip)
		}
		seen[ip] = true
	}
	for _, r := range pods {
		dels.Go(func() error { return h.cni.Del(t.Context(), r) })
	}
	must(t, dels.Wait())
	h.wantClean(pods...)
}

// A DEL after a restart and with another configuration undoes the ADD of before.
func TestRealDelAfterChange(t *testing.T) {
	h := newHost(t)
	r := h.pod("pod-old")
	_, err := h.cni.Add(t.Context(), r)
	must(t, err)
	must(t, os.RemoveAll(h.cni.cfg.ConfDir))
	later := New(h.cni.cfg)
	must(t, later.Del(t.Context(), r))
	h.wantClean(r)
}
