package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// limits are the files of a container's cgroups that updates change: on v1, and on v2.
var limits = [2][]string{
	{"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuset.cpus", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
	{"cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max"},
}

// inForce is what the kernel has, in the order of limits.
func inForce(ctr *harness.Container) []string {
	files := limits[0]
	if harness.Unified() {
		files = limits[1]
	}
	var values []string
	for _, file := range files {
		values = append(values, ctr.Group(file))
	}
	return values
}

// onThisHost turns what v1 is to have in force into what v2 is to have, where that is what there is.
func onThisHost(t *testing.T, v1 []string) []string {
	t.Helper()
	if !harness.Unified() {
		return v1
	}
	number := func(i int) int {
		n, err := strconv.Atoi(v1[i])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	quota := v1[2]
	if quota == "-1" {
		quota = "max"
	}
	weight := 1 + (number(0)-2)*9999/262142 // how runtimes map the one range to the other
	return []string{strconv.Itoa(weight), quota + " " + v1[1], v1[3], v1[4], strconv.Itoa(number(5) - number(4))}
}

func update(c *harness.Crid, ctr *harness.Container, change *runtime.LinuxContainerResources) error {
	return c.Runtime.UpdateContainerResources(c.Context(), ctr.ID, &runtime.ContainerResources{Linux: change})
}

func TestUpdateResources(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Create("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0"}
		})
		wantInForce := func(want ...string) {
			t.Helper()
			if got, want := inForce(ctr), onThisHost(t, want); !slices.Equal(got, want) {
				t.Errorf("in force: %v\nwant:     %v", got, want)
			}
		}
		wantInForce("512", "100000", "50000", "0", "67108864", "67108864")
		for i, step := range []struct {
			change *runtime.LinuxContainerResources
			want   []string
		}{
			{&runtime.LinuxContainerResources{CpuQuota: -1}, []string{"512", "100000", "-1", "0", "67108864", "67108864"}},
			{&runtime.LinuxContainerResources{CpusetCpus: "0-1", CpusetMems: "0"}, []string{"512", "100000", "-1", "0-1", "67108864", "67108864"}},
			{&runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, []string{"512", "100000", "-1", "0-1", "134217728", "134217728"}},
			{&runtime.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 48 << 20}, []string{"512", "100000", "-1", "0-1", "33554432", "50331648"}},
			{&runtime.LinuxContainerResources{CpuQuota: 20000, CpuPeriod: 50000, CpuShares: 2, HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}}},
				[]string{"2", "50000", "20000", "0-1", "33554432", "50331648"}},
		} {
			if i == 2 {
				ctr.Start()
			}
			if err := update(c, ctr, step.change); err != nil {
				t.Errorf("%v: %v", step.change, err)
			}
			wantInForce(step.want...)
		}
		before := []string{"2", "50000", "20000", "0-1", "33554432", "50331648"}
		for _, bad := range []struct {
			change *runtime.LinuxContainerResources
			code   codes.Code
			words  string
		}{
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpusetCpus: "4000"}, codes.InvalidArgument, "linux.cpuset_cpus"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpusetMems: "0-"}, codes.InvalidArgument, "linux.cpuset_mems"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 40 << 20, CpuQuota: 3}, codes.InvalidArgument, "linux.cpu_quota"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 5}, codes.InvalidArgument, "linux.cpu_period"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, CpuQuota: 1 << 62}, codes.InvalidArgument, "linux.cpu_quota"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 49 << 20}, codes.InvalidArgument, "linux.memory_swap_limit_in_bytes"}, // above memory and swap
			{&runtime.LinuxContainerResources{CpuShares: 1024, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 4096}, codes.FailedPrecondition, "memory limit"},
			{&runtime.LinuxContainerResources{CpuShares: 1024, Unified: map[string]string{"memory.nonesuch": "max"}}, codes.InvalidArgument, "linux.unified"},
		} {
			if err := update(c, ctr, bad.change); status.Code(err) != bad.code || !strings.Contains(err.Error(), bad.words) {
				t.Errorf("%v: %v, want %s and %s", bad.change, err, bad.code, bad.words)
			}
			wantInForce(before...)
		}
		if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("status %v", s)
		}
		c.Crash()
		r := ctr.Status().GetResources().GetLinux()
		if r.GetCpuQuota() != 20000 || r.GetCpuPeriod() != 50000 || r.GetCpuShares() != 2 || r.GetMemoryLimitInBytes() != 32<<20 || r.GetMemorySwapLimitInBytes() != 48<<20 ||
			r.GetCpusetCpus() != "0-1" || r.GetCpusetMems() != "0" {
			t.Errorf("told after a restart: %v", r)
		}
		if err := update(c, ctr, &runtime.LinuxContainerResources{CpusetCpus: "1"}); err != nil {
			t.Error(err)
		}
		wantInForce("2", "50000", "20000", "1", "33554432", "50331648")
		ctr.Stop(0)
		if err := update(c, ctr, &runtime.LinuxContainerResources{CpuShares: 5}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("of a stopped container: %v", err)
		}
	})
}

// As the kubelet resizes a pod: the pod first, then each container, and the pod again.
func TestResizeAPod(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	resources := &runtime.LinuxContainerResources{CpuShares: 200, MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 80 << 20}
	for range 2 {
		_, err := c.Runtime.UpdatePodSandboxResources(c.Context(), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: pod.ID, Overhead: &runtime.LinuxContainerResources{}, Resources: resources})
		if err != nil {
			t.Error(err)
		}
		if err := update(c, ctr, resources); err != nil {
			t.Error(err)
		}
	}
	if r := ctr.Status().GetResources().GetLinux(); r.GetCpuShares() != 200 || r.GetMemoryLimitInBytes() != 80<<20 {
		t.Errorf("told: %v", r)
	}
}

// The runtime of one handler hangs in its `update`: its container is told so in time and can be stopped, and
// nobody else notices.
func TestAHangingUpdate(t *testing.T) {
	script := filepath.Join(t.TempDir(), "hanging")
	hang := "#!/bin/sh\ncase \"$*\" in *' update '*) exec sleep 1000;; esac\nexec crun \"$@\"\n"
	if err := os.WriteFile(script, []byte(hang), 0o755); err != nil {
		t.Fatal(err)
	}
	c := harness.Start(t, harness.Config("[runtimes.hanging]\npath = \""+script+"\""))
	config := c.PodConfig()
	id, err := c.Runtime.RunPodSandbox(c.Context(), config, "hanging")
	if err != nil {
		t.Fatal(err)
	}
	pod, other := c.Pod(id, config), c.RunPod().Run("sleep 1000")
	ctr := pod.Run("sleep 1000")
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	err = c.Runtime.UpdateContainerResources(ctx, ctr.ID, &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{CpuShares: 99}})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the update: %v", err)
	}
	if err := update(c, other, &runtime.LinuxContainerResources{CpuShares: 99}); err != nil {
		t.Errorf("that of another container: %v", err)
	}
	if r := ctr.Status().GetResources().GetLinux(); r.GetCpuShares() == 99 {
		t.Errorf("told: %v", r)
	}
	ctr.Stop(0)
	ctr.Remove()
}

// resizing is a pod whose cgroup the test owns, as a kubelet does, and whose limits it changes as the kubelet 1.37 does
// (kuberuntime_manager.go, doPodResizeAction): the runtime hears of the pod's new limits before they are written, and is told
// the old ones again when they cannot be.
type resizing struct {
	t   *testing.T
	c   *harness.Crid
	pod *harness.Pod
	now runtime.LinuxContainerResources // of the pod
}

// The files of the pod's cgroup that a kubelet writes on v1.
const (
	podMemory = "memory.limit_in_bytes"
	podQuota  = "cpu.cfs_quota_us"
	podShares = "cpu.shares"
)

// newResizing makes a pod of 200 MiB, one CPU's time and 1024 shares, with its cgroup, which goes when the test ends.
func newResizing(t *testing.T, c *harness.Crid) *resizing {
	t.Helper()
	r := &resizing{t: t, c: c, now: runtime.LinuxContainerResources{
		MemoryLimitInBytes: 200 << 20, CpuPeriod: 100000, CpuQuota: 100000, CpuShares: 1024,
	}}
	for _, file := range []string{podMemory, podQuota} {
		if err := os.MkdirAll(filepath.Dir(r.file(file)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		dirs, err := filepath.Glob("/sys/fs/cgroup/*" + r.group()) // the runtime has made the rest
		if err != nil || len(dirs) == 0 {
			t.Errorf("the pod's cgroup is gone: %v", err)
		}
		for _, dir := range dirs {
			if strings.HasPrefix(dir, "/sys/fs/cgroup/unified/") {
				continue // no hierarchy: isolate hides that, and the runtime makes directories in its place
			}
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // controllers may share a hierarchy
				t.Error(err)
			}
		}
	})
	r.write(podMemory, r.now.MemoryLimitInBytes)
	r.write(podQuota, r.now.CpuQuota)
	r.write(podShares, r.now.CpuShares)
	r.pod = c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.CgroupParent = r.group() })
	return r
}

// group is the pod's cgroup.
func (r *resizing) group() string { return r.c.Cgroup + "/kubelet-pod" }

// file is a file of it.
func (r *resizing) file(name string) string { return harness.GroupOf(r.group(), name) }

func (r *resizing) write(file string, value int64) {
	r.t.Helper()
	if err := os.WriteFile(r.file(file), []byte(strconv.FormatInt(value, 10)), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// tell tells crid what the pod may use.
func (r *resizing) tell(resources *runtime.LinuxContainerResources) {
	r.t.Helper()
	_, err := r.c.Runtime.UpdatePodSandboxResources(r.c.Context(), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: r.pod.ID, Overhead: &runtime.LinuxContainerResources{}, Resources: resources,
	})
	if err != nil {
		r.t.Errorf("the pod's resources %v: %v", resources, err)
	}
}

// set changes one limit of the pod.
func (r *resizing) set(file string, value int64) {
	r.t.Helper()
	switch file {
	case podMemory:
		r.now.MemoryLimitInBytes = value
	case podQuota:
		r.now.CpuQuota = value
	case podShares:
		r.now.CpuShares = value
	}
	r.tell(proto.CloneOf(&r.now))
	r.write(file, value)
}

// update gives a container all of its resources, as the kubelet does, and looks whether Status tells them and the kernel has them.
func (r *resizing) update(ctr *harness.Container, memory, quota, shares int64) {
	r.t.Helper()
	want := &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: quota, CpuShares: shares, MemoryLimitInBytes: memory, MemorySwapLimitInBytes: memory,
		OomScoreAdj: 500, HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB"}},
	}
	if err := update(r.c, ctr, want); err != nil {
		r.t.Errorf("the container's resources %v: %v", want, err)
	}
	r.holds(ctr, memory, quota, shares)
}

func (r *resizing) holds(ctr *harness.Container, memory, quota, shares int64) {
	r.t.Helper()
	told := ctr.Status().GetResources().GetLinux()
	if told.GetMemoryLimitInBytes() != memory || told.GetCpuQuota() != quota || told.GetCpuPeriod() != 100000 || told.GetCpuShares() != shares {
		r.t.Errorf("Status tells %v, want %d bytes, quota %d, %d shares", told, memory, quota, shares)
	}
	r.inForce(filepath.Join(r.group(), "crid-"+ctr.ID), memory, quota, shares)
	r.inForce(r.group(), r.now.MemoryLimitInBytes, r.now.CpuQuota, r.now.CpuShares)
}

// inForce wants the limits in the files of a cgroup.
func (r *resizing) inForce(group string, memory, quota, shares int64) {
	r.t.Helper()
	for file, want := range map[string]int64{podMemory: memory, podQuota: quota, podShares: shares} {
		if got := harness.Figure(r.t, harness.GroupOf(group, file), ""); got != uint64(want) {
			r.t.Errorf("%s of %s is %d, want %d", file, group, got, want)
		}
	}
}

func TestResizeAsTheKubeletDoes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		const mib = 1 << 20
		r := newResizing(t, c)
		run := func(shell string) *harness.Container {
			return r.pod.Run(shell, func(cfg *runtime.ContainerConfig) {
				cfg.Metadata.Name = fmt.Sprintf("c%d", len(shell))
				cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 100 * mib, MemorySwapLimitInBytes: 100 * mib}
			})
		}
		a, b := run("sleep 1000"), run("sleep 1000; true")
		r.holds(a, 100*mib, 50000, 512)

		// Growth: the pod first, then the container; memory, then the limit of CPU time, then the shares.
		r.set(podMemory, 300*mib)
		r.update(a, 200*mib, 50000, 512)
		r.set(podQuota, 150000)
		r.set(podShares, 1536)
		r.update(a, 200*mib, 100000, 1024)
		r.holds(b, 100*mib, 50000, 512)

		// Shrinking: the container first, then the pod; the shares before the limit.
		r.update(a, 64*mib, 100000, 1024)
		r.set(podMemory, 164*mib)
		r.update(a, 64*mib, 20000, 204)
		r.set(podShares, 716)
		r.set(podQuota, 70000)
		r.holds(a, 64*mib, 20000, 204)
		r.holds(b, 100*mib, 50000, 512)

		// More memory for less CPU time: each resource goes its own way.
		r.set(podMemory, 200*mib)
		r.update(b, 136*mib, 50000, 512)
		r.update(b, 136*mib, 30000, 307)
		r.set(podShares, 511)
		r.set(podQuota, 50000)
		r.holds(b, 136*mib, 30000, 307)

		// The pod's cgroup cannot be written: crid is told the old values again, and nothing of the container has changed.
		wanted := proto.CloneOf(&r.now)
		wanted.MemoryLimitInBytes = 20 * mib
		r.tell(wanted)
		r.tell(proto.CloneOf(&r.now))
		r.holds(a, 64*mib, 20000, 204)

		c.Crash()
		r.holds(a, 64*mib, 20000, 204)
		r.holds(b, 136*mib, 30000, 307)
		r.pod.Remove()
	})
}

// A memory limit below what a container uses and cannot give back is refused, and leaves all as it was: the kubelet asks again
// later.
func TestResizeBelowWhatIsUsed(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		const mib = 1 << 20
		r := newResizing(t, c)
		ctr := r.pod.Run("head -c 50m /dev/zero > /dev/shm/full; touch /done; sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 100 * mib, MemorySwapLimitInBytes: 100 * mib}
		})
		eventually(t, "the memory is used", func() bool { return ctr.Exec("ls /done 2>/dev/null || true") != "" })
		change := &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 30 * mib, MemorySwapLimitInBytes: 30 * mib}
		if err := update(c, ctr, change); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "memory") {
			t.Errorf("30 MiB for a container that uses 50: %v", err)
		}
		r.holds(ctr, 100*mib, 50000, 512)
		ctr.Exec("rm /dev/shm/full")
		r.update(ctr, 30*mib, 20000, 512)
		if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
			t.Errorf("it is %v", s)
		}
		r.pod.Remove()
	})
}
