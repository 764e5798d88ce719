package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// peak is the most memory that crid has ever held, in KiB.
func peak(t *testing.T, c *harness.Crid) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(c.PID()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatal("no peak of crid's memory")
	return 0
}

// A pod on the host's network sees abstract sockets of the host, whoever made them: there must be none that takes orders.
func TestCVE_2020_15257_NoAbstractSockets(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		})
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.Tty = true, true })
		sockets := ctr.Exec("cat /proc/net/unix")
		if !strings.Contains(sockets, c.Socket) {
			t.Fatalf("the container does not see the host's sockets, so that this proves nothing:\n%s", sockets)
		}
		for line := range strings.Lines(sockets) {
			if fields := strings.Fields(line); len(fields) == 8 && strings.HasPrefix(fields[7], "@") {
				t.Errorf("an abstract socket: %s", line)
			}
		}
	})
}

// A user of the host who knows where everything is mounted gets to none of it: containers' root filesystems have setuid
// programs, their shared memory is writable for everybody.
func TestCVE_2021_41103_DirectoriesAreClosed(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		id := c.Pull(images.Files)
		for name, users := range map[string]func(*runtime.PodSandboxConfig){
			"the host's users": func(*runtime.PodSandboxConfig) {}, "a user namespace": usersOf(idMap(hostUID), idMap(hostGID)),
		} {
			pod := c.RunPod(users)
			ctr := pod.Run("sleep 1000", withMounts(imageVolume(id, "")), inheritUsers(pod))
			if got := ctr.Exec("cat /vol/dir/sub/file; echo x > /dev/shm/x; cat /dev/shm/x /etc/hostname"); got != "in the image\nx\npodhost\n" {
				t.Errorf("%s: the container itself reads %q", name, got)
			}
		}
		looked := 0
		for _, path := range append(mountsOf(t, c), filepath.Join(c.Root(), "storage"), filepath.Join(c.Root(), "rootfs"), filepath.Join(c.RunRoot, "monitor")) {
			looked++
			out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", "-a", path+"/.").CombinedOutput()
			if err == nil {
				t.Errorf("CVE-2024-25621: a user of the host finds in %s:\n%s", path, out)
			}
		}
		if looked < 8 {
			t.Errorf("looked at %d directories only: %v", looked, mountsOf(t, c))
		}
	})
}

// mountsOf are what is mounted below crid's directories and is not one of these itself.
func mountsOf(t *testing.T, c *harness.Crid) []string {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(c.RunRoot))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, m := range all {
		if strings.Count(strings.TrimPrefix(m.Mountpoint, c.RunRoot), "/") > 1 && !strings.Contains(m.Root, ":[") {
			paths = append(paths, m.Mountpoint)
		}
	}
	return paths
}

func inheritUsers(pod *harness.Pod) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions = pod.Config.Linux.SecurityContext.NamespaceOptions
	}
}

// A container fills what it finds mounted of the host: its pod's files are on a filesystem of the pod's own.
func TestCVE_2020_8557_PodFilesAreBounded(t *testing.T) {
	c := harness.Start(t)
	for name, ipc := range map[string]runtime.NamespaceMode{"own": runtime.NamespaceMode_POD, "host": runtime.NamespaceMode_NODE} {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.NamespaceOptions.Ipc = ipc })
		got := pod.Output("for f in hosts hostname resolv.conf; do dd if=/dev/zero of=/etc/$f bs=1M count=80 2>&1 | grep -o 'No space left'; : > /etc/$f; done")
		if got != strings.Repeat("No space left\n", 3) {
			t.Errorf("IPC namespace %s: %q", name, got)
		}
	}
}

// All of a pod is short of memory, its monitors as well, which are in the pod's cgroup: the one that ate it is killed, and
// nobody else, so that its exit is known and the pod lives on.
func TestCVE_2019_14891_MonitorsOutliveTheirContainers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		bystander := pod.Run("sleep 1000")
		eater := pod.Run("while [ ! -e /tmp/go ]; do sleep 0.1; done; exec dd if=/dev/zero of=/dev/null bs=600M")
		groups := contents(t, filepath.Join("/proc", contents(t, filepath.Join(c.RunRoot, "monitor", eater.ID), "monitor.pid")), "cgroup")
		if strings.Contains(groups, "crid-"+eater.ID) || !strings.Contains(groups, "crid-mon-"+eater.ID) {
			t.Errorf("the monitor is in the container's cgroups:\n%s", groups)
		}
		limitPods(t, c, "160M")
		eater.Exec("touch /tmp/go")
		if s := eater.Wait(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("the container that ate the pod's memory: %v", s)
		}
		if s := bystander.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING || pod.Status().State != runtime.PodSandboxState_SANDBOX_READY {
			t.Errorf("beside it: %v, the pod %v", s.State, pod.Status().State)
		}
	})
}

// limitPods gives all pods together so much memory.
func limitPods(t *testing.T, c *harness.Crid, limit string) {
	t.Helper()
	file := "memory.limit_in_bytes"
	if harness.Unified() {
		file = "memory.max"
	}
	if err := os.WriteFile(harness.GroupOf(c.Cgroup, file), []byte(limit), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Commands that cannot start, at a terminal whose size changes, and clients that vanish leave no goroutine behind. The
// harness counts them when the test ends.
func TestCVE_2022_23471_StreamsThatLeak(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.Tty = true, true })
		for range 5 {
			resp, err := c.Runtime.Exec(c.Context(), &runtime.ExecRequest{ContainerId: ctr.ID, Cmd: []string{"/no/such/program"}, Tty: true, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			terminal := make(sizes, 8)
			for i := range uint16(8) {
				terminal <- remotecommand.TerminalSize{Width: 80 + i, Height: 24}
			}
			o := remotecommand.StreamOptions{Stdin: &bytes.Buffer{}, Stdout: &bytes.Buffer{}, Tty: true, TerminalSizeQueue: terminal}
			if err := stream(c.Context(), t, resp.Url, o); err == nil {
				t.Error("a program that is not there ran")
			}
			close(terminal)
		}
		for range 5 { // CVE-2025-64329
			k := connect(t, attachURL(t, c, ctr, true), true, nil)
			k.hangUp()
			_ = k.wait()
		}
		for range 2 { // GHSA-7jxh-36q5-gcqv
			ctr.Exec("sleep 3 &")
		}
	})
}
