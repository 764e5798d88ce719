package integration

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// wantFull fails the test unless err is ResourceExhausted and names the disk.
func wantFull(t *testing.T, what string, err error, disk *harness.SmallDisk) {
	t.Helper()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), disk.Path) {
		t.Errorf("%s on a full disk: %v; want ResourceExhausted with %s in it", what, err, disk.Path)
	}
}

// TestAFullDisk fills the disk with records, images and what containers write, then that of what does not survive a
// reboot: nothing new is made, all that ends something works, before and after a restart of crid, and what was told stays
// true. With space all goes on.
func TestAFullDisk(t *testing.T) {
	bytes, all := (*harness.SmallDisk).FillBlocks, (*harness.SmallDisk).Fill
	for _, v := range []struct {
		name, fstype string
		fill         func(*harness.SmallDisk)
	}{
		{"tmpfs without bytes", harness.Tmpfs, bytes},
		{"tmpfs without bytes and inodes", harness.Tmpfs, all},
		{"ext4 without bytes", harness.Ext4, bytes},
		{"ext4 without bytes and inodes", harness.Ext4, all},
		{"xfs", harness.XFS, all},
		{"btrfs at the end of a quota", harness.Quota, bytes},
	} {
		t.Run("root on "+v.name, func(t *testing.T) {
			root, _ := harness.Places(t)
			disk := harness.NewSmallDisk(t, v.fstype, root, 64)
			liveOnFull(&full{Crid: harness.Start(t), t: t, disk: disk, fill: v.fill})
		})
	}
	// A pod has no byte there: its files are on a filesystem of their own.
	for what, takesPods := range map[string]bool{"bytes": true, "bytes and inodes": false} {
		t.Run("runroot without "+what, func(t *testing.T) {
			_, runroot := harness.Places(t)
			disk := harness.NewSmallDisk(t, harness.Tmpfs, runroot, 16)
			fill := all
			if takesPods {
				fill = bytes
			}
			liveOnFull(&full{Crid: harness.Start(t), t: t, disk: disk, fill: fill, takesPods: takesPods})
		})
	}
}

// full is a crid on a disk that is filled again before each step.
type full struct {
	*harness.Crid
	t    *testing.T
	disk *harness.SmallDisk
	fill func(*harness.SmallDisk)

	takesPods bool
}

// onFull does a step on the full disk.
func (f *full) onFull(step func()) {
	f.t.Helper()
	f.fill(f.disk)
	step()
}

// refuses tries to make what needs space.
func (f *full) refuses(pod *harness.Pod) {
	f.t.Helper()
	if f.takesPods {
		f.RunPod().Remove()
		f.fill(f.disk)
	} else {
		_, err := f.Node.Runtime.RunPodSandbox(f.Context(), f.PodConfig(), "")
		wantFull(f.t, "RunPodSandbox", err, f.disk)
	}
	_, err := f.Node.Runtime.CreateContainer(f.Context(), pod.ID, pod.ContainerConfig("true"), pod.Config)
	wantFull(f.t, "CreateContainer", err, f.disk)
}

func (f *full) isExited(ctr *harness.Container, code int32) {
	f.t.Helper()
	if s := ctr.Wait(); s.ExitCode != code {
		f.t.Errorf("exit code %d, %s %q; want %d", s.ExitCode, s.Reason, s.Message, code)
	}
}

func (f *full) isNotReady(pod *harness.Pod) {
	f.t.Helper()
	if pod.Status().State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		f.t.Error("a stopped pod is ready after a restart")
	}
}

func (f *full) removesImages() {
	f.t.Helper()
	image := &runtime.ImageSpec{Image: harness.Ref(images.Busybox)}
	if err := f.Node.Images.RemoveImage(f.Context(), image); err != nil {
		f.t.Error("remove an image on a full disk:", err)
	}
	f.fill(f.disk)
	_, err := f.Node.Images.PullImage(f.Context(), image, nil, nil)
	wantFull(f.t, "PullImage", err, f.disk)
}

// pair is a pod with a container that runs until it is told to end, and one that has ended.
type pair struct {
	pod            *harness.Pod
	running, ended *harness.Container
}

func (f *full) pair() pair {
	p := f.RunPod()
	return pair{p, p.Run("trap 'exit 5' TERM; while :; do sleep 0.1; done"), p.Run("exit 7")}
}

func hostNamespaces(cfg *runtime.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	cfg.Linux.SecurityContext.NamespaceOptions.Ipc = runtime.NamespaceMode_NODE
}

func liveOnFull(f *full) {
	a, b, last := f.pair(), f.pair(), f.pair()
	for _, p := range []pair{a, b, last} {
		f.isExited(p.ended, 7)
	}
	ofHost := f.RunPod(hostNamespaces) // has nothing whose absence tells that it was stopped

	f.onFull(func() { f.refuses(last.pod) })
	f.onFull(ofHost.Stop)
	f.onFull(func() { a.running.Stop(10) })
	f.isExited(a.running, 5)
	f.onFull(a.ended.Remove)
	f.onFull(a.pod.Stop)
	f.onFull(f.Crash)
	f.isExited(a.running, 5)
	f.isNotReady(a.pod)
	f.isNotReady(ofHost)
	f.onFull(func() { f.refuses(last.pod) })
	f.onFull(func() { b.running.Stop(10) })
	f.onFull(b.running.Remove)
	f.onFull(b.pod.Stop)
	f.onFull(b.pod.Remove)
	f.onFull(f.Restart)
	f.onFull(ofHost.Remove)
	f.onFull(a.pod.Remove)
	if s := last.running.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		f.t.Error("the container that nobody stopped is", s.State, s.Reason, s.Message)
	}
	f.onFull(last.pod.Remove)
	f.onFull(f.removesImages)

	f.disk.Free()
	f.isExited(f.RunPod().Run("exit 3"), 3)
}

// TestADiskThatIsNearlyFull lets the disk become full at each step on the way of a container: it is there, or is refused
// for want of space and nothing of it is left.
func TestADiskThatIsNearlyFull(t *testing.T) {
	for _, name := range runtimes {
		t.Run(name+" with its runroot", func(t *testing.T) {
			_, runroot := harness.Places(t)
			nearlyFull(t, harness.NewSmallDisk(t, harness.Tmpfs, runroot, 16), 9, 20, harness.Runtime(name))
		})
	}
	for _, fstype := range []string{harness.Tmpfs, harness.Ext4, harness.XFS} {
		t.Run("root on "+fstype, func(t *testing.T) {
			root, _ := harness.Places(t)
			nearlyFull(t, harness.NewSmallDisk(t, fstype, root, 64), 12, 16)
		})
	}
}

// plenty of pages or inodes is enough for a container.
const plenty = 200

func nearlyFull(t *testing.T, disk *harness.SmallDisk, pages, inodes int, options ...harness.Option) {
	c := harness.Start(t, options...)
	pod := c.RunPod()
	pod.Run("true").Wait()
	made := 0
	try := func(pages, inodes int) {
		disk.FillBut(pages, inodes)
		id, err := c.Node.Runtime.CreateContainer(c.Context(), pod.ID, pod.ContainerConfig("exit 4"), pod.Config)
		if err == nil {
			made++
			err = c.Node.Runtime.StartContainer(c.Context(), id)
		}
		if err != nil {
			wantFull(t, fmt.Sprintf("a container with %d pages and %d inodes", pages, inodes), err, disk)
		}
		if id != "" {
			err = c.Node.Runtime.RemoveContainer(c.Context(), id)
		}
		if all, failed := c.Node.Runtime.ListContainers(c.Context(), nil); failed != nil || len(all) != 1 {
			t.Errorf("%d containers are there, %v, %v; want the first alone", len(all), failed, err)
		}
	}
	for n := range pages {
		try(n, plenty)
	}
	for n := range inodes {
		try(plenty, n)
	}
	if made == 0 || made == pages+inodes {
		t.Errorf("%d containers of %d were made: the disk was full at no step, or always", made, pages+inodes)
	}
	disk.Free()
}

// TestAPodOnANearlyFullDisk is the same for pods, and for what the network's plugins write.
func TestAPodOnANearlyFullDisk(t *testing.T) {
	root, runroot := harness.Places(t)
	disks := []*harness.SmallDisk{
		harness.NewSmallDisk(t, harness.Tmpfs, root, 64), harness.NewSmallDisk(t, harness.Tmpfs, runroot, 16),
		harness.NewSmallDisk(t, harness.Tmpfs, filepath.Join(filepath.Dir(root), "leases"), 1),
	}
	c := harness.Start(t)
	c.RunPod()
	made := 0
	try := func(disk *harness.SmallDisk, pages, inodes int) {
		disk.FillBut(pages, inodes)
		id, err := c.Node.Runtime.RunPodSandbox(c.Context(), c.PodConfig(), "")
		if err != nil {
			wantFull(t, fmt.Sprintf("RunPodSandbox with %d pages and %d inodes", pages, inodes), err, disk)
		} else {
			made++
			c.Pod(id, nil).Remove()
		}
		if pods, err := c.Node.Runtime.ListPodSandbox(c.Context(), nil); err != nil || len(pods) != 1 {
			t.Errorf("%d pods are there, %v; want the first alone", len(pods), err)
		}
		disk.Free()
	}
	for _, disk := range disks {
		for n := range 4 {
			try(disk, n, plenty)
			try(disk, plenty, 2*n)
		}
	}
	if made == 0 || made == 24 {
		t.Errorf("%d pods of 24 were made: the disk was full at no step, or always", made)
	}
}

// lostLog is what Status tells of a log that stopped.
type lostLog struct {
	Container, Path string
	Since, Until    time.Time
}

func lostLogs(t *testing.T, c *harness.Crid) []lostLog {
	t.Helper()
	resp, err := c.Node.Runtime.Status(c.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	var told struct{ LostLogs []lostLog }
	if err := json.Unmarshal([]byte(resp.Info["crid"]), &told); err != nil {
		t.Fatal(err)
	}
	return told.LostLogs
}

// TestAFullLogDisk lets a container write to a log that has no space: it is not held up, crid tells whose log stopped and
// when, and that it goes on, and the log goes on by itself. One that writes nothing is not accused.
func TestAFullLogDisk(t *testing.T) {
	root, _ := harness.Places(t)
	disk := harness.NewSmallDisk(t, harness.Tmpfs, filepath.Join(filepath.Dir(root), "logs"), 8)
	c := harness.Start(t)
	pod := c.RunPod()
	silent := pod.Run("sleep 1000")
	writer := pod.Run("i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i of so many; echo $i >/at; sleep 0.01; done; echo the end; exit 9")
	at := func() int {
		n, err := strconv.Atoi(strings.TrimSpace(writer.Exec("until cat /at | grep .; do :; done")))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the first lines", func() bool { return strings.Contains(writer.Log(), "line 10 ") })
	full := time.Now()
	disk.FillBlocks()
	eventually(t, "word of the stopped log", func() bool { return len(lostLogs(t, c)) > 0 })
	size, before := len(writer.Log()), at()
	lost := lostLogs(t, c)
	if len(lost) != 1 || lost[0].Container != writer.ID || lost[0].Path != writer.Status().LogPath || !lost[0].Until.IsZero() {
		t.Errorf("lost logs: %+v; want that of %s alone, which still is", lost, writer.ID)
	}
	if d := lost[0].Since.Sub(full); d < -time.Second || d > 10*time.Second {
		t.Errorf("the log has stopped since %v; the disk is full since %v", lost[0].Since, full)
	}
	eventually(t, "the container to go on", func() bool { return at() > before+20 })
	toldOn(t, c, lost)
	if now := len(writer.Log()); now != size {
		t.Errorf("a log without space grew from %d to %d bytes", size, now)
	}
	if _, err := pod.TryCreate(pod.ContainerConfig("echo a new log")); status.Code(err) != codes.OK {
		t.Errorf("a container whose log has no bytes: %v", err) // it has an inode
	}
	freed := time.Now()
	disk.Free()
	eventually(t, "word that the log goes on", func() bool { return !lostLogs(t, c)[0].Until.IsZero() })
	if until := lostLogs(t, c)[0].Until; until.Before(freed) {
		t.Errorf("the log goes on since %v; there is space since %v", until, freed)
	}
	writer.Exec("touch /stop")
	if s := writer.Wait(); s.ExitCode != 9 {
		t.Errorf("exit code %d, %s %s", s.ExitCode, s.Reason, s.Message)
	}
	wantWhole(t, writer.Log())
	said := c.Log()
	toldOn(t, c, lostLogs(t, c))
	writer.Remove()
	eventually(t, "nothing to be told of a container that is gone", func() bool { return len(lostLogs(t, c)) == 0 })
	for _, say := range []string{"a container's log has stopped", "a container's log goes on"} {
		if n := strings.Count(said, say); n != 1 {
			t.Errorf("crid's log says %d times that %s", n, say)
		}
	}
	silent.Stop(0)
}

// toldOn kills crid and expects the next one to tell the same of logs that have stopped.
func toldOn(t *testing.T, c *harness.Crid, lost []lostLog) {
	t.Helper()
	c.Crash()
	eventually(t, "word of stopped logs from the next crid", func() bool { return len(lostLogs(t, c)) > 0 })
	if again := lostLogs(t, c); !slices.Equal(again, lost) {
		t.Errorf("after a crash the lost logs are %+v; they were %+v", again, lost)
	}
}

// wantWhole allows a log one line that a full disk cut off.
func wantWhole(t *testing.T, log string) {
	t.Helper()
	if !strings.HasSuffix(log, "stdout F the end\n") {
		t.Errorf("the log ends with %q", log[max(0, len(log)-200):])
	}
	torn := 0
	for line := range strings.Lines(log) {
		stamp, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || strings.Count(rest, "stdout F ") != 1 || strings.Count(rest, ":") != 0 {
			torn++
			t.Logf("torn: %q", line)
		}
	}
	if torn > 1 {
		t.Errorf("%d lines are not whole", torn)
	}
}
