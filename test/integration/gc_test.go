package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// collector is the name by which this test binary is a bridge plugin of CNI 1.1: it lets the real one do the work, which
// does not know that version, and collects leases, which the real ones of no version do.
const collector = "collector"

func playCollector() int {
	var conf map[string]any
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil || json.Unmarshal(stdin, &conf) != nil {
		return 9
	}
	switch os.Getenv("CNI_COMMAND") {
	case "STATUS":
		return 0
	case "GC":
		return collectLeases(stdin)
	}
	conf["type"], conf["cniVersion"] = "bridge", "1.0.0"
	if before, ok := conf["prevResult"].(map[string]any); ok {
		before["cniVersion"] = "1.0.0"
	}
	for _, dir := range cniDirs {
		real := exec.Command(filepath.Join(dir, "bridge"))
		if stdin, err = json.Marshal(conf); err != nil {
			return 9
		}
		real.Stdin, real.Stdout, real.Stderr = bytes.NewReader(stdin), os.Stdout, os.Stderr
		if real.Run() == nil {
			return 0
		}
		if real.ProcessState != nil {
			return real.ProcessState.ExitCode()
		}
	}
	return 9
}

// gcConfig is what a plugin is told in a GC.
type gcConfig struct {
	Name string
	IPAM struct{ DataDir string }

	Valid []struct{ ContainerID, IfName string } `json:"cni.dev/valid-attachments"`
}

// collectLeases deletes the leases of no valid attachment, and then writes down which were valid.
func collectLeases(stdin []byte) int {
	var conf gcConfig
	if json.Unmarshal(stdin, &conf) != nil {
		return 9
	}
	var ids []string
	for _, valid := range conf.Valid {
		ids = append(ids, valid.ContainerID)
	}
	leases, _ := filepath.Glob(filepath.Join(conf.IPAM.DataDir, conf.Name, "10.*"))
	for _, lease := range leases {
		raw, err := os.ReadFile(lease)
		owner, _, _ := strings.Cut(string(raw), "\r\n")
		if err == nil && !slices.Contains(ids, owner) {
			err = os.Remove(lease)
		}
		if err != nil {
			return 9
		}
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), "collections"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 9
	}
	defer log.Close()
	if _, err := fmt.Fprintln(log, strings.Join(ids, " ")); err != nil {
		return 9
	}
	return 0
}

// gcNetwork is a crid on a network that collects garbage.
type gcNetwork struct {
	faultyNetwork
	c *harness.Crid
}

func startCollecting(t *testing.T, version, period string, options ...harness.Option) *gcNetwork {
	t.Helper()
	n := newFaultyNetwork(t)
	n.version, n.bridge, n.options = version, collector, fmt.Sprintf("gc_period = %q", period)
	return &gcNetwork{n, n.start(options...)}
}

// collections are the valid attachments of each collection so far.
func (n *gcNetwork) collections() []string {
	n.t.Helper()
	raw, err := os.ReadFile(filepath.Join(n.dir, "collections"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	return strings.Split(string(raw), "\n")[:strings.Count(string(raw), "\n")]
}

// next waits for two collections, of which the second has begun after the call, and returns the valid attachments of that.
func (n *gcNetwork) next() string {
	n.t.Helper()
	before := len(n.collections())
	eventually(n.t, "two collections", func() bool { return len(n.collections()) >= before+2 })
	return n.collections()[before+1]
}

func (n *gcNetwork) lease(address string) string {
	return filepath.Join(n.c.Leases(), "faulty", address)
}

// hasLease tells whether there is a lease of the pod or attachment.
func (n *gcNetwork) hasLease(id string) bool {
	n.t.Helper()
	leases, err := filepath.Glob(n.lease("10.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return slices.ContainsFunc(leases, func(lease string) bool {
		raw, err := os.ReadFile(lease)
		return err == nil && strings.HasPrefix(string(raw), id)
	})
}

// nobodys are attachments that no pod has: one with a lease alone, and one that libcni remembers as it does the pod's.
func (n *gcNetwork) nobodys(pod *harness.Pod) (lease, attachment string) {
	n.t.Helper()
	lease, attachment = strings.Repeat("a", 64), strings.Repeat("b", 64)
	memory := filepath.Join(n.c.Root(), "cni", "results", "faulty-%s-eth0")
	raw, err := os.ReadFile(fmt.Sprintf(memory, pod.ID))
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(fmt.Sprintf(memory, attachment), bytes.ReplaceAll(raw, []byte(pod.ID), []byte(attachment)))
	n.write(n.lease("10.89.7.1"), []byte(lease+"\r\neth0"))
	n.write(n.lease("10.89.7.2"), []byte(attachment+"\r\neth0"))
	return lease, attachment
}

func (n *gcNetwork) areCollected(pod *harness.Pod, lease, attachment string) {
	n.t.Helper()
	eventually(n.t, "what nobody has is collected", func() bool { return !n.hasLease(lease) && !n.hasLease(attachment) })
	if said := n.del(attachment); !strings.Contains(said, "K8S_POD_NAME="+pod.Config.Metadata.Name) {
		n.t.Errorf("an attachment that is remembered was detached with %q", said)
	}
	if n.del(pod.ID) != "" || !n.hasLease(pod.ID) {
		n.t.Error("the pod's own attachment was collected")
	}
}

func TestGarbageOfTheNetworkIsCollectedAtTheStart(t *testing.T) {
	n := startCollecting(t, "1.1.0", "24h")
	pod := n.c.RunPod()
	if err := n.c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	lease, attachment := n.nobodys(pod)
	if err := n.c.Again(n.c.Context()); err != nil {
		t.Fatal(err)
	}
	n.areCollected(pod, lease, attachment)
}

// TestGarbageOfTheNetworkIsCollectedAgainAndAgain has besides a pod that is ready one that is being made and one that is
// gone, but for its network.
func TestGarbageOfTheNetworkIsCollectedAgainAndAgain(t *testing.T) {
	orders := filepath.Join(t.TempDir(), "orders")
	n := startCollecting(t, "1.1.0", "1s", harness.Program(harness.Binary("crid-failpoint"), "CRID_FAILPOINTS="+orders))
	pod, buried := n.c.RunPod(), n.c.RunPod()
	n.fail(faults{Del: 100})
	buried.Remove()
	if len(tombstones(t, n.c)) != 1 {
		t.Fatal("the plugin did not fail")
	}
	n.write(orders, []byte("hold sandbox/hosts/written")) // which comes after the ADD
	made := make(chan string)
	go func() { // ends with the call
		got, err := n.c.Client().RunPodSandbox(n.c.Context(), &runtime.RunPodSandboxRequest{Config: n.c.PodConfig()})
		if err != nil {
			t.Error("run pod:", err)
		}
		made <- got.GetPodSandboxId()
	}()
	eventually(t, "the third lease", func() bool {
		leases, err := filepath.Glob(n.lease("10.*"))
		return err == nil && len(leases) == 3
	})
	valid := strings.Fields(n.next())
	n.write(orders, nil)
	third := <-made
	for what, id := range map[string]string{"ready": pod.ID, "being made": third, "buried": buried.ID} {
		if !slices.Contains(valid, id) || !n.hasLease(id) {
			t.Errorf("the attachment of the pod that is %s was collected; valid were %v", what, valid)
		}
	}
	n.fail(faults{})
	for range 2 {
		lease, attachment := n.nobodys(pod)
		n.areCollected(pod, lease, attachment)
		if err := os.Remove(filepath.Join(n.dir, "del-"+attachment)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the network is detached", func() bool { return len(tombstones(t, n.c)) == 0 && !n.hasLease(buried.ID) })
}

// TestAnOldNetworkIsNotAsked has garbage that libcni remembers, as a sign that it was looked for.
func TestAnOldNetworkIsNotAsked(t *testing.T) {
	n := startCollecting(t, "1.0.0", "1s")
	pod := n.c.RunPod()
	for range 2 {
		lease, attachment := n.nobodys(pod)
		eventually(t, "what is remembered is collected", func() bool { return !n.hasLease(attachment) })
		if !n.hasLease(lease) || len(n.collections()) != 0 {
			t.Error("a network of CNI 1.0 was asked to collect its garbage")
		}
	}
	if err := os.Remove(n.lease("10.89.7.1")); err != nil {
		t.Fatal(err)
	}
}
