package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/node"
)

// counter counts from outside how many programs run at the same time.
type counter struct {
	t   *testing.T
	dir string
}

// wrap puts a script before a program, which counts the runs of each verb; before is run first.
func (c counter) wrap(name, program, verb, before string) (path string) {
	c.t.Helper()
	script := fmt.Sprintf(`#!/bin/sh
%[3]s
mkdir -p %[1]s/$verb
: >%[1]s/$verb/$$
n=0
for run in %[1]s/$verb/*; do
	if [ -e /proc/${run##*/}/exe ]; then n=$((n+1)); else rm -f $run; fi
done
echo $n >>%[1]s/$verb.seen
%[4]s
exec %[2]s "$@"
`, c.dir, program, verb, before)
	path = filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// runs are how many there were of a verb, and how many at most at one time.
func (c counter) runs(verb string) (n, most int) {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.dir, verb+".seen"))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		now, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			c.t.Fatal(err)
		}
		n, most = n+1, max(most, now)
	}
	c.t.Logf("%s: %d runs, %d at most at one time", verb, n, most)
	return n, most
}

// runtime is a handler whose runtime is counted, as the default.
func (c counter) runtime() harness.Option {
	c.t.Helper()
	crun, err := exec.LookPath("crun")
	if err != nil {
		c.t.Fatal(err)
	}
	path := c.wrap("counted-crun", crun, `for verb in "$@"; do
	case $verb in create|start|delete|kill|state|exec|update|features) break ;; esac
done`, "")
	return func(o *node.Options) {
		o.Runtime = "counted"
		o.Config += fmt.Sprintf("[runtimes.counted]\npath = %q\nroot = %q\n", path, filepath.Join(c.dir, "root"))
	}
}

// network has a counted bridge, whose ADD takes so many seconds more.
func (c counter) network(seconds int) harness.Option {
	c.t.Helper()
	var bridge string
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			bridge = filepath.Join(dir, "bridge")
		}
	}
	c.wrap("counted-bridge", bridge, "verb=$CNI_COMMAND", fmt.Sprintf(`[ "$verb" != ADD ] || sleep %d`, seconds))
	return func(o *node.Options) {
		root, _ := node.Places(o.Name)
		o.Conflist = fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %[1]q, "plugins": [{"type": "counted-bridge", "bridge": %[1]q,
  "ipam": {"type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}`,
			o.Name, filepath.Join(filepath.Dir(root), "leases"))
		o.Config += fmt.Sprintf("[network]\nbin_dirs = [%q, %q, %q, %q]\n", c.dir, cniDirs[0], cniDirs[1], cniDirs[2])
	}
}

// cpus is how many processors crid has in these tests, so that they mean the same on any machine.
const cpus = 2

// perCPU is how many runs of a stage there may be at a time for each processor.
const perCPU = 4

// TestTwoHundredAtOnce asks for two hundred pods, then for a container in each, all at the same moment.
func TestTwoHundredAtOnce(t *testing.T) {
	const pods, limit = 200, 150 << 10 // KiB
	c := harness.Start(t, harness.Quiet(), harness.CPUs(cpus))
	c.Pull(images.Busybox)
	crowd := &crowd{t: t, c: c, client: c.Client(), pods: make([]*harness.Pod, pods), containers: make([]string, pods)}
	crowd.live()
	if peak := peakMemory(t, c); peak > limit {
		t.Errorf("crid had %d MiB resident; want at most %d", peak>>10, limit>>10)
	}
}

// TestACrowdIsLetInByAFew counts how many of a crowd's plugins and runtimes run at the same time.
func TestACrowdIsLetInByAFew(t *testing.T) {
	const pods = 50
	n := counter{t, t.TempDir()}
	c := harness.Start(t, harness.Quiet(), harness.CPUs(cpus), n.runtime(), n.network(0))
	c.Pull(images.Busybox)
	crowd := &crowd{t: t, c: c, client: c.Client(), pods: make([]*harness.Pod, pods), containers: make([]string, pods)}
	took := crowd.live()
	for _, verb := range []string{"ADD", "DEL", "create", "start", "exec"} {
		bound := cpus*perCPU + int(took[verb]/lateAfter)
		if verb == "exec" { // nobody knows how long a command runs: it has its turn for half a second
			bound = cpus * perCPU * (1 + int(took[verb]/(500*time.Millisecond)))
		}
		if runs, most := n.runs(verb); runs < pods || most > bound {
			t.Errorf("%s: %d runs, %d at a time; want %d at most", verb, runs, most, bound)
		}
	}
}

// TestACrowdWithoutPatience asks again and again, two seconds at a time, for pods whose network takes three, more than can
// be attached at a time. Each pod is made once, also those that nobody asks for again.
func TestACrowdWithoutPatience(t *testing.T) {
	const pods, deadline = 16, 2 * time.Second
	n := counter{t, t.TempDir()}
	c := harness.Start(t, harness.Quiet(), harness.CPUs(cpus), n.network(3))
	client := c.Client()
	var late atomic.Int32
	began := time.Now()
	atOnce(t, "run pod with little patience", pods, func(i int) error {
		cfg := c.PodConfig()
		for {
			ctx, cancel := context.WithTimeout(c.Context(), deadline)
			_, err := client.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: cfg})
			cancel()
			if status.Code(err) != codes.DeadlineExceeded {
				return err
			}
			if late.Add(1); i%4 == 0 {
				return nil // the work goes on for a client that does not come back
			}
		}
	})
	bound := cpus*perCPU + int(time.Since(began)/lateAfter)
	eventually(t, "all pods are made", func() bool {
		made, err := c.Runtime.ListPodSandbox(c.Context(), nil)
		return err == nil && len(made) == pods
	})
	if runs, most := n.runs("ADD"); runs != pods || most > bound {
		t.Errorf("%d pods took %d ADDs, %d at a time; want %d at most", pods, runs, most, bound)
	}
	if late.Load() < pods {
		t.Errorf("only %d calls ran into their deadline", late.Load())
	}
	c.RemoveAll()
}

// lateAfter is how often one is let in besides those who are late.
const lateAfter = 2 * time.Second

// crowd is many calls at the same moment.
type crowd struct {
	t          *testing.T
	c          *harness.Crid
	client     runtime.RuntimeServiceClient
	pods       []*harness.Pod
	containers []string
}

// live runs all pods, with a container each, and stops them. It tells how long each step took.
func (w *crowd) live() map[string]time.Duration {
	w.t.Helper()
	took := map[string]time.Duration{}
	n := len(w.pods)
	took["ADD"] = atOnce(w.t, "run pod", n, func(i int) error {
		cfg := w.c.PodConfig()
		got, err := w.client.RunPodSandbox(w.c.Context(), &runtime.RunPodSandboxRequest{Config: cfg})
		w.pods[i] = w.c.Pod(got.GetPodSandboxId(), cfg)
		return err
	})
	took["create"] = atOnce(w.t, "create container", n, func(i int) error {
		pod := w.pods[i]
		got, err := w.client.CreateContainer(w.c.Context(), &runtime.CreateContainerRequest{
			PodSandboxId: pod.ID, SandboxConfig: pod.Config, Config: pod.ContainerConfig("sleep 1000"),
		})
		w.containers[i] = got.GetContainerId()
		return err
	})
	took["start"] = atOnce(w.t, "start container", n, func(i int) error {
		_, err := w.client.StartContainer(w.c.Context(), &runtime.StartContainerRequest{ContainerId: w.containers[i]})
		return err
	})
	took["exec"] = atOnce(w.t, "exec", n, func(i int) error {
		got, err := w.client.ExecSync(w.c.Context(), &runtime.ExecSyncRequest{ContainerId: w.containers[i], Cmd: []string{"echo", "x"}})
		if err == nil && string(got.Stdout) != "x\n" {
			err = fmt.Errorf("it said %q", got.Stdout)
		}
		return err
	})
	took["DEL"] = atOnce(w.t, "stop pod", n, func(i int) error {
		_, err := w.client.StopPodSandbox(w.c.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: w.pods[i].ID})
		return err
	})
	return took
}

// atOnce calls do n times at the same moment; none may fail. It tells how long all took.
func atOnce(t *testing.T, what string, n int, do func(i int) error) time.Duration {
	t.Helper()
	began := time.Now()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { // ends with its call
			<-start
			if err := do(i); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	close(start)
	wg.Wait()
	took := time.Since(began)
	t.Logf("%d times %s: %v", n, what, took.Round(10*time.Millisecond))
	return took
}

// peakMemory is the most that crid ever had resident, in KiB.
func peakMemory(t *testing.T, c *harness.Crid) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			t.Logf("crid had at most %d MiB resident", kib>>10)
			return kib
		}
	}
	t.Fatal("no VmHWM in /proc")
	return 0
}
