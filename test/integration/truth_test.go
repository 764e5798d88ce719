package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// promptly is how soon crid tells of what has happened.
const promptly = 100 * time.Millisecond

// inTime measures ten times, of which one may not be prompt, in the better of two rounds: the machine may be busy.
func inTime(t *testing.T, what string, measure func() time.Duration) {
	t.Helper()
	const tries, rounds = 10, 2
	limit := isolate.Patient(promptly)
	for range rounds {
		var took []time.Duration
		for range tries {
			took = append(took, measure())
		}
		t.Logf("%s: median %v, each %v", what, quantile(took, 0.5), took)
		if slices.Sorted(slices.Values(took))[tries-2] <= limit {
			return
		}
	}
	t.Errorf("%s: more than one of %d times it took longer than %v", what, tries, limit)
}

// quantile is the smallest that the share q of all does not exceed.
func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// untilExited asks every two milliseconds, which keeps crid from nothing, and returns how long it took, with the status.
func untilExited(t *testing.T, ctr *harness.Container) (time.Duration, *runtime.ContainerStatus) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ; time.Since(began) < 30*time.Second; <-tick.C {
		if s := ctr.Status(); s.State == runtime.ContainerState_CONTAINER_EXITED {
			return time.Since(began), s
		}
	}
	t.Fatalf("container %s did not exit", ctr.ID)
	return 0, nil
}

// modified is when a file was written that is about to be.
func modified(t *testing.T, path string) time.Time {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		info, err := os.Stat(path)
		if err == nil {
			return info.ModTime()
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("wait for a file:", err)
		}
	}
}

// monitorOf is the process that is a container's monitor.
func monitorOf(t *testing.T, c *harness.Crid, ctr *harness.Container) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.RunRoot, "monitor", ctr.ID, "monitor.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// runs tells whether a process is there that has not ended. One that waits to be reaped has.
func runs(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !regexp.MustCompile(`\) [ZX] `).Match(raw)
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// TestAnExitIsToldOnceItIsRecorded ends containers amid a flood of output: as soon as the exit is on record, crid says
// so, and not before the log is complete.
func TestAnExitIsToldOnceItIsRecorded(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		inTime(t, "from the exit record to EXITED", func() time.Duration {
			ctr := pod.Run("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 3")
			recorded := modified(t, filepath.Join(c.RunRoot, "exits", ctr.ID))
			_, s := untilExited(t, ctr)
			took := time.Since(recorded)
			if s.ExitCode != 3 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			if text := ctr.Text(); strings.Count(text, "\n") != 20000 {
				t.Errorf("the log has %d lines when EXITED is told", strings.Count(text, "\n"))
			}
			return took
		})
	})
}

// TestAnExitIsToldWhenTheMonitorIsDead kills the monitor, which takes the container along, and both at once.
func TestAnExitIsToldWhenTheMonitorIsDead(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, both := range []bool{false, true} {
			inTime(t, fmt.Sprintf("from the monitor's death to EXITED, the container killed with it: %t", both), func() time.Duration {
				ctr := pod.Run("sleep 1000")
				pid, monitor := ctr.PID(), monitorOf(t, c, ctr)
				kill(t, monitor, syscall.SIGKILL)
				if both {
					_ = syscall.Kill(pid, syscall.SIGKILL) // crid may have been quicker
				}
				took, s := untilExited(t, ctr)
				if s.ExitCode != 137 && s.ExitCode != 255 || s.Reason != "ExitUnrecorded" || !strings.Contains(s.Message, "monitor") {
					t.Errorf("the container: code %d, %s %q", s.ExitCode, s.Reason, s.Message)
				}
				if runs(pid) {
					t.Error("its process lives on")
				}
				return took
			})
		}
	})
}

// TestAMonitorThatSleepsHidesNoExit stops the monitor, so that nobody records the exit.
func TestAMonitorThatSleepsHidesNoExit(t *testing.T) {
	c := harness.Start(t)
	ctr := c.RunPod().Run("sleep 1000")
	monitor := monitorOf(t, c, ctr)
	kill(t, monitor, syscall.SIGSTOP)
	kill(t, ctr.PID(), syscall.SIGKILL)
	took, s := untilExited(t, ctr)
	if took > 10*time.Second || took < 7*time.Second { // it waits eight seconds for a monitor that may have a log to write
		t.Errorf("told after %v", took)
	}
	if s.Reason != "ExitUnrecorded" || s.ExitCode != 137 && s.ExitCode != 255 {
		t.Errorf("the container: code %d, %s %q", s.ExitCode, s.Reason, s.Message)
	}
	ctr.Remove()
	if syscall.Kill(monitor, 0) == nil {
		t.Error("the monitor outlives its container")
	}
}

// TestARecycledPIDIsNobody lets strangers have the pids of a container and of its monitor, which ended while crid was
// away.
func TestARecycledPIDIsNobody(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	pid, monitor := ctr.PID(), monitorOf(t, c, ctr)
	if err := c.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	kill(t, monitor, syscall.SIGKILL)
	kill(t, pid, syscall.SIGKILL)
	record := filepath.Join(c.RunRoot, "exits", ctr.ID)
	if err := os.Remove(record); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	strangers := []*exec.Cmd{stranger(t, pid), stranger(t, monitor)}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if _, s := untilExited(t, ctr); s.ExitCode == 0 || s.Reason != "ExitUnrecorded" {
		t.Errorf("the container: code %d, %s %q", s.ExitCode, s.Reason, s.Message)
	}
	ctr.Stop(0)
	ctr.Remove()
	pod.Remove()
	for _, s := range strangers {
		if err := s.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error("a stranger was signalled:", err)
		}
		if err := s.Wait(); err == nil || s.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
			t.Errorf("a stranger ended by %v", s.ProcessState)
		}
	}
}

// stranger is a process with this pid.
func stranger(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 1000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if cmd.Process.Pid == pid {
			return cmd
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
	}
	t.Fatalf("pid %d was not to be had", pid)
	return nil
}

// TestAProcessThatOutlivesSIGKILLIsNamed stops a container that waits in the kernel for a dead volume.
func TestAProcessThatOutlivesSIGKILLIsNamed(t *testing.T) {
	c := harness.Start(t)
	v := mountStuckVolume(t)
	pod, other := c.RunPod(), c.RunPod()
	ctr := pod.Run("while :; do stat /shared >/dev/null; sleep 0.01; done", sharing(v.Dir))
	v.Stick()
	<-v.Asked
	named := regexp.MustCompile(`SIGKILL is survived: process [1-9][0-9]* \([a-z]+\) waits in [a-z_]+`)
	for range 2 { // it may be repeated
		_, err := c.Client().StopContainer(c.Context(), &runtime.StopContainerRequest{ContainerId: ctr.ID})
		if status.Code(err) != codes.Unavailable || !named.MatchString(err.Error()) {
			t.Errorf("stop: %v", err)
		}
	}
	if s := ctr.Status(); s.State == runtime.ContainerState_CONTAINER_EXITED {
		t.Error("EXITED while a process of it lives")
	}
	other.Run("sleep 1000").Stop(0)
	v.Abort()
	ctr.Stop(0)
	if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED {
		t.Errorf("the container, once its volume is gone: %v", s)
	}
}
