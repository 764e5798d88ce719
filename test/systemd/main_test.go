// Package systemd tests crid as a unit of the systemd that runs the host, with the systemd cgroup driver. Units are the
// host's, so that nothing can keep these tests apart from it: they run on a machine that is there for them alone.
package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/node"
)

// demand, in the environment, set to 1, says that this machine is there for these tests.
const demand = "CRID_TEST_SYSTEMD"

func TestMain(m *testing.M) {
	if os.Getenv(demand) != "1" {
		fmt.Println("tests of units are left out: they use the host's systemd, and " + demand + "=1 does not say that this machine is for them")
		return
	}
	harness.MainOnHost(m)
}

// slice is where the pods of these tests are: each in one of its own below it.
const slice = "cridtest.slice"

// TestUnderSystemd runs the tests of this package with one crid for each handler as the default, and looks that none leaves
// a unit.
func TestUnderSystemd(t *testing.T) {
	tests := []struct {
		name string
		test func(t *testing.T, c *harness.Crid)
	}{
		{"the driver is found and told", testDriver},
		{"a container is a scope with its limits", testScope},
		{"a pause, and the default slice", testPause},
		{"a start is one call", testCalls},
		{"want of memory is told", testMemory},
		{"a fork bomb is killed whole", testForkBomb},
		{"a scope that has failed is found and forgotten", testFailedScope},
		{"containers outlive the unit", testRestarts},
		{"systemd knows that crid is well", testWatchdog},
	}
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			c := harness.Start(t, harness.Slice(slice), harness.Runtime(name))
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) {
					test.test(t, c.For(t))
					c.For(t).RemoveAll()
					if left := units(t); left != "" {
						t.Errorf("units are left: %s", left)
					}
				})
			}
			systemctl(t, "stop", slice) // what systemd made for the pods' slices
		})
	}
}

// units lists crid's scopes, in whatever state, as systemd knows them.
func units(t *testing.T) string {
	t.Helper()
	return systemctl(t, "list-units", "--all", "--plain", "--no-legend", "crid-*.scope")
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := node.Systemctl(t.Context(), args...)
	if err != nil {
		t.Error(err)
	}
	return out
}

// podSlice is the name and the path of a slice for a pod, as the kubelet names them.
func podSlice(pod string) (name, path string) {
	name = "cridtest-" + pod + ".slice"
	return name, "/" + slice + "/" + name
}

// read reads a file of the cgroup at path.
func read(t *testing.T, path, file string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, file))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(raw))
}

// cgroupOf is where a process is on v2.
func cgroupOf(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Error(err)
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(raw)), "0::")
	return path
}
