package integration

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// inRoot is the name by which this test binary becomes crid in a cgroup namespace whose root is its own cgroup, as the only
// process of a container is.
const inRoot = "in-the-root"

const groups = "/sys/fs/cgroup"

// delegatedRoot is the cgroup for that.
func delegatedRoot() string { return filepath.Join(groups, isolate.CgroupParent(), "delegated") }

// playInRoot joins the cgroup, which is the root of what it sees then, and becomes crid.
func playInRoot() error {
	if err := os.WriteFile(filepath.Join(delegatedRoot(), "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	runtime.LockOSThread() // which becomes crid
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS); err != nil {
		return err
	}
	// crid's other mounts are for all to see; and a filesystem is not mounted on itself.
	err := errors.Join(unix.Mount("", groups, "", unix.MS_PRIVATE, ""), unix.Mount("none", groups, "tmpfs", 0, ""), unix.Mount("none", groups, "cgroup2", 0, ""))
	if err != nil {
		return err
	}
	return syscall.Exec(harness.Binary("crid"), os.Args, os.Environ())
}

// A crid that was handed a part of the cgroups and stands in its root cannot hand down most controllers: the operator is told
// so, and pods run without limits, but not as if they had some.
func TestACgroupRootWithProcesses(t *testing.T) {
	needUnified(t)
	if err := os.MkdirAll(delegatedRoot(), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{groups, filepath.Dir(delegatedRoot())} {
		put(t, filepath.Join(dir, "cgroup.subtree_control"), "+cpu +memory +pids", 0)
	}
	program := ownProgram(t, inRoot)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		if warnsOf(t, c, "pods get no cgroup controllers", "memory") != 2 {
			t.Error("the operator is not told that there are no controllers")
		}
		pod := c.RunPod()
		ctr := pod.Run("sleep 1000")
		if got := ctr.Exec("cat /proc/self/cgroup"); !strings.Contains(got, "0::/") {
			t.Errorf("a command is in %q", got)
		}
		_, err := pod.TryCreate(pod.ContainerConfig("true", func(cfg *cri.ContainerConfig) {
			cfg.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		}))
		if err == nil || !strings.Contains(err.Error(), "this host has no cgroup controller memory") {
			t.Errorf("a limit that cannot be set: %v", err)
		}
		c.Crash()
		ctr.Exec("true")
		ctr.Stop(0)
	}, harness.Program(program))
}
