package crash

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

var processScenarios = []scenario{
	{name: "StartContainer", set: start},
	{name: "StartContainer by runc", options: byRunc, set: start},
	{name: "StopContainer", set: stop("sleep 1000", 0)},
	{name: "StopContainer of namespaces", set: stop("sleep 1000", 0, withUsers, sharedPIDs)},
	{name: "StopContainer within its grace", set: stop("trap 'exit 3' TERM; touch /tmp/up; while :; do sleep 0.05; done", 30)},
	{name: "UpdateContainerResources", set: update},
	{name: "ReopenContainerLog", set: reopen},
	{name: "ReopenContainerLog after one that was interrupted", set: reopenInterrupted},
	{name: "ExecSync", set: execSync},
	{name: "Exec at a terminal", set: execTerminal},
}

func start(t *testing.T, c *harness.Crid) act {
	ctr := c.RunPod().Create("sleep 1000")
	return act{
		call: func() error { return c.Runtime.StartContainer(c.Context(), ctr.ID) },
		between: func() {
			if s := ctr.Status().State; s != runtime.ContainerState_CONTAINER_CREATED && s != runtime.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container is %v", s)
			}
			consistent(t, c, ctr)
		},
		after: func() {
			if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container is %v", s)
			}
			ctr.Exec("true")
		},
	}
}

func stop(shell string, grace int64, edits ...func(*runtime.PodSandboxConfig)) func(*testing.T, *harness.Crid) act {
	return func(t *testing.T, c *harness.Crid) act {
		ctr := c.RunPod(edits...).Run(shell)
		if grace > 0 {
			ctr.Exec("while ! [ -e /tmp/up ]; do sleep 0.02; done")
		}
		return act{
			call:    func() error { return c.Runtime.StopContainer(c.Context(), ctr.ID, grace) },
			between: func() { consistent(t, c, ctr) },
			after: func() {
				s := ctr.Status()
				if s.State != runtime.ContainerState_CONTAINER_EXITED {
					t.Errorf("the container is %v", s)
				}
				if grace > 0 && s.ExitCode != 3 {
					t.Errorf("it ended by itself with code 3, and is said to have with %d (%s)", s.ExitCode, s.Message)
				}
			},
		}
	}
}

// update changes limits in a way that takes crid several steps.
func update(t *testing.T, c *harness.Crid) act {
	before := &runtime.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}
	change := &runtime.LinuxContainerResources{CpuShares: 256, CpuQuota: -1, MemoryLimitInBytes: 32 << 20}
	ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Linux.Resources = before })
	told := func() (shares int64, memory int64) {
		r := ctr.Status().Resources.Linux
		return r.CpuShares, r.MemoryLimitInBytes
	}
	return act{
		call: func() error {
			return c.Runtime.UpdateContainerResources(c.Context(), ctr.ID, &runtime.ContainerResources{Linux: change})
		},
		between: func() {
			shares, memory := told()
			if shares != before.CpuShares && shares != change.CpuShares || (shares == change.CpuShares) != (memory == change.MemoryLimitInBytes) {
				t.Errorf("told: %d shares and %d bytes", shares, memory)
			}
			if s, m := limit(t, c, ctr, "cpu.shares"), limit(t, c, ctr, "memory.limit_in_bytes"); s != shares || m != memory {
				t.Errorf("told: %d shares and %d bytes; in force: %d and %d", shares, memory, s, m)
			}
		},
		after: func() {
			shares, memory := told()
			if shares != change.CpuShares || memory != change.MemoryLimitInBytes {
				t.Errorf("told after the update: %d shares and %d bytes", shares, memory)
			}
			if s, q := limit(t, c, ctr, "cpu.shares"), limit(t, c, ctr, "cpu.cfs_quota_us"); s != shares || q != -1 {
				t.Errorf("in force after the update: %d shares, quota %d", s, q)
			}
		},
	}
}

// limit reads a file of the container's cgroup.
func limit(t *testing.T, c *harness.Crid, ctr *harness.Container, file string) int64 {
	t.Helper()
	value, err := strconv.ParseInt(ctr.Group(file), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// reopen rotates the log of a container that counts, as the kubelet does: it renames the old log back when it has not
// heard that there is a new one.
func reopen(t *testing.T, c *harness.Crid) act {
	ctr, log := counting(t, c)
	older := log + ".1"
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	return act{
		call: func() error {
			rename(log, older)
			err := c.Runtime.ReopenContainerLog(c.Context(), ctr.ID)
			if err != nil {
				// A monitor that has read the command but not obeyed it would replace the old log: nobody can take that back.
				<-time.After(200 * time.Millisecond)
				rename(older, log)
			}
			return err
		},
		between: func() { grows(t, log) },
		after:   func() { whole(t, ctr, log) },
	}
}

// reopenInterrupted finds a log as it is when the kubelet has not heard of its reopening: the monitor writes to a new one,
// whose name the old one has taken again.
func reopenInterrupted(t *testing.T, c *harness.Crid) act {
	ctr, log := counting(t, c)
	err := errors.Join(os.Rename(log, log+".1"), c.Runtime.ReopenContainerLog(c.Context(), ctr.ID), os.Rename(log+".1", log))
	if err != nil {
		t.Fatal(err)
	}
	grows(t, log)
	return act{
		call:  func() error { return c.Runtime.ReopenContainerLog(c.Context(), ctr.ID) },
		after: func() { whole(t, ctr, log) },
	}
}

// counting runs a container whose log has the numbers from 0 on.
func counting(t *testing.T, c *harness.Crid) (ctr *harness.Container, log string) {
	t.Helper()
	ctr = c.RunPod().Run("i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
	log = ctr.Status().LogPath
	grows(t, log)
	return ctr, log
}

// grows waits for a line more in a log, or in the one that will have its name.
func grows(t *testing.T, log string) {
	t.Helper()
	spare := filepath.Join(filepath.Dir(log), "."+filepath.Base(log)+".reopening")
	all := func() int { return lines(t, log) + lines(t, spare) }
	before := all()
	eventually(t, "a line more in "+log, func() bool { return all() > before })
}

// whole ends a container that counts and looks whether all of its lines are in the files of its log, once each.
func whole(t *testing.T, ctr *harness.Container, log string) {
	t.Helper()
	eventually(t, "a line in the new log", func() bool { return lines(t, log) > 0 })
	ctr.Stop(0)
	entries, err := os.ReadDir(filepath.Dir(log))
	if err != nil {
		t.Fatal(err)
	}
	got, seen := 0, map[uint64]bool{}
	for _, e := range entries {
		name := filepath.Join(filepath.Dir(log), e.Name())
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		if !seen[st.Ino] { // the new one has two names for a while
			got += lines(t, name)
		}
		seen[st.Ino] = true
	}
	if want := last(t, log) + 1; got != want {
		t.Errorf("the logs %v have %d lines, %d were written", entries, got, want)
	}
}

// lines counts the lines of a log, which may not be there yet.
func lines(t *testing.T, log string) int {
	t.Helper()
	raw, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "\n")
}

// last is the number in the last line of a log.
func last(t *testing.T, log string) int {
	t.Helper()
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(raw))
	n, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func execSync(t *testing.T, c *harness.Crid) act {
	ctr := c.RunPod().Run("sleep 1000")
	return act{
		call: func() error {
			out, _, err := c.Runtime.ExecSync(c.Context(), ctr.ID, []string{"sh", "-c", "sleep 0.1234; echo done"}, time.Minute)
			if err == nil && string(out) != "done\n" {
				t.Errorf("the command said %q", out)
			}
			return err
		},
		between: func() {
			consistent(t, c, ctr)
			eventually(t, "the end of the command", func() bool { return isolate.Running(t, "sleep 0.1234") == 0 })
		},
		after: func() { consistent(t, c, ctr) },
	}
}

// execTerminal runs a command at a terminal, which the runtime sends through a socket.
func execTerminal(t *testing.T, c *harness.Crid) act {
	ctr := c.RunPod().Run("sleep 1000")
	return act{
		call: func() error {
			screen, err := atTerminal(c.Context(), c, ctr.ID, "echo", "done")
			if err == nil && screen != "done\r\n" {
				err = fmt.Errorf("on the screen: %q", screen)
			}
			return err
		},
		between: func() {
			consistent(t, c, ctr)
			if left, err := filepath.Glob(filepath.Join(c.RunRoot, "runtimes/*/.console-*")); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		},
		after: func() { consistent(t, c, ctr) },
	}
}

// atTerminal runs a command at a terminal of its own and returns what it showed.
func atTerminal(ctx context.Context, c *harness.Crid, id string, cmd ...string) (string, error) {
	resp, err := c.Runtime.Exec(ctx, &runtime.ExecRequest{ContainerId: id, Cmd: cmd, Tty: true, Stdout: true})
	if err != nil {
		return "", err
	}
	var screen strings.Builder
	err = stream(ctx, resp.Url, remotecommand.StreamOptions{Tty: true, Stdout: &screen})
	return screen.String(), err
}

// stream connects a client to what an RPC answered with.
func stream(ctx context.Context, address string, o remotecommand.StreamOptions) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

// eventually waits up to ten seconds until what holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !holds(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within ten seconds", what)
		}
	}
}
