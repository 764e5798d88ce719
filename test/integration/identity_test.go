package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// What the status tells of the first process's user is what the kernel has, before and after a restart of crid.
func TestTheUserIsTold(t *testing.T) {
	merge, strict := runtime.SupplementalGroupsPolicy_Merge, runtime.SupplementalGroupsPolicy_Strict
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		running := map[string]*harness.Container{}
		for _, u := range []struct {
			want string // uid, gid, groups
			edit func(*runtime.ContainerConfig)
		}{
			{"1000 1000 [1000 1234 50000]", runAs(1000, -1, merge, 1234)},
			{"1000 1000 [1000 1234]", runAs(1000, -1, strict, 1234)},
			{"1000 33 [33 1234 50000]", runAs(1000, 33, merge, 1234)},
			{"1000 33 [33]", runAs(1000, 33, strict)},
			{"1000 1000 [1000 50000]", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.User) }},
			{"33 33 [33 77]", func(cfg *runtime.ContainerConfig) {
				cfg.Linux.SecurityContext.RunAsUsername = "www-data"
				cfg.Linux.SecurityContext.SupplementalGroups = []int64{77}
			}},
		} {
			ctr := pod.Run("sleep 1000", u.edit)
			running[u.want] = ctr
			if got := ctr.Exec("grep -E '^(Uid|Gid|Groups):' /proc/1/status"); identity(t, got) != u.want {
				t.Errorf("the kernel has %q, want %s", got, u.want)
			}
		}
		tell := func(when string) {
			t.Helper()
			for want, ctr := range running {
				u := ctr.Status().GetUser().GetLinux()
				if got := fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()); got != want {
					t.Errorf("%s the status tells %s, want %s", when, got, want)
				}
			}
		}
		tell("at first")
		c.Crash()
		tell("after a restart")
	})
}

// runAs asks for a user and, unless it is -1, a group.
func runAs(uid, gid int64, policy runtime.SupplementalGroupsPolicy, groups ...int64) func(*runtime.ContainerConfig) {
	return security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = &runtime.Int64Value{Value: uid}, groups, policy
		if gid >= 0 {
			s.RunAsGroup = &runtime.Int64Value{Value: gid}
		}
	})
}

// identity makes one line of those lines of /proc/PID/status.
func identity(t *testing.T, status string) string {
	t.Helper()
	found := map[string][]string{}
	for line := range strings.Lines(status) {
		name, values, _ := strings.Cut(line, ":")
		found[name] = strings.Fields(values)
	}
	if len(slices.Compact(found["Uid"])) != 1 || len(slices.Compact(found["Gid"])) != 1 { // real, effective, saved, of files
		t.Fatalf("status %q", status)
	}
	return fmt.Sprint(found["Uid"][0], " ", found["Gid"][0], " ", found["Groups"])
}

// The image's stop signal is on record, a real-time one too.
func TestStopSignalsOfImages(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		stopped := map[string]*harness.Container{}
		for image, signal := range map[string]string{images.Pausing: "USR1", images.Realtime: "37"} { // SIGRTMIN is 34
			ctr := pod.Run("trap 'exit 6' "+signal+"; echo set; while :; do sleep 0.05; done", func(cfg *runtime.ContainerConfig) {
				cfg.Image.Image = harness.Ref(image)
			})
			eventually(t, "the trap is set", func() bool { return strings.Contains(ctr.Log(), " set\n") })
			stopped[image] = ctr
		}
		c.Crash()
		for image, ctr := range stopped {
			ctr.Stop(30)
			if s := ctr.Status(); s.ExitCode != 6 {
				t.Errorf("%s: %v", image, s)
			}
		}
		if s := stopped[images.Realtime].Status(); s.GetStopSignal() != runtime.Signal_SIGNAL_SIGRTMINPLUS3 {
			t.Errorf("told: %v", s.GetStopSignal())
		}
	})
}

// procs is where the processes of a container are listed.
func procs(ctr *harness.Container) string {
	return filepath.Join(filepath.Dir(ctr.GroupFile("memory.")), "cgroup.procs")
}

// Memory ends containers while crid is away: one at its first want, one after its children have died of it.
func TestOOMWhileCridIsAway(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		pod := c.RunPod()
		run := func(then string) *harness.Container {
			return pod.Run("until [ -e /vol/go ]; do sleep 0.05; done; "+then, func(cfg *runtime.ContainerConfig) {
				cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
				cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/vol"}}
			})
		}
		const eat = "dd if=/dev/zero of=/dev/null bs=40M"
		victim, parent, survivor := run("exec "+eat), run(eat+"; "+eat+"; exit 3"), run(eat+"; "+eat+"; exit 0")
		if err := c.Node.Kill(); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, "go"), "", 0o644)
		for _, ctr := range []*harness.Container{victim, parent, survivor} {
			eventually(t, "the container has ended", func() bool {
				raw, err := os.ReadFile(procs(ctr))
				return err != nil || len(raw) == 0
			})
		}
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []struct {
			ctr    *harness.Container
			code   int32
			reason string
		}{{victim, 137, "OOMKilled"}, {parent, 3, "OOMKilled"}, {survivor, 0, "Completed"}} {
			if s := want.ctr.Wait(); s.ExitCode != want.code || s.Reason != want.reason {
				t.Errorf("got %d, %s; want %d, %s", s.ExitCode, s.Reason, want.code, want.reason)
			}
		}
	})
}
