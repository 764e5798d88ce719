package sandbox

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/test/isolate"
)

// The rooms that pods pass through fit as they are.
var (
	_ Store[Record] = (*state.Dir[Record])(nil)
	_ Namespaces    = (*ns.Pinner)(nil)
	_ Network       = (*network.CNI)(nil)
	_ Cgroups       = (*cgroup.Tree)(nil)
	_ Containers    = (*container.Manager)(nil)
	_ Events        = (*event.Bus[event.Event])(nil)
	_ Files         = (*HostFiles)(nil)
)

const conflist = `{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"bridge","bridge":"crid-test0","isGateway":true,
"ipam":{"type":"host-local","dataDir":"DIR","ranges":[[{"subnet":"10.88.7.0/24"}]]}}]}`

// TestOnTheRealHost is the life of a pod with real namespaces, CNI plugins, files and records; only containers
// and cgroups are played.
func TestOnTheRealHost(t *testing.T) {
	const plugins = "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		isolate.Lacking(t, "the CNI plugins: "+err.Error())
	}
	isolate.NeedRoot(t, "it makes namespaces and mounts")
	h := newHost(t)
	m, _, dir := h.onRealHost(t, plugins)
	p := run(t, m, "a")
	s := p.Status()
	if addr, err := netip.ParseAddr(s.IPs[0]); err != nil || !netip.MustParsePrefix("10.88.7.0/24").Contains(addr) {
		t.Errorf("address %s: %v", s.IPs[0], err)
	}
	_, env, leave, err := p.Enter(t.Context(), runtime.NamespaceMode_CONTAINER)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	for _, pin := range []string{env.NetNS, env.IPCNS, env.UTSNS} {
		if err := m.deps.Files.Pinned(pin); err != nil {
			t.Error(err)
		}
	}
	if got := contentOf(t, env.Hosts); !strings.HasSuffix(got, s.IPs[0]+"\ta\n") {
		t.Errorf("hosts %q", got)
	}
	shutDown(t, m)

	again, cni, _ := h.onRealHostIn(t, plugins, dir) // a restart
	if all := again.List(); len(all) != 1 || all[0].Status().State != Ready {
		t.Fatalf("%d pods after a restart: %+v", len(all), all[0].Status())
	}
	remove(t, again, again.List()...)
	if reqs, err := cni.Recall(""); err != nil || len(reqs) > 0 {
		t.Errorf("attachments are left: %v, %v", reqs, err)
	}
	for _, place := range []string{"netns", "ns/ipc", "ns/uts", "pods"} {
		if left, err := os.ReadDir(filepath.Join(dir, place)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", place, left, err)
		}
	}
	if leases, err := filepath.Glob(filepath.Join(dir, "ipam", "test", "10.*")); err != nil || len(leases) > 0 {
		t.Errorf("leases are left: %v, %v", leases, err)
	}
	h.nothingLeft(t, again)
	for _, name := range []string{"netns", "ns"} { // the pinner's own mounts, for TempDir's removal
		if err := unix.Unmount(filepath.Join(dir, name), unix.MNT_DETACH); err != nil {
			t.Logf("unmount %s: %v", name, err)
		}
	}
}

func (h *fakeHost) onRealHost(t *testing.T, plugins string) (*Manager, *network.CNI, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	list := strings.ReplaceAll(conflist, "DIR", filepath.Join(dir, "ipam"))
	if err := os.WriteFile(filepath.Join(dir, "net.d", "10-test.conflist"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	return h.onRealHostIn(t, plugins, dir)
}

func (h *fakeHost) onRealHostIn(t *testing.T, plugins, dir string) (*Manager, *network.CNI, string) {
	t.Helper()
	cni := network.New(network.Config{
		ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{plugins}, CacheDir: filepath.Join(dir, "cni"),
	})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if err := cni.Watch(ctx); err != nil {
		t.Fatal(err)
	}
	m, _ := h.boots()
	m.deps.Namespaces = ns.New(filepath.Join(dir, "netns"), filepath.Join(dir, "ns"))
	m.deps.Network = cni
	m.deps.Files = NewFiles(FilesConfig{Dir: filepath.Join(dir, "pods"), Etc: etc(t)})
	for _, err := range m.Load(t.Context()) {
		t.Error(err)
	}
	return m, cni, dir
}
