package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

const (
	// nodeName is the kubelet's name of its node; it ends the name of every static pod.
	nodeName = "crid-node"
	// nodeIP is the node's address, on a link of its own: the kubelet refuses a loopback address.
	nodeIP = "10.99.0.1"
	// port is that of the kubelet's API.
	port = 10250
	// startLimit is how long a kubelet may take until it is ready, and endLimit until it has ended.
	startLimit, endLimit = time.Minute, 30 * time.Second
	// podLimit is how long a pod may take to come to what a test expects.
	podLimit = 2 * time.Minute
	// every is how often a test looks.
	every = 200 * time.Millisecond
)

// kubelet is a running kubelet on a crid.
type kubelet struct {
	*harness.Crid
	dir    string // holds all that it writes
	log    string
	client *http.Client
	config map[string]any
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended; then exit says how
	exit   error
}

// setting changes the kubelet's configuration.
type setting func(config map[string]any)

// gates switches features on.
func gates(names ...string) setting {
	return func(config map[string]any) {
		on := map[string]bool{}
		for _, name := range names {
			on[name] = true
		}
		config["featureGates"] = on
	}
}

// start runs a kubelet on c until t ends. Then its pods are removed, and nothing of them may be left.
func start(t *testing.T, c *harness.Crid, settings ...setting) *kubelet {
	t.Helper()
	k := &kubelet{Crid: c, dir: filepath.Join(c.Dir, "kubelet")}
	k.log = filepath.Join(k.dir, "kubelet.log")
	k.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // self-signed
	for _, dir := range []string{"manifests", "logs", "volumeplugins", "root", "sysctls"} {
		if err := os.MkdirAll(filepath.Join(k.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k.configure(t, settings)
	prepareHost(t)
	t.Cleanup(func() { k.showLog(t) })
	k.run(t)
	t.Cleanup(func() { k.end(t) })
	return k
}

// configure writes the configuration: what the node's machine lacks is off, and what the kubelet does now and then it
// does often.
func (k *kubelet) configure(t *testing.T, settings []setting) {
	t.Helper()
	resolv := filepath.Join(k.dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.config = map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupRoot": cgroupRoot(t),
		"containerRuntimeEndpoint": "unix://" + k.Socket,
		"staticPodPath":            filepath.Join(k.dir, "manifests"), "podLogsDir": filepath.Join(k.dir, "logs"),
		"volumePluginDir": filepath.Join(k.dir, "volumeplugins"), "resolvConf": resolv,
		"address": nodeIP, "port": port, "readOnlyPort": 0, "healthzPort": 0, "registerNode": false,
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":  map[string]any{"mode": "AlwaysAllow"},
		"oomScoreAdj":    0, "maxOpenFiles": 20000, "failSwapOn": false, "makeIPTablesUtilChains": false,
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]string{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%"},
		"containerLogMaxSize": "10Ki", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
		"fileCheckFrequency": "1s", "maxPods": 200, "registryPullQPS": 0,
	}
	for _, set := range settings {
		set(k.config)
	}
	raw, err := json.Marshal(k.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "config.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// cgroupRoot makes the cgroup that the kubelet makes its own below, in every hierarchy.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(isolate.CgroupParent(), "kubelet")
	for _, file := range hierarchies {
		dir := filepath.Dir(file)
		for name := range strings.SplitSeq(strings.TrimPrefix(root, "/"), "/") {
			parent := dir
			dir = filepath.Join(parent, name)
			if err := errors.Join(os.MkdirAll(dir, 0o755), inherit(parent, dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// inherit gives a cgroup the processors and memory of its parent: of a v1 cpuset it has none until then.
func inherit(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		raw, err := os.ReadFile(filepath.Join(parent, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another controller's
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), raw, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prepareHost gives the isolated machine an address of its own, as a node has one.
func prepareHost(t *testing.T) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal("make a link for the node's address:", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(link); err != nil {
			t.Error(err)
		}
	})
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeIP), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		t.Fatal("give the node its address:", err)
	}
}

// covered runs a program ("$@") that sees copies, in the directory $COPIES, of the sysctls that a kubelet writes at its
// start: those are the host's. The program has a mount namespace of its own for it, because the kernel refuses a fresh
// /proc to user namespaces where the one that is there is partly covered. All other mounts propagate as before.
const covered = `
mount --make-rprivate /proc
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	[ -e "/proc/sys/$name" ] || continue
	copy="$COPIES/${name##*/}"
	[ -e "$copy" ] || cat "/proc/sys/$name" > "$copy"
	mount --bind "$copy" "/proc/sys/$name"
done
exec "$@"`

// run starts the kubelet and returns once it answers and has got its node ready.
func (k *kubelet) run(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(k.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.cmd = exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", covered, "sh", os.Getenv(binary), "--config", filepath.Join(k.dir, "config.json"), "--root-dir", filepath.Join(k.dir, "root"),
		"--cert-dir", filepath.Join(k.dir, "pki"), "--hostname-override", nodeName, "--node-ip", nodeIP, "--v", "2")
	k.cmd.Env = append(os.Environ(), "COPIES="+filepath.Join(k.dir, "sysctls"))
	k.cmd.Stdout, k.cmd.Stderr = log, log
	if err := k.cmd.Start(); err != nil {
		t.Fatal("start the kubelet:", err)
	}
	k.exited = make(chan struct{})
	go func() { // ends with the kubelet
		k.exit = k.cmd.Wait()
		close(k.exited)
	}()
	limit := time.After(startLimit)
	for {
		body, err := k.get(t.Context(), "/healthz")
		if err == nil && string(body) == "ok" {
			return
		}
		select {
		case <-k.exited:
			t.Fatal("the kubelet ended at once: ", k.exit)
		case <-limit:
			t.Fatalf("the kubelet is not healthy after %v: %v %s", startLimit, err, body)
		case <-time.After(every):
		}
	}
}

// stop ends the kubelet; its pods stay.
func (k *kubelet) stop(t *testing.T) {
	t.Helper()
	select {
	case <-k.exited:
		t.Error("the kubelet had ended by itself: ", k.exit)
		return
	default:
	}
	if err := k.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-k.exited:
	case <-time.After(endLimit):
		t.Fatalf("the kubelet (pid %d) did not end within %v", k.cmd.Process.Pid, endLimit)
	}
}

// end removes all pods, waits until the kubelet has taken them down and stops it.
func (k *kubelet) end(t *testing.T) {
	manifests, err := filepath.Glob(filepath.Join(k.dir, "manifests", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range manifests {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
	k.wait(t, "the kubelet to take down its pods", func() error {
		if pods, err := k.pods(context.Background()); err != nil || len(pods) > 0 {
			return fmt.Errorf("it has %d, %w", len(pods), err)
		}
		volumes, err := filepath.Glob(filepath.Join(k.dir, "root", "pods", "*", "volumes"))
		if err != nil || len(volumes) > 0 {
			return fmt.Errorf("volumes are left: %v, %w", volumes, err)
		}
		return nil
	})
	k.stop(t)
	removeCgroups(t, filepath.Join(isolate.CgroupParent(), "kubelet"))
}

// removeCgroups removes what the kubelet keeps when it ends: its own cgroups, and those of its classes of pods. What
// crid should have removed stays, and is found by the harness.
func removeCgroups(t *testing.T, root string) {
	t.Helper()
	for range 3 { // kubepods/burstable before kubepods before the root
		found, err := isolate.Cgroups(filepath.Dir(root))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range found {
			switch filepath.Base(dir) {
			case "kubelet", "kubepods", "burstable", "besteffort":
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.EBUSY) {
					t.Error(err)
				}
			}
		}
	}
}

func (k *kubelet) showLog(t *testing.T) {
	if !t.Failed() {
		return
	}
	raw, err := os.ReadFile(k.log)
	if err != nil {
		t.Error(err)
	}
	lines := slices.DeleteFunc(strings.Split(string(raw), "\n"), func(line string) bool { return !strings.HasPrefix(line, "E") && !strings.HasPrefix(line, "W") })
	t.Logf("the kubelet's log, last warnings and errors:\n%s", strings.Join(lines[max(0, len(lines)-120):], "\n"))
}

// wait looks again and again until look returns nil.
func (k *kubelet) wait(t *testing.T, what string, look func() error) {
	t.Helper()
	limit := time.After(podLimit)
	for {
		err := look()
		if err == nil {
			return
		}
		select {
		case <-k.exited:
			t.Fatalf("wait for %s: the kubelet ended: %v", what, k.exit)
		case <-limit:
			t.Fatalf("wait for %s: %v", what, err)
		case <-time.After(every):
		}
	}
}

// address is the URL of a path of the kubelet's API.
func address(path string) string {
	return "https://" + net.JoinHostPort(nodeIP, strconv.Itoa(port)) + path
}
