package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
)

// failScope runs a scope into its time limit, so that it fails.
func failScope(t *testing.T, unit string) {
	out, err := exec.Command("systemd-run", "--scope", "--slice="+slice, "--unit="+unit, "--property=RuntimeMaxSec=1", "sleep", "1000").CombinedOutput()
	if err == nil {
		t.Logf("the scope has not failed: %s", out)
	}
}

// fsck runs `crid fsck` and returns what it prints.
func fsck(t *testing.T, c *harness.Crid, args ...string) string {
	t.Helper()
	args = append([]string{"fsck", "--config", c.ConfigFile()}, args...)
	out, err := exec.Command(harness.Binary("crid"), args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Errorf("fsck: %v: %s", err, out)
	}
	return string(out)
}

// alone looks that nobody but crid is in the cgroup of crid's unit.
func alone(t *testing.T, c *harness.Crid, when string) {
	t.Helper()
	eventually(t, when+": crid alone in its unit", func() bool {
		return read(t, cgroupOf(t, c.PID()), "cgroup.procs") == strconv.Itoa(c.PID())
	})
}

// unbroken returns the numbers in a container's log in their order, and complains of a gap.
func unbroken(t *testing.T, when, text string) (last int) {
	t.Helper()
	for i, field := range strings.Fields(text) {
		n, err := strconv.Atoi(field)
		if err != nil || n != i {
			t.Errorf("%s: the log's line %d is %q", when, i, field)
			return i
		}
		last = n
	}
	return last
}

func testRestarts(t *testing.T, c *harness.Crid) {
	name, _ := podSlice("stays")
	pod := c.RunPod(in(name))
	ctr := pod.Run("n=0; while :; do echo $n; n=$((n+1)); usleep 20000; done")
	idle := pod.Run("sleep 1000")
	type pair struct{ main, monitor int }
	of := func(ctr *harness.Container) pair {
		main, monitor := pids(t, c, ctr.ID)
		return pair{main, monitor}
	}
	before := []pair{of(ctr), of(idle)}
	alone(t, c, "at first")
	unit := strings.TrimPrefix(cgroupOf(t, c.PID()), "/system.slice/")
	for _, event := range [][]string{
		{"restart", unit}, {"kill", "--kill-whom=main", "--signal=KILL", unit}, {"daemon-reload"}, {"daemon-reexec"}, {"restart", unit},
	} {
		when := strings.Join(event, " ")
		was, written := c.PID(), unbroken(t, when, ctr.Text())
		systemctl(t, event...)
		if event[0] == "kill" {
			eventually(t, "another crid", func() bool { return c.PID() != was && c.PID() != 0 })
		}
		if err := c.Connect(c.Context()); err != nil {
			t.Fatal(when, err)
		}
		alone(t, c, when)
		for i, p := range []pair{of(ctr), of(idle)} {
			if p != before[i] {
				t.Errorf("%s: processes %v became %v", when, before[i], p)
			}
			for _, pid := range []int{p.main, p.monitor} {
				if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
					t.Errorf("%s: process %d: %v", when, pid, err)
				}
				if got := cgroupOf(t, pid); strings.Contains(got, unit) {
					t.Errorf("%s: process %d is in %s", when, pid, got)
				}
			}
		}
		eventually(t, when+": the log goes on", func() bool { return unbroken(t, when, ctr.Text()) > written+5 })
		if got := ctr.Exec("echo here"); got != "here\n" {
			t.Errorf("%s: exec says %q", when, got)
		}
	}
	late := pod.Run("sleep 1000")
	if _, monitor := pids(t, c, late.ID); !strings.HasSuffix(cgroupOf(t, monitor), "crid-mon-"+late.ID+".scope") {
		t.Errorf("after all that, a monitor is in %s", cgroupOf(t, monitor))
	}
}

func testWatchdog(t *testing.T, c *harness.Crid) {
	unit := strings.TrimPrefix(cgroupOf(t, c.PID()), "/system.slice/")
	eventually(t, "a status", func() bool {
		return systemctl(t, "show", "--property=StatusText", "--value", unit) == "0 pods, 0 containers"
	})
	if got := systemctl(t, "show", "--property=WatchdogTimestampMonotonic", "--value", unit); got == "0" || got == "" {
		t.Errorf("the watchdog has heard nothing: %q", got)
	}
	was := c.PID()
	if err := unix.Kill(was, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a crid that hangs is replaced", func() bool { pid := c.PID(); return pid != was && pid != 0 })
	if err := c.Connect(c.Context()); err != nil {
		t.Fatal(err)
	}
}
