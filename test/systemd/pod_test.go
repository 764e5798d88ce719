package systemd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// in is a pod's configuration in a slice of its own.
func in(slice string) func(*runtime.PodSandboxConfig) {
	return func(cfg *runtime.PodSandboxConfig) { cfg.Linux.CgroupParent = slice }
}

func limited(cfg *runtime.ContainerConfig) {
	cfg.Linux.Resources = &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20,
		Unified: map[string]string{"memory.high": "50331648", "pids.max": "100"},
	}
}

// pids reads the container's main process and its monitor from crid's files.
func pids(t *testing.T, c *harness.Crid, id string) (main, monitor int) {
	t.Helper()
	for file, pid := range map[string]*int{"pid": &main, "monitor.pid": &monitor} {
		raw, err := os.ReadFile(filepath.Join(c.RunRoot, "monitor", id, file))
		if err != nil {
			t.Fatal(err)
		}
		if *pid, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
			t.Fatal(err)
		}
	}
	return main, monitor
}

// eventually waits until done answers true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("not within three minutes: %s", what)
			return
		}
	}
}

func testDriver(t *testing.T, c *harness.Crid) {
	cfg, err := c.Node.Runtime.RuntimeConfig(c.Context())
	if err != nil || cfg.GetLinux().GetCgroupDriver() != runtime.CgroupDriver_SYSTEMD {
		t.Errorf("the kubelet is told %v, %v", cfg, err)
	}
	status, err := c.Node.Runtime.Status(c.Context(), true)
	if err != nil || !strings.Contains(status.Info["crid"], `"driver":"systemd: systemd `) {
		t.Errorf("the operator is told %v, %v", status.GetInfo()["crid"], err)
	}
	for parent, want := range map[string]string{"/kubepods/podx": "no slice of systemd", "/elsewhere/kubepods-podx.slice": "is at /kubepods.slice/kubepods-podx.slice"} {
		_, err := c.Node.Runtime.RunPodSandbox(c.Context(), c.PodConfig(in(parent)), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a pod in %s: %v", parent, err)
		}
	}
}

func testScope(t *testing.T, c *harness.Crid) {
	name, path := podSlice("a")
	pod := c.RunPod(in(name))
	ctr := pod.Run("sleep 1000", limited)
	scope := "crid-" + ctr.ID + ".scope"
	main, monitor := pids(t, c, ctr.ID)
	if got := cgroupOf(t, main); got != path+"/"+scope {
		t.Errorf("the container is in %s, want %s/%s", got, path, scope)
	}
	if got := cgroupOf(t, monitor); got != path+"/crid-mon-"+ctr.ID+".scope" {
		t.Errorf("the monitor is in %s", got)
	}
	check := func(when string, files map[string]string) {
		for file, want := range files {
			if got := read(t, path+"/"+scope, file); got != want {
				t.Errorf("%s: %s is %q, want %q", when, file, got, want)
			}
		}
	}
	before := map[string]string{"cpu.max": "50000 100000", "memory.max": "67108864", "memory.high": "50331648", "pids.max": "100", "cpu.weight": "20"}
	check("created", before)
	systemctl(t, "daemon-reload")
	check("after a reload", before)
	err := c.Node.Runtime.UpdateContainerResources(c.Context(), ctr.ID, &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 40000, CpuShares: 1024, MemoryLimitInBytes: 128 << 20, Unified: map[string]string{"memory.high": "67108864"},
	}})
	if err != nil {
		t.Fatal("update:", err)
	}
	after := map[string]string{"cpu.max": "40000 50000", "memory.max": "134217728", "memory.high": "67108864", "pids.max": "100"}
	check("updated", after)
	systemctl(t, "daemon-reload")
	systemctl(t, "set-property", "--runtime", scope, "TasksMax=99") // has systemd write everything anew
	after["pids.max"] = "99"
	check("after a reload and a change by another", after)
	if got := ctr.Exec("cat /proc/self/cgroup"); !strings.Contains(got, "0::/\n") {
		t.Errorf("a command is in %q of the container's cgroup namespace", got)
	}
	stats, err := c.Node.Runtime.ContainerStats(c.Context(), ctr.ID)
	if err != nil || stats.GetMemory().GetUsageBytes().GetValue() == 0 || stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	podStats, err := c.Node.Runtime.PodSandboxStats(c.Context(), pod.ID)
	if err != nil || podStats.GetLinux().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats of the pod: %v, %v", podStats, err)
	}
	ctr.Stop(0)
	pod.Stop()
	pod.Remove()
	if left := units(t); left != "" {
		t.Errorf("units are left: %s", left)
	}
}

func testPause(t *testing.T, c *harness.Crid) {
	pod := c.RunPod(in(""), func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	ctr := pod.Run("sleep 1000")
	for _, id := range []string{ctr.ID, pod.ID + "-pause"} {
		main, monitor := pids(t, c, id)
		if got := cgroupOf(t, main); got != "/"+slice+"/crid-"+id+".scope" {
			t.Errorf("%s is in %s", id, got)
		}
		if got := cgroupOf(t, monitor); got != "/"+slice+"/crid-mon-"+id+".scope" {
			t.Errorf("the monitor of %s is in %s", id, got)
		}
	}
}

func testMemory(t *testing.T, c *harness.Crid) {
	name, _ := podSlice("oom")
	pod := c.RunPod(in(name))
	for _, shell := range []string{"exec dd if=/dev/zero of=/dev/null bs=200M", "exec dd if=/dev/zero of=/dev/null bs=200M", "dd if=/dev/zero of=/dev/null bs=200M; exit 3"} {
		ctr := pod.Run(shell, func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
		})
		if s := ctr.Wait(); s.Reason != "OOMKilled" {
			t.Errorf("%s: %s, exit code %d", shell, s.Reason, s.ExitCode)
		}
		ctr.Remove()
	}
}

func testForkBomb(t *testing.T, c *harness.Crid) {
	name, path := podSlice("bomb")
	pod := c.RunPod(in(name))
	ctr := pod.Run("f() { f | f & }; f; sleep 1000", func(cfg *runtime.ContainerConfig) {
		cfg.Linux.Resources = &runtime.LinuxContainerResources{Unified: map[string]string{"pids.max": "300"}}
	})
	scope := path + "/crid-" + ctr.ID + ".scope"
	eventually(t, "200 processes", func() bool {
		n, _ := strconv.Atoi(read(t, scope, "pids.current"))
		return n > 200
	})
	ctr.Stop(1)
	ctr.Remove()
	if _, err := os.Stat("/sys/fs/cgroup" + scope); !os.IsNotExist(err) {
		t.Errorf("the cgroup is still there: %v", err)
	}
}

func testFailedScope(t *testing.T, c *harness.Crid) {
	id := strings.Repeat("ab", 32)
	unit := fmt.Sprintf("crid-%s.scope", id)
	go func() { failScope(t, unit) }() // ends with the scope
	eventually(t, "a failed scope", func() bool { return strings.Contains(units(t), "failed") })
	out := fsck(t, c)
	if !strings.Contains(out, unit) || !strings.Contains(out, "orphaned") {
		t.Errorf("fsck says %s", out)
	}
	fsck(t, c, "--repair")
	if left := units(t); left != "" {
		t.Errorf("after a repair: %s", left)
	}
}
