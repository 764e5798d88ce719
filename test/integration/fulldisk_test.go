package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// TestAnExitWhileCridIsDownOnAFullRunroot lets a container end when its monitor cannot write down how, and nobody else
// looks.
func TestAnExitWhileCridIsDownOnAFullRunroot(t *testing.T) {
	for what, fill := range map[string]func(*harness.SmallDisk){"bytes": (*harness.SmallDisk).FillBlocks, "bytes and inodes": (*harness.SmallDisk).Fill} {
		t.Run(what, func(t *testing.T) {
			_, runroot := harness.Places(t)
			disk := harness.NewSmallDisk(t, harness.Tmpfs, runroot, 16)
			c := harness.Start(t)
			pod := c.RunPod()
			signal := filepath.Join(t.TempDir(), "go")
			mount := func(cfg *runtime.ContainerConfig) {
				cfg.Mounts = []*runtime.Mount{{HostPath: filepath.Dir(signal), ContainerPath: "/vol"}}
			}
			ctr := pod.Run("until [ -e /vol/go ]; do sleep 0.05; done; exit 7", mount)
			other := pod.Run("sleep 1000")
			pid := containerPid(t, c, ctr.ID)
			if err := c.Node.Stop(); err != nil {
				t.Fatal(err)
			}
			fill(disk)
			if err := os.WriteFile(signal, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the container's end", func() bool { _, err := os.Stat(pid); return err != nil })
			fill(disk)
			if err := c.Node.Again(c.Context()); err != nil {
				t.Fatal(err)
			}
			if s := ctr.Wait(); s.ExitCode != 255 || s.Reason == "" || !strings.Contains(s.Message, "no space for "+runroot) {
				t.Errorf("exit code %d, %s %q; want 255 with the reason", s.ExitCode, s.Reason, s.Message)
			}
			if s := other.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Error("the other container is", s.State)
			}
			fill(disk)
			ctr.Remove()
			fill(disk)
			pod.Stop()
			fill(disk)
			pod.Remove()
			disk.Free()
			if s := c.RunPod().Run("exit 3").Wait(); s.ExitCode != 3 {
				t.Error(s)
			}
		})
	}
}

// containerPid is the /proc directory of a container's main process.
func containerPid(t *testing.T, c *harness.Crid, id string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.RunRoot, "monitor", id, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	return "/proc/" + strings.TrimSpace(string(raw))
}

// TestRotationOnAFullLogDisk rotates a log when the disk has no inode for a new one: that is refused, the container and
// its monitor are not disturbed, and the old log goes on.
func TestRotationOnAFullLogDisk(t *testing.T) {
	for what, fill := range map[string]func(*harness.SmallDisk){"bytes": (*harness.SmallDisk).FillBlocks, "bytes and inodes": (*harness.SmallDisk).Fill} {
		t.Run(what, func(t *testing.T) {
			root, _ := harness.Places(t)
			disk := harness.NewSmallDisk(t, harness.Ext4, filepath.Join(filepath.Dir(root), "logs"), 8)
			c := harness.Start(t)
			pod := c.RunPod()
			ctr := pod.Run("trap 'exit 5' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")
			eventually(t, "the first lines", func() bool { return strings.Contains(ctr.Log(), "line 3") })
			path := ctr.Status().LogPath
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
			fill(disk)
			if err := c.Node.Runtime.ReopenContainerLog(c.Context(), ctr.ID); what != "bytes" {
				wantFull(t, "ReopenContainerLog", err, disk)
			} else if err != nil {
				t.Error("reopen:", err) // it takes an inode
			}
			if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Fatal("the container is", s)
			}
			fill(disk)
			ctr.Exec("true")
			disk.Free()
			if err := c.Node.Runtime.ReopenContainerLog(c.Context(), ctr.ID); err != nil {
				t.Error("reopen:", err)
			}
			eventually(t, "the log goes on", func() bool { return strings.Contains(ctr.Log(), "line") })
			fill(disk)
			ctr.Stop(10)
			if s := ctr.Wait(); s.ExitCode != 5 {
				t.Error(s)
			}
			fill(disk)
			ctr.Remove()
			fill(disk)
			pod.Stop()
			pod.Remove()
		})
	}
}

// TestAFullDiskOfLeases ends pods when the plugins have no space for what they write.
func TestAFullDiskOfLeases(t *testing.T) {
	root, _ := harness.Places(t)
	disk := harness.NewSmallDisk(t, harness.Ext4, filepath.Join(filepath.Dir(root), "leases"), 8)
	c := harness.Start(t)
	a, b := c.RunPod(), c.RunPod()
	ctr := a.Run("trap 'exit 5' TERM; while :; do sleep 0.1; done")
	f := &full{Crid: c, t: t, disk: disk, fill: (*harness.SmallDisk).Fill}
	f.onFull(func() {
		_, err := c.Node.Runtime.RunPodSandbox(c.Context(), c.PodConfig(), "")
		wantFull(t, "RunPodSandbox", err, disk)
	})
	f.onFull(func() { ctr.Stop(10) })
	f.isExited(ctr, 5)
	f.onFull(a.Stop)
	f.onFull(a.Remove)
	f.onFull(c.Crash)
	f.onFull(b.Remove)
	if graves := tombstones(t, c); len(graves) != 0 {
		t.Errorf("DEL takes no space, yet there are tombstones: %+v", graves)
	}
	disk.Free()
	c.RunPod()
}
