package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
)

// strayID makes ids that nobody has.
func strayID(n int) string { return fmt.Sprintf("%064x", 0xfeed0000+n) }

// planter makes orphans by hand.
type planter struct {
	t    *testing.T
	c    *harness.Crid
	want [][3]string // what fsck must say: kind, part of the name, id

	stopped bool // crid does not run
}

// id is a new one, of something that must be told of.
func (p *planter) id(kind, name string) string {
	id := strayID(len(p.want))
	p.want = append(p.want, [3]string{kind, name, id})
	return id
}

func (p *planter) file(text string, path ...string) string {
	p.t.Helper()
	file := filepath.Join(path...)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		p.t.Fatal(err)
	}
	return file
}

func (p *planter) mount(source, target, kind string, flags uintptr) {
	p.t.Helper()
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		p.t.Fatal(err)
	}
}

// plant makes an orphan of each kind, and answers what fsck must say of them.
func plant(t *testing.T, c *harness.Crid, stopped bool) [][3]string {
	t.Helper()
	p := &planter{t: t, c: c, stopped: stopped}
	p.plantFiles()
	p.plantNetwork()
	p.mount("/proc/self/ns/net", p.file("", "/run/netns", "crid-"+p.id("namespace", "/run/netns/crid-")), "", unix.MS_BIND)
	p.mount("shm", filepath.Dir(p.file("", c.RunRoot, "pods", p.id("mount", "/pods/"), "under")), "tmpfs", 0)
	image := filepath.Join(c.RunRoot, "rootfs", ".images", p.id("mount", "/.images/"))
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	p.mount("image", image, "tmpfs", 0)
	if err := os.MkdirAll(filepath.Dir(harness.GroupOf(filepath.Join(c.Cgroup, "crid-"+p.id("cgroup", c.Cgroup)), "memory.")), 0o755); err != nil {
		t.Fatal(err)
	}
	strayMonitor(t, c, p.id("process", "monitor"))
	return p.want
}

func (p *planter) plantFiles() {
	p.t.Helper()
	c := p.c
	p.file(strings.Repeat("x", 100_000), c.Root(), "rootfs", p.id("rootfs", "/rootfs/"), "upper", "data")
	p.file(strings.Repeat("x", 50_000), c.Root(), "rootfs", ".trash", "1", "data")
	p.file(`{"annotations":{"io.kubernetes.cri.sandbox-name":"lost","io.kubernetes.cri.sandbox-namespace":"away","io.kubernetes.cri.container-name":"web"}}`,
		c.RunRoot, "monitor", p.id("monitor", "/monitor/"), "config.json")
	layer := strayID(99)
	p.file(strings.Repeat("x", 20_000), c.Root(), "storage", "overlay", layer, "diff", "file")
	p.file("{", c.Root(), "state", "pods", ".tmp-123")
	if !p.stopped { // else it is a container of which nothing but the id is known
		p.file("{", c.Root(), "state", "containers", p.id("record", "/containers/")+".json")
	}
	p.want = append(p.want, [3]string{"trash", ".trash/1", ""}, [3]string{"layer", layer, ""}, [3]string{"record", ".tmp-123", ""})
}

func (p *planter) plantNetwork() {
	p.t.Helper()
	attached := p.id("cni cache", "results/")
	network := []byte(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"tuning"}]}`)
	raw, err := json.Marshal(map[string]any{
		"kind": "cniCacheV1", "containerId": attached, "ifName": "eth0", "networkName": "net", "config": network,
		"cniArgs": [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "away"}, {"K8S_POD_NAME", "gone"}},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.file(string(raw), p.c.Root(), "cni", "results", "net-"+attached+"-eth0")
	torn := p.id("cni cache", "torn-")
	p.file("{", p.c.Root(), "cni", "results", "torn-"+torn+"-eth0")
	locks, err := filepath.Glob(filepath.Join(p.c.Leases(), "*", "lock"))
	if err != nil || len(locks) != 1 {
		p.t.Fatalf("where leases are: %v, %v", locks, err)
	}
	p.file(p.id("ip lease", "10.88.200.200")+"\r\neth0", filepath.Dir(locks[0]), "10.88.200.200")
}

// strayMonitor starts a program that is by its command line a monitor of crid's.
func strayMonitor(t *testing.T, c *harness.Crid, id string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "while :; do sleep 0.1; done", "--cid="+id, "--bundle="+filepath.Join(c.RunRoot, "monitor", id))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the monitor
		defer close(ended)
		_ = cmd.Wait() // it was killed
	}()
	t.Cleanup(func() {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("the stray monitor lives on:", cmd.Process.Kill())
		}
	})
}

// What crid has not made is told of, and never removed: at no start, and by no repair. What cannot be listed hides nothing of
// the rest.
func TestFsckBesideWhatIsNotCrids(t *testing.T) {
	c := harness.Start(t)
	stays := c.RunPod().Run("sleep 1000")
	p := &planter{t: t, c: c}
	strange := []string{
		p.file("x", c.Root(), "rootfs", "README"), p.file("x", c.RunRoot, "monitor", "README"), p.file("x", c.RunRoot, "pods", "README"),
		p.file("x", c.Root(), "state", "pods", "README"), p.file(`{"containerId":"another","config":"e30="}`, c.Root(), "cni", "results", "README"),
	}
	locks, err := filepath.Glob(filepath.Join(c.Leases(), "*", "lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("where leases are: %v, %v", locks, err)
	}
	notLeases := []string{filepath.Join(filepath.Dir(locks[0]), "10.88.200.201"), p.file("another\r\neth0", filepath.Dir(locks[0]), "10.88.200.202")}
	if err := os.Mkdir(notLeases[0], 0o700); err != nil {
		t.Fatal(err)
	}
	for _, crash := range []bool{false, true} {
		if crash {
			c.Crash()
		}
		for _, f := range append(fsck(t, c), fsck(t, c, "--repair")...) {
			if f.Problem != "unknown" || f.Remedy == "" || f.Of.ID != "" || f.Outcome == "mended" {
				t.Errorf("found %v", f)
			}
		}
		if found := fsck(t, c); len(found) != len(strange) {
			t.Errorf("found %v", found)
		}
		for _, path := range append(strange, notLeases...) {
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("with a crash %v: %v", crash, err)
			}
		}
	}
	for _, path := range append(strange, notLeases...) {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}

	orphan := filepath.Dir(p.file("x", c.Root(), "rootfs", strayID(1), "data"))
	results := filepath.Join(c.Root(), "cni", "results")
	if err := os.Rename(results, results+".away"); err != nil {
		t.Fatal(err)
	}
	p.file("no directory", results)
	for _, args := range [][]string{nil, {"--repair"}} {
		cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"fsck", "--config", c.ConfigFile()}, args...)...)
		said, _ := cmd.CombinedOutput() // the exit code is looked at below
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(said), orphan) || !strings.Contains(string(said), results+": not a directory") ||
			strings.Contains(string(said), "missing") {
			t.Errorf("crid fsck %v beside what cannot be listed: exit code %d\n%s", args, code, said)
		}
	}
	if err := errors.Join(os.Remove(results), os.Rename(results+".away", results)); err != nil {
		t.Fatal(err)
	}
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("after repairing: %v", found)
	}
	stays.Exec("true")
}
