package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
)

// counting writes numbers to its log until the file /shared/stop is there, then ends with code 7.
const counting = "i=0; until [ -e /shared/stop ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 7"

// sharing mounts a directory of the host at /shared.
func sharing(dir string) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) {
		cfg.Mounts = append(cfg.Mounts, &runtime.Mount{HostPath: dir, ContainerPath: "/shared"})
	}
}

// TestRestartWithAHundredPods kills a crid that has a hundred pods. Ten containers end while nobody looks.
func TestRestartWithAHundredPods(t *testing.T) {
	const pods, ending, tries = 100, 10, 5
	c := harness.Start(t, harness.Quiet())
	c.Pull(images.Busybox)
	shared := t.TempDir()
	end, stay := manyPods(t, c, shared, ending, pods-ending)
	pids := map[string]int{}
	for _, ctr := range stay {
		pids[ctr.ID] = ctr.PID()
	}
	var took []time.Duration
	for range tries - 1 {
		took = append(took, crash(t, c, func() {}))
	}
	var stopped, gone time.Time
	took = append(took, crash(t, c, func() {
		stopped = time.Now()
		touch(t, filepath.Join(shared, "stop"))
		eventually(t, "the exits to be on record", func() bool {
			records, err := filepath.Glob(filepath.Join(c.RunRoot, "exits", "????????????????????????????????????????????????????????????????"))
			return err == nil && len(records) == ending
		})
		gone = time.Now()
	}))
	t.Logf("crid answered after %v", took)
	if best := slices.Min(took); best > 500*time.Millisecond { // a third of that where nothing else runs
		t.Errorf("crid with %d pods took %v to answer at best", pods, best)
	}
	for _, ctr := range end { // the first answer is the right one: nothing is waited for
		endedBetween(t, ctr.Status(), stopped, gone)
		noGap(t, ctr.Text())
	}
	for _, ctr := range stay {
		if pid := ctr.PID(); pid != pids[ctr.ID] || syscall.Kill(pid, 0) != nil {
			t.Errorf("a container has process %d; it was %d", pid, pids[ctr.ID])
		}
	}
	for _, ctr := range stay[:ending] {
		noGap(t, ctr.Text())
	}
	if list, err := c.Runtime.ListPodSandbox(c.Context(), &runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}); err != nil || len(list) != pods {
		t.Errorf("%d pods are ready, %v", len(list), err)
	}
}

// manyPods runs pods with a container each: of some it counts until there is a file "stop" in shared, of as many it
// counts for ever, of the rest it sleeps.
func manyPods(t *testing.T, c *harness.Crid, shared string, ending, staying int) (end, stay []*harness.Container) {
	t.Helper()
	end, stay = make([]*harness.Container, ending), make([]*harness.Container, staying)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range ending + staying {
		slots <- struct{}{}
		wg.Go(func() { // ends with its container's start
			defer func() { <-slots }()
			switch pod := c.RunPod(); {
			case i < ending:
				end[i] = pod.Run(counting, sharing(shared))
			case i < 2*ending:
				stay[i-ending] = pod.Run("i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done")
			default:
				stay[i-ending] = pod.Run("sleep 1000")
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return end, stay
}

// endedBetween expects the end of a container that counted.
func endedBetween(t *testing.T, s *runtime.ContainerStatus, earliest, latest time.Time) {
	t.Helper()
	if s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 7 || s.Reason != "Error" {
		t.Errorf("a container that ended meanwhile: %v", s)
	}
	const coarse = 50 * time.Millisecond // the clock of files
	if at := time.Unix(0, s.FinishedAt); at.Before(earliest.Add(-coarse)) || at.After(latest.Add(coarse)) {
		t.Errorf("it ended at %v; want between %v and %v", at, earliest, latest)
	}
}

// crash kills crid, lets meanwhile happen and says how long a new one took to answer.
func crash(t *testing.T, c *harness.Crid, meanwhile func()) time.Duration {
	t.Helper()
	if err := c.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	began := time.Now()
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// noGap reads numbers, a line each, that begin with 0. The last line may still be written.
func noGap(t *testing.T, text string) {
	t.Helper()
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		t.Errorf("log %q", text)
	}
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i) {
			t.Errorf("a gap in a log: %q, want number %d", line, i)
			return
		}
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestWhatIsMissingHarmsOnePod takes away of each of some pods something that crid keeps beside its record, and puts
// files among the records that are none.
func TestWhatIsMissingHarmsOnePod(t *testing.T) {
	c := harness.Start(t)
	good := c.RunPod()
	stays := good.Run("sleep 1000")
	harm := map[string]func(pod *harness.Pod, ctr *harness.Container) string{
		"pod's files": func(pod *harness.Pod, _ *harness.Container) string { return filepath.Join(c.RunRoot, "pods", pod.ID) },
		"monitor directory": func(_ *harness.Pod, ctr *harness.Container) string {
			return filepath.Join(c.RunRoot, "monitor", ctr.ID)
		},
		"root filesystem": func(_ *harness.Pod, ctr *harness.Container) string { return filepath.Join(c.Root(), "rootfs", ctr.ID) },
		"netns":           func(pod *harness.Pod, _ *harness.Container) string { return "/run/netns/crid-" + pod.ID },
	}
	pods := map[string]*harness.Pod{}
	containers := map[string]*harness.Container{}
	for what := range harm {
		pods[what] = c.RunPod()
		containers[what] = pods[what].Run("sleep 1000")
	}
	if err := c.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	for what, path := range harm {
		path := path(pods[what], containers[what])
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		unmountBelow(t, path)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	unknown := []string{"state/pods/README", "state/containers/x.json.bak", "state/tombstones/-.json", "rootfs/lost+found"}
	for _, name := range unknown {
		touch(t, filepath.Join(c.Root(), name))
	}
	unknown = append(unknown, copies(t, c, "state/pods/"+good.ID, "state/containers/"+stays.ID)...)
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	odd := []string{pods["pod's files"].ID, containers["monitor directory"].ID, containers["root filesystem"].ID, "state/pods/README", stays.ID + ".bak.json"}
	eventually(t, "what is odd to be told", func() bool { return warnsOf(t, c, odd...) == len(odd) })
	if got := stays.Exec("echo here"); got != "here\n" || good.Status().State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("the other pod: %q, %v", got, good.Status())
	}
	if s := pods["netns"].Status(); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod without its network namespace: %v", s)
	}
	for what, pod := range pods {
		if err := c.Runtime.StopPodSandbox(c.Context(), pod.ID); err != nil {
			t.Errorf("stop the pod without its %s: %v", what, err)
		}
		if err := c.Runtime.RemovePodSandbox(c.Context(), pod.ID); err != nil {
			t.Errorf("remove the pod without its %s: %v", what, err)
		}
		if rest := left(t, c, pod.ID, containers[what].ID); len(rest) > 0 {
			t.Errorf("left of the pod without its %s: %q", what, rest)
		}
	}
	if n := warnsOf(t, c, odd[:3]...); n > 0 {
		t.Errorf("%d of the pods that were removed are still told of", n)
	}
	for _, name := range unknown {
		if err := os.Remove(filepath.Join(c.Root(), name)); err != nil {
			t.Error("a stranger's file is gone:", err)
		}
	}
}

// copies makes copies of records beside them, as operators do.
func copies(t *testing.T, c *harness.Crid, records ...string) (names []string) {
	t.Helper()
	for _, record := range records {
		whole, err := os.ReadFile(filepath.Join(c.Root(), record+".json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{record + ".bak.json", record + "-copy.json"} {
			write(t, filepath.Join(c.Root(), name), string(whole))
			names = append(names, name)
		}
	}
	return names
}

// TestReboot takes everything away that a reboot takes: processes, mounts, cgroups, runroot, links. What is on disk
// stays.
func TestReboot(t *testing.T) {
	c := harness.Start(t)
	shared := t.TempDir()
	pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	once := pod.Run("echo ran >> /shared/runs; echo last words; sleep 1000", sharing(shared))
	exited := pod.Run("echo done; exit 4")
	exited.Wait()
	created := pod.Create("echo ran >> /shared/created", sharing(shared))
	stopped := c.RunPod()
	stopped.Stop()
	eventually(t, "the container to have run", func() bool { return once.Text() == "last words\n" })
	image := c.Pull(images.Busybox)

	reboot(t, c)

	for _, p := range []*harness.Pod{pod, stopped} {
		if s := p.Status(); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("a pod after the reboot: %v", s)
		}
	}
	for ctr, want := range map[*harness.Container]struct {
		code   int32
		reason string
		log    string
	}{once: {255, "HostRebooted", "last words\n"}, exited: {4, "Error", "done\n"}, created: {255, "HostRebooted", ""}} {
		s := ctr.Status()
		if s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != want.code || s.Reason != want.reason {
			t.Errorf("a container after the reboot: %v; want code %d and %s", s, want.code, want.reason)
		}
		if want.log != "" && ctr.Text() != want.log {
			t.Errorf("its log is %q; want %q", ctr.Text(), want.log)
		}
		if err := c.Runtime.StartContainer(c.Context(), ctr.ID); err == nil {
			t.Error("a container was started again after the reboot")
		}
	}
	if runs, err := os.ReadFile(filepath.Join(shared, "runs")); err != nil || string(runs) != "ran\n" {
		t.Errorf("the container ran %q, %v", runs, err)
	}
	if _, err := os.Stat(filepath.Join(shared, "created")); err == nil {
		t.Error("a container that was never started ran")
	}
	if s, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: image}, false); err != nil || s.Image.GetId() != image {
		t.Errorf("the image after the reboot: %v, %v", s, err)
	}
	cfg := pod.Config
	cfg.Metadata.Attempt++ // as the kubelet does
	id, err := c.Runtime.RunPodSandbox(c.Context(), cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Pod(id, cfg).Output("echo again"); got != "again\n" {
		t.Errorf("a container of the next attempt: %q", got)
	}
	pod.Remove()
	stopped.Remove()
	if rest := left(t, c, pod.ID, stopped.ID, once.ID, exited.ID, created.ID); len(rest) > 0 {
		t.Errorf("left: %q", rest)
	}
}

// reboot ends crid and everything that crid started, with another boot id afterwards.
func reboot(t *testing.T, c *harness.Crid) {
	t.Helper()
	if err := c.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all processes of pods to be gone", func() bool { return killIn(t, c.Cgroup) == 0 })
	for _, dir := range []string{c.RunRoot, "/run/netns"} {
		unmountBelow(t, dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	groups, err := isolate.Cgroups(c.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range slices.Backward(groups) {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if bridge, err := netlink.LinkByName(filepath.Base(c.Dir)); err != nil || netlink.LinkDel(bridge) != nil {
		t.Fatal("take the bridge away:", err)
	}
	const bootID = "/proc/sys/kernel/random/boot_id"
	other := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(other, []byte("11111111-2222-3333-4444-555555555555\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(other, bootID, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bootID, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
}

// killIn kills what is in a cgroup and below it and says how many processes there were.
func killIn(t *testing.T, cgroup string) (n int) {
	t.Helper()
	groups, err := isolate.Cgroups(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range groups {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue // it is gone
		}
		for _, field := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			n++
		}
	}
	return n
}

// unmountBelow takes away what is mounted at or below a directory, the last mounted first.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range slices.Backward(infos) {
		err := unix.Unmount(info.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) { // a mount that is shared has gone with its twin
			t.Fatal(fmt.Errorf("unmount %s: %w", info.Mountpoint, err))
		}
	}
}

// warnsOf counts of which of these names the warnings of the verbose status tell.
func warnsOf(t *testing.T, c *harness.Crid, names ...string) (n int) {
	t.Helper()
	var info struct{ Warnings []string }
	inside(t, c, &info)
	for _, name := range names {
		if strings.Contains(strings.Join(info.Warnings, "\n"), name) {
			n++
		}
	}
	return n
}
