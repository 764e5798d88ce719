package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/node"
)

// faulty is the name by which this test binary is a CNI plugin that fails.
const faulty = "faulty"

// faults is what the faulty plugin does wrong; it is read at each run from the file beside the plugin.
type faults struct {
	Add, Del int // how often these fail, in percent
}

// playFaulty is a chained CNI plugin that changes nothing. Of its failures half are an error and half a death. It
// writes down the arguments of each DEL that it does not fail.
func playFaulty() int {
	dir := filepath.Dir(os.Args[0])
	var f faults
	raw, err := os.ReadFile(filepath.Join(dir, "faults"))
	if err != nil || json.Unmarshal(raw, &f) != nil {
		return 9
	}
	stdin, err := io.ReadAll(os.Stdin)
	var given struct {
		Note       string          `json:"note"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err != nil || json.Unmarshal(stdin, &given) != nil {
		return 9
	}
	command := os.Getenv("CNI_COMMAND")
	chance := map[string]int{"ADD": f.Add, "DEL": f.Del}[command]
	switch n := rand.IntN(100); {
	case n < chance/2:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // does not return
	case n < chance:
		fmt.Printf(`{"code":11,"msg":"the faulty plugin fails %s"}`, command)
		return 1
	}
	switch command {
	case "ADD":
		fmt.Printf("%s", given.PrevResult)
	case "DEL":
		line := fmt.Sprintf("%s %s %s\n", given.Note, os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_ARGS"))
		if os.WriteFile(filepath.Join(dir, "del-"+os.Getenv("CNI_CONTAINERID")), []byte(line), 0o600) != nil {
			return 9
		}
	}
	return 0
}

// faultyNetwork is the usual bridge with addresses of its own, and behind it the faulty plugin.
type faultyNetwork struct {
	t       *testing.T
	dir     string // holds the plugin and what it is to do
	version string // of CNI
	bridge  string // plugin that makes the bridge
	options string // of crid.toml's table
}

func newFaultyNetwork(t *testing.T) faultyNetwork {
	t.Helper()
	n := faultyNetwork{t: t, dir: t.TempDir(), version: "1.0.0", bridge: "bridge"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, plugin := range []string{faulty, collector} {
		if err := os.Symlink(self, filepath.Join(n.dir, plugin)); err != nil {
			t.Fatal(err)
		}
	}
	n.fail(faults{})
	return n
}

func (n faultyNetwork) fail(f faults) {
	n.t.Helper()
	raw, err := json.Marshal(f)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(filepath.Join(n.dir, "faults"), raw)
}

// write replaces a file in one step.
func (n faultyNetwork) write(path string, content []byte) {
	n.t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}

// cniDirs are where distributions have their plugins.
var cniDirs = [...]string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

// start starts a crid on the network.
func (n faultyNetwork) start(options ...harness.Option) *harness.Crid {
	n.t.Helper()
	c := harness.Start(n.t, append(options, harness.Quiet(), harness.Conflist(node.NoNetwork), harness.Config(fmt.Sprintf(
		"[network]\nbin_dirs = [%q, %q, %q, %q]\n%s", n.dir, cniDirs[0], cniDirs[1], cniDirs[2], n.options)))...)
	n.configure(c, "first")
	return c
}

// configure makes the network that of c; note tells one configuration from another.
func (n faultyNetwork) configure(c *harness.Crid, note string) {
	n.t.Helper()
	n.write(filepath.Join(c.CNIDir(), "10-faulty.conflist"), []byte(n.conflist(filepath.Base(c.Dir), c.Leases(), note)))
	eventually(n.t, "NetworkReady", func() bool { return networkReady(n.t, c) })
}

// conflist is a bridge by the name that the harness removes, with leases in the directory where it looks for them.
func (n faultyNetwork) conflist(bridge, leases, note string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": "faulty", "plugins": [
  {"type": %q, "bridge": %q, "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.89.0.0/16"}]]}},
  {"type": %q, "note": %q}]}`, n.version, n.bridge, bridge, leases, faulty, note)
}

// del is what the plugin was called with when it last let go of a pod.
func (n faultyNetwork) del(id string) string {
	raw, err := os.ReadFile(filepath.Join(n.dir, "del-"+id))
	if err != nil {
		return ""
	}
	return string(raw)
}

// tombstones are what Status tells of networks that could not be detached.
func tombstones(t *testing.T, c *harness.Crid) []sandbox.Tombstone {
	t.Helper()
	var info struct{ Tombstones []sandbox.Tombstone }
	inside(t, c, &info)
	return info.Tombstones
}

// TestAFailedDelIsMadeUpFor lets DEL fail when a pod is stopped, takes the network away under crid, and lets crid
// crash, before the plugin is well again.
func TestAFailedDelIsMadeUpFor(t *testing.T) {
	n := newFaultyNetwork(t)
	c := n.start()
	for _, today := range []string{"the same network", "another network", "no network"} {
		pod := c.RunPod()
		n.fail(faults{Del: 100})
		pod.Stop()
		if graves := tombstones(t, c); len(graves) != 1 || graves[0].Request.ID != pod.ID || graves[0].Error == "" {
			t.Fatalf("%s: tombstones %+v", today, graves)
		}
		pod.Remove()
		switch today {
		case "another network":
			n.configure(c, "second")
		case "no network":
			if err := os.Remove(filepath.Join(c.CNIDir(), "10-faulty.conflist")); err != nil {
				t.Fatal(err)
			}
		}
		c.Crash()
		if len(tombstones(t, c)) != 1 {
			t.Errorf("%s: the tombstone did not survive a crash", today)
		}
		n.fail(faults{})
		c.Crash() // rather than wait for the back-off
		eventually(t, today+": the network is detached", func() bool { return len(tombstones(t, c)) == 0 })
		if said := n.del(pod.ID); !strings.HasPrefix(said, "first "+pod.ID) || !strings.Contains(said, "K8S_POD_NAME="+pod.Config.Metadata.Name) {
			t.Errorf("%s: DEL was called with %q", today, said)
		}
		n.configure(c, "first")
		c.Restart() // after which this network is certain to be today's
	}
}

// TestChurnLeaksNoAddress runs a thousand pods on a network that fails one call in ten.
func TestChurnLeaksNoAddress(t *testing.T) {
	const pods, atOnce = 1000, 8
	n := newFaultyNetwork(t)
	c := n.start()
	n.fail(faults{Add: 10, Del: 10})
	client := c.Client()
	var failed atomic.Int32
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for range pods {
		slots <- struct{}{}
		wg.Go(func() { // ends with its pod
			defer func() { <-slots }()
			made, err := client.RunPodSandbox(c.Context(), &runtime.RunPodSandboxRequest{Config: c.PodConfig()})
			if err != nil {
				failed.Add(1)
				if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "plugin faulty, ADD") {
					t.Error("run pod:", err)
				}
				return
			}
			if err := c.Runtime.StopPodSandbox(c.Context(), made.PodSandboxId); err != nil {
				t.Error("stop pod:", err)
			}
			if err := c.Runtime.RemovePodSandbox(c.Context(), made.PodSandboxId); err != nil {
				t.Error("remove pod:", err)
			}
		})
	}
	wg.Wait()
	buried := len(tombstones(t, c))
	t.Logf("%d of %d pods failed, %d networks are to be detached later", failed.Load(), pods, buried)
	if failed.Load() < pods/20 || buried == 0 {
		t.Error("the plugin did not fail as it should")
	}
	n.fail(faults{})
	c.Restart() // rather than wait for the back-off
	eventually(t, "all networks are detached", func() bool { return len(tombstones(t, c)) == 0 })
	leases, err := os.ReadDir(filepath.Join(c.Leases(), "faulty"))
	if err != nil {
		t.Fatal(err)
	}
	for _, lease := range leases {
		if lease.Name() != "lock" && !strings.HasPrefix(lease.Name(), "last_reserved_ip") {
			t.Error("leaked address", lease.Name())
		}
	}
}
