package network

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leased is a CNI whose network keeps leases below dir.
func leased(t *testing.T) (c *CNI, dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "leases", "net")
	conf := `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"outer","delegate":{"ipam":{"type":"host-local","dataDir":"` + filepath.Dir(dir) + `"}}}]}`
	put(t, conf, root, "net.d", "10.conflist")
	return New(Config{ConfDir: filepath.Join(root, "net.d"), CacheDir: filepath.Join(root, "cni")}), dir
}

func put(t *testing.T, text string, path ...string) {
	t.Helper()
	file := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLeases(t *testing.T) {
	c, dir := leased(t)
	if all, err := c.Leases(); err != nil || len(all) > 0 {
		t.Errorf("without any: %v, %v", all, err)
	}
	put(t, "pod1\r\neth0", dir, "10.1.0.2")
	put(t, "pod2\neth0", dir, "fd00::2")
	put(t, "", dir, "10.1.0.3") // just being given
	put(t, "", dir, "lock")
	put(t, "10.1.0.2", dir, "last_reserved_ip.0")
	other := strings.Replace(dir, "/net", "/old", 1)
	put(t, "pod3\r\neth0", other, "10.2.0.2")
	old := json.RawMessage(`{"name":"old","plugins":[{"type":"bridge","ipam":{"type":"host-local","dataDir":"` + filepath.Dir(other) + `"}}]}`)
	all, err := c.Leases(old, json.RawMessage("garbage"))
	slices.SortFunc(all, func(a, b Lease) int { return strings.Compare(a.ID, b.ID) })
	want := []Lease{{filepath.Join(dir, "10.1.0.2"), "pod1"}, {filepath.Join(dir, "fd00::2"), "pod2"}, {filepath.Join(other, "10.2.0.2"), "pod3"}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestReleaseTakesBackOnlyThatLease(t *testing.T) {
	c, dir := leased(t)
	path := filepath.Join(dir, "10.1.0.2")
	put(t, "pod2\r\neth0", path)
	if err := c.Release(t.Context(), Lease{path, "pod1"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("the address was given to another meanwhile:", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Release(ctx, Lease{path, "pod2"}); err == nil || !strings.Contains(err.Error(), lock.Name()) {
		t.Errorf("while a plugin has the lock: %v", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Release(t.Context(), Lease{path, "pod2"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the lease is still there")
	}
}

func TestMemoriesTellOfWhatLibcniOverlooks(t *testing.T) {
	c, _ := leased(t)
	results := filepath.Join(c.cfg.CacheDir, "results")
	put(t, `{"kind":"cniCacheV1","containerId":"pod1","config":"e30=","cniArgs":[["K8S_POD_NAME","web"]]}`, results, "net-pod1-eth0")
	put(t, `{"kind":`, results, "net-pod2-eth0")
	put(t, `{}`, results, "net-pod3-eth0")
	all, err := c.Memories()
	if err != nil || len(all) != 3 {
		t.Fatalf("got %v, %v", all, err)
	}
	if m := all[0]; m.ID != "pod1" || string(m.Conflist) != "{}" || m.Args["K8S_POD_NAME"] != "web" || m.Err != nil {
		t.Errorf("the whole one: %+v", m)
	}
	if all[1].Err == nil || all[2].Err == nil {
		t.Errorf("the others: %v, %v", all[1].Err, all[2].Err)
	}
	if err := c.Forget(all[1].Path); err != nil {
		t.Error(err)
	}
	if err := c.Forget(all[0].Path); err != nil {
		t.Error(err)
	}
	if err := c.Forget("/etc/passwd"); err == nil {
		t.Error("it removes what is not in its memory")
	}
	if all, err = c.Memories(); len(all) != 2 || err != nil {
		t.Errorf("left: %v, %v", all, err)
	}
}
