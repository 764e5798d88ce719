package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// left lists what of the ids is still on the machine: mounts, pins, cgroups, files of the runroot.
func left(t *testing.T, c *harness.Crid, ids ...string) []string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	paths := strings.Split(string(raw), "\n")
	for _, pattern := range []string{"/run/netns/*", "/sys/fs/cgroup/" + c.Cgroup + "/*", "/sys/fs/cgroup/*/" + c.Cgroup + "/*", c.RunRoot + "/*/*", c.RunRoot + "/*/*/*", c.Root() + "/rootfs/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	var all []string
	for _, path := range paths {
		for _, id := range ids {
			if strings.Contains(path, id) {
				all = append(all, path)
			}
		}
	}
	return all
}

func TestAnExitedContainerHoldsNoMount(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("true")
		ctr.Wait()
		eventually(t, "the root filesystem to be unmounted", func() bool {
			raw, err := os.ReadFile("/proc/self/mountinfo")
			return err == nil && !strings.Contains(string(raw), ctr.ID)
		})
		if got := ctr.Status().State; got != runtime.ContainerState_CONTAINER_EXITED {
			t.Errorf("it is %v", got)
		}
	})
}

func TestWhatHasNoRecordIsCollected(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		share := func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		}
		lost, kept := c.RunPod(share), c.RunPod()
		running, exited, stays := lost.Run("sleep 1000"), lost.Run("true"), kept.Run("sleep 1000")
		exited.Wait()
		if err := c.Node.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{lost.ID, running.ID, exited.ID, lost.ID + "-pause"} {
			records, err := filepath.Glob(filepath.Join(c.Root(), "state", "*", id+".json"))
			if err != nil || len(records) != 1 {
				t.Fatalf("records of %s: %q, %v", id, records, err)
			}
			if err := os.Remove(records[0]); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all of the pod to be collected", func() bool {
			return len(left(t, c, lost.ID, running.ID, exited.ID)) == 0
		})
		if got := stays.Exec("echo here"); got != "here\n" {
			t.Errorf("the other pod's container: %q", got)
		}
	})
}

// torn is what can become of a record.
var torn = map[string]func(whole string) string{
	"empty":        func(string) string { return "" },
	"one byte":     func(whole string) string { return whole[:1] },
	"half":         func(whole string) string { return whole[:len(whole)/2] },
	"a byte short": func(whole string) string { return whole[:len(strings.TrimRight(whole, " \n"))-1] }, // it ends in blanks
	"NULs":         func(whole string) string { return strings.Repeat("\x00", len(whole)) },
	"half, then NULs": func(whole string) string {
		return whole[:len(whole)/2] + strings.Repeat("\x00", len(whole)-len(whole)/2)
	},
	"NULs, then half": func(whole string) string { return strings.Repeat("\x00", len(whole)/2) + whole[len(whole)/2:] },
	"garbage":         func(string) string { return "{garbage" },
	"another file":    func(string) string { return "\x7fELF\x02\x01\x01" },
	"no record":       func(string) string { return `{"version":1,"record":null}` },
	"an empty record": func(string) string { return `{"version":1,"record":{}}` },
	"a newer version": func(string) string { return `{"version":999999,"record":{"config":{}}}` },
}

// tear does that to the record of a pod or container.
func tear(t *testing.T, c *harness.Crid, record, how string) {
	t.Helper()
	path := filepath.Join(c.Root(), "state", record+".json")
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(torn[how](string(whole))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnreadableRecordsHarmNobodyElse(t *testing.T) {
	c := harness.Start(t)
	good := c.RunPod()
	stays := good.Run("sleep 1000")
	type victim struct {
		bad             *harness.Pod
		running, exited *harness.Container
	}
	victims := map[string]victim{}
	for how := range torn {
		v := victim{bad: c.RunPod()}
		v.running, v.exited = v.bad.Run("sleep 1000"), good.Run("true")
		v.exited.Wait()
		victims[how] = v
	}
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	for how, v := range victims {
		for _, record := range []string{"pods/" + v.bad.ID, "containers/" + v.running.ID, "containers/" + v.exited.ID} {
			tear(t, c, record, how)
		}
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if got := stays.Exec("echo here"); got != "here\n" {
		t.Errorf("the other container: %q", got)
	}
	if pods, err := c.Runtime.ListPodSandbox(c.Context(), nil); err != nil || len(pods) != 1 {
		t.Errorf("%d pods, %v", len(pods), err)
	}
	for how, v := range victims {
		t.Run(how, func(t *testing.T) { removeUnreadable(t, c, v.bad, v.running, v.exited) })
	}
	if told := unreadable(t, c); len(told) > 0 {
		t.Errorf("the verbose status still tells of %q", told)
	}
}

// removeUnreadable looks whether an operator is told of the pod and its running container, and removes the pod, with which
// all goes.
func removeUnreadable(t *testing.T, c *harness.Crid, bad *harness.Pod, running, exited *harness.Container) {
	t.Helper()
	if _, err := c.Runtime.PodSandboxStatus(c.Context(), bad.ID, false); status.Code(err) != codes.Unavailable {
		t.Errorf("status of the pod: %v", err)
	}
	told := strings.Join(unreadable(t, c), "\n")
	for _, want := range []string{"crictl rmp " + bad.ID, "crictl rm " + running.ID} { // the exited one is gone at once
		if strings.Count(told, want) != 1 {
			t.Errorf("the verbose status does not tell once to %s:\n%s", want, told)
		}
	}
	if !strings.Contains(told, "it goes when pod "+bad.ID) {
		t.Errorf("the verbose status does not tell whose the container is:\n%s", told)
	}
	if err := c.Runtime.RemovePodSandbox(c.Context(), bad.ID); err != nil {
		t.Error(err)
	}
	if rest := left(t, c, bad.ID, running.ID); len(rest) > 0 {
		t.Errorf("left of the pod: %q", rest)
	}
	if err := c.Runtime.RemoveContainer(c.Context(), exited.ID); err != nil {
		t.Error(err)
	}
	eventually(t, "what is left of the container that has exited to be gone", func() bool { return len(left(t, c, exited.ID)) == 0 })
}

// TestAnUnreadableRecordHarmsItsPod tears single records of pods that share a PID namespace: what else the pod has goes on
// as far as it can, and RemovePodSandbox takes all of it away.
func TestAnUnreadableRecordHarmsItsPod(t *testing.T) {
	c := harness.Start(t)
	share := func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	}
	type victim struct {
		pod            *harness.Pod
		harmed, beside *harness.Container
	}
	victims := map[string]victim{}
	for _, what := range []string{"pod", "container", "stopped", "pause"} {
		pod := c.RunPod(share)
		victims[what] = victim{pod, pod.Run("sleep 1000"), pod.Run("sleep 1000")}
	}
	if err := c.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	tear(t, c, "pods/"+victims["pod"].pod.ID, "garbage")
	tear(t, c, "containers/"+victims["container"].harmed.ID, "garbage")
	tear(t, c, "containers/"+victims["stopped"].harmed.ID, "a newer version")
	tear(t, c, "containers/"+victims["pause"].pod.ID+"-pause", "garbage")
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if told := unreadable(t, c); len(told) != len(victims) {
		t.Errorf("the verbose status tells of %q", told)
	}
	for what, v := range victims {
		if got := v.beside.Exec("echo here"); got != "here\n" {
			t.Errorf("%s: the container whose record is whole: %q", what, got)
		}
	}
	asked := victims["container"]
	again, err := asked.pod.TryCreate(asked.harmed.Config) // as the kubelet does, which does not find it in the list
	if err != nil || again.ID == asked.harmed.ID {
		t.Fatal("asked again for the container that nobody is told of:", err)
	}
	if rest := left(t, c, asked.harmed.ID); len(rest) > 0 {
		t.Errorf("it runs twice: %q", rest)
	}
	if s := victims["pause"].pod.Status(); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod whose pause is not known: %v", s)
	}
	stopped := victims["stopped"]
	stopped.pod.Stop()
	if n := isolate.Running(t, "sleep 1000"); n != 2*len(victims)-3 { // two of this pod, and the one that made room
		t.Errorf("%d processes run after the pod was stopped", n)
	}
	for what, v := range victims {
		if err := c.Runtime.RemovePodSandbox(c.Context(), v.pod.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if rest := left(t, c, v.pod.ID, v.harmed.ID, v.beside.ID); len(rest) > 0 {
			t.Errorf("%s: left: %q", what, rest)
		}
	}
	if told := unreadable(t, c); len(told) > 0 {
		t.Errorf("the verbose status still tells of %q", told)
	}
}

// unreadable is what the verbose status tells of records that cannot be read.
func unreadable(t *testing.T, c *harness.Crid) []string {
	t.Helper()
	var info struct{ Unreadable []string }
	inside(t, c, &info)
	return info.Unreadable
}

// inside decodes what the verbose status tells of crid's inside.
func inside(t *testing.T, c *harness.Crid, info any) {
	t.Helper()
	s, err := c.Runtime.Status(c.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(s.Info["crid"]), info); err != nil {
		t.Fatal(err)
	}
}
