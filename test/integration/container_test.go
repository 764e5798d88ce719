package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

func security(edit func(*runtime.LinuxContainerSecurityContext)) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) { edit(cfg.Linux.SecurityContext) }
}

// lowestScore is the score that a process has whom score is meant for: crid's own, which is the test's, where scores cannot
// be lowered.
func lowestScore(t *testing.T, score string) string {
	t.Helper()
	if exec.Command("sh", "-c", "echo "+score+" >/proc/self/oom_score_adj").Run() == nil {
		return score + "\n"
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	return string(own)
}

// Each feature is read back from inside a container: what /proc says there, not what crid believes.
func TestFeaturesArriveInTheContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		noChmod := filepath.Join(t.TempDir(), "no-chmod.json")
		put(t, noChmod, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}]}`, 0o644)
		for _, f := range []struct {
			name, shell, want string
			edit              func(*runtime.ContainerConfig)
		}{
			{"args", `echo "$0-$1"`, "a-b\n", func(cfg *runtime.ContainerConfig) { cfg.Args = []string{"a", "b"} }},
			{"workdir", "pwd", "/tmp\n", func(cfg *runtime.ContainerConfig) { cfg.WorkingDir = "/tmp" }},
			{"env", "echo $A", "b c\n", func(cfg *runtime.ContainerConfig) { cfg.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("b c")}} }},
			{"user by id, with its group of passwd", "id -u; id -g", "1000\n1000\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = &runtime.Int64Value{Value: 1000} })},
			{"user and group", "id -u; id -g", "1000\n33\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 33}
			})},
			{"user by name", "id -un; echo $HOME", "nobody\n/\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" })},
			{"groups", "id -G", "0 1234 5678\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1234, 5678} })},
			{"no new privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true })},
			{"seccomp default", "grep Seccomp: /proc/self/status", "Seccomp:\t2\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
			})},
			{"seccomp unconfined", "grep Seccomp: /proc/self/status", "Seccomp:\t0\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			})},
			{"seccomp of the node", "grep Seccomp: /proc/self/status; chmod 700 /tmp 2>&1 | grep -c 'not permitted'", "Seccomp:\t2\n1\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: noChmod}
			})},
			{"no capabilities", "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000000\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
			})},
			{"one capability", "grep CapEff /proc/self/status", "CapEff:\t0000000000001000\n", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}}
			})},
			{"read-only root", "touch /x 2>&1; true", "touch: /x: Read-only file system\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })},
			{"masked path", "ls /bin/busybox 2>&1; cat /etc/passwd; true", "/bin/busybox\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/etc/passwd"} })},
			{"read-only path", "touch /tmp/x 2>&1; true", "touch: /tmp/x: Read-only file system\n", security(func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/tmp"} })},
			{"oom score", "cat /proc/self/oom_score_adj", "500\n", func(cfg *runtime.ContainerConfig) {
				cfg.Linux.Resources = &runtime.LinuxContainerResources{OomScoreAdj: 500}
			}},
			{"oom score below crid's own", "cat /proc/self/oom_score_adj", lowestScore(t, "-997"), func(cfg *runtime.ContainerConfig) {
				cfg.Linux.Resources = &runtime.LinuxContainerResources{OomScoreAdj: -997}
			}},
			{"file limit is the host's", "ulimit -n", hostLimit(t), nil},
		} {
			t.Run(f.name, func(t *testing.T) {
				edit := f.edit
				if edit == nil {
					edit = func(*runtime.ContainerConfig) {}
				}
				if got := pod.Output(f.shell, edit); got != f.want {
					t.Errorf("got %q, want %q", got, f.want)
				}
			})
		}
	})
}

// hostLimit is this process's limit of open files, which crid inherits and passes on.
func hostLimit(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			return strings.Fields(rest)[1] + "\n"
		}
	}
	t.Fatal("no limit of open files")
	return ""
}

func TestVolumes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		dir := t.TempDir()
		real, link, missing := filepath.Join(dir, "real"), filepath.Join(dir, "link"), filepath.Join(dir, "not", "there")
		if err := os.MkdirAll(real, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(real, "file"), []byte("content\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("real", link); err != nil {
			t.Fatal(err)
		}
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{
				{HostPath: link, ContainerPath: "/vol/link", SelinuxRelabel: true},
				{HostPath: real, ContainerPath: "/vol/ro", Readonly: true},
				{HostPath: missing, ContainerPath: "/vol/missing"},
				{HostPath: filepath.Join(real, "file"), ContainerPath: "/vol/file"},
			}
		})
		if got := ctr.Exec("cat /vol/link/file /vol/ro/file /vol/file"); got != "content\ncontent\ncontent\n" {
			t.Errorf("got %q", got)
		}
		if got := ctr.Exec("touch /vol/ro/x 2>&1 || echo x > /vol/missing/x"); !strings.Contains(got, "Read-only") {
			t.Errorf("writing to a read-only volume: %q", got)
		}
		if info, err := os.Stat(filepath.Join(missing, "x")); err != nil || info.Size() != 2 {
			t.Errorf("the missing source did not become a directory: %v", err)
		}
		s := ctr.Status()
		if len(s.Mounts) != 4 || s.Mounts[0].HostPath != link || s.Mounts[0].ContainerPath != "/vol/link" {
			t.Errorf("mounts are not told as they were asked: %v", s.Mounts)
		}
	})
}

func TestMountPropagation(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
		run := func(p runtime.MountPropagation) *harness.Container {
			return pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
				cfg.Linux.SecurityContext.Privileged = true
				cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/vol", Propagation: p}}
			})
		}
		private, slave, shared := run(runtime.MountPropagation_PROPAGATION_PRIVATE),
			run(runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER), run(runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL)
		shared.Exec("mkdir /vol/sub && mount -t tmpfs tmpfs /vol/sub && echo x > /vol/sub/file")
		if _, err := os.Stat(filepath.Join(dir, "sub", "file")); err != nil {
			t.Errorf("a bidirectional mount does not reach the host: %v", err)
		}
		if got := slave.Exec("cat /vol/sub/file"); got != "x\n" {
			t.Errorf("a mount of the host does not reach a slave: %q", got)
		}
		if got := private.Exec("ls /vol/sub"); got != "" {
			t.Errorf("a mount of the host reaches a private one: %q", got)
		}
		shared.Exec("umount /vol/sub")
		alone := t.TempDir()
		if err := errors.Join(unix.Mount("tmpfs", alone, "tmpfs", 0, ""), unix.Mount("", alone, "", unix.MS_PRIVATE, "")); err != nil {
			t.Fatal(err)
		}
		for _, p := range []runtime.MountPropagation{runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL, runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER} {
			_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(&runtime.Mount{HostPath: alone, ContainerPath: "/vol", Propagation: p})))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mounts[0] (/vol): propagation: "+p.String()) {
				t.Errorf("%v on a private mount: %v; want InvalidArgument", p, err)
			}
		}
		if err := unix.Unmount(alone, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestImageVolumes(t *testing.T) {
	for option, want := range map[string]string{
		"bind":   "1001\nseed\nwritten\nfresh\n",
		"mkdir":  "1001\nseed\n",
		"ignore": "1001\nseed\n",
	} {
		t.Run(option, func(t *testing.T) {
			c := harness.Start(t, harness.Config("[images]\nimage_volumes = \""+option+"\""))
			pod := c.RunPod()
			got := pod.Output("stat -c %u /data; cat /data/seed; (echo written > /data/x && cat /data/x; touch /fresh/f && echo fresh) 2>/dev/null; true",
				func(cfg *runtime.ContainerConfig) {
					cfg.Image.Image = harness.Ref(images.Volume)
					cfg.Linux.SecurityContext.ReadonlyRootfs = true
				})
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestPrivileged(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
		ctr := pod.Run("sleep 1000", security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }))
		if got := ctr.Exec("grep Seccomp: /proc/self/status; test -c /dev/kmsg && echo device; mount -t tmpfs none /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted"); got != "Seccomp:\t0\ndevice\nmounted\n" {
			t.Errorf("got %q", got)
		}
		plain := c.RunPod()
		_, err := plain.TryCreate(plain.ContainerConfig("true", security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true })))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a privileged container in a plain pod: %v; want InvalidArgument", err)
		}
	})
}

func TestDevices(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("sleep 1000", func(cfg *runtime.ContainerConfig) {
			cfg.Devices = []*runtime.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/mine", Permissions: "r"}}
		})
		if got := ctr.Exec("(: < /dev/mine) && echo read; (: > /dev/mine) 2>&1 | grep -c 'not permitted'"); got != "read\n1\n" {
			t.Errorf("got %q", got)
		}
	})
}

func TestBadContainersLeaveNothing(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	for name, edit := range map[string]func(*runtime.ContainerConfig){
		"linux.security_context.run_as_group":                     security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsGroup = &runtime.Int64Value{Value: 5} }),
		`linux.security_context.run_as_username: user "nonesuch"`: security(func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nonesuch" }),
		"add_capabilities: unknown capability \"NONESUCH\"": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NONESUCH"}}
		}),
		"log_path": func(cfg *runtime.ContainerConfig) { cfg.LogPath = "../../escape.log" },
		"/dev/nonesuch": func(cfg *runtime.ContainerConfig) {
			cfg.Devices = []*runtime.Device{{HostPath: "/dev/nonesuch", ContainerPath: "/dev/x", Permissions: "rwm"}}
		},
		`devices[0].container_path "/dev/console"`: func(cfg *runtime.ContainerConfig) {
			cfg.Devices = []*runtime.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/console"}}
		},
		"linux.resources.cpuset_cpus": func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{CpusetCpus: "4000"}
		},
		"container_path": func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: "/tmp", ContainerPath: "relative"}}
		},
		"metadata": func(cfg *runtime.ContainerConfig) { cfg.Metadata.Name = "" },
		"/no/such.json": security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}
		}),
		"nonesuch:latest": func(cfg *runtime.ContainerConfig) { cfg.Image.Image = "nonesuch:latest" },
	} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", edit))
		want := codes.InvalidArgument
		if name == "nonesuch:latest" {
			want = codes.NotFound
		}
		if status.Code(err) != want || !strings.Contains(err.Error(), name) {
			t.Errorf("want %s and %s, got %v", want, name, err)
		}
	}
	list, err := c.Runtime.ListContainers(c.Context(), nil)
	if err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

func TestALogThatCannotBeAFile(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	if err := os.MkdirAll(filepath.Join(pod.Config.LogDirectory, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(pod.Config.LogDirectory, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBait(t)
	for link, to := range map[string]string{"link": b.dir + "/secret", "dangling": b.dir + "/new"} {
		if err := os.Symlink(to, filepath.Join(pod.Config.LogDirectory, link)); err != nil {
			t.Fatal(err)
		}
	}
	defer b.untouched()
	for _, path := range []string{"dir", "file/0.log", "link", "dangling"} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", func(cfg *runtime.ContainerConfig) { cfg.LogPath = path }))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "log_path") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestAFailedStart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr, err := pod.TryCreate(pod.ContainerConfig("", func(cfg *runtime.ContainerConfig) { cfg.Command = []string{"/no/such/program"} }))
		if err != nil {
			if !strings.Contains(err.Error(), "/no/such/program") {
				t.Errorf("the error does not say what could not be run: %v", err)
			}
			return // this runtime looks at create
		}
		err = c.Runtime.StartContainer(c.Context(), ctr.ID)
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("the error does not say what could not be run: %v", err)
		}
		s := ctr.Wait()
		if s.ExitCode != 128 || s.Reason != "StartError" || !strings.Contains(s.Message, "/no/such/program") {
			t.Errorf("status %v", s)
		}
	})
}

func TestStop(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		polite := pod.Run("trap 'exit 5' TERM; while :; do sleep 0.05; done")
		stubborn := pod.Run("trap '' TERM; while :; do sleep 0.05; done")
		signalled := pod.Run("trap 'exit 6' USR1; while :; do sleep 0.05; done", func(cfg *runtime.ContainerConfig) {
			cfg.Image.Image = harness.Ref(images.Pausing)
		})
		for _, ctr := range []*harness.Container{polite, stubborn, signalled} {
			eventually(t, "the trap is set", func() bool {
				return strings.Contains(ctr.Exec("grep SigCgt /proc/1/status; grep SigIgn /proc/1/status"), "00")
			})
		}
		polite.Stop(30)
		if s := polite.Status(); s.ExitCode != 5 || s.State != runtime.ContainerState_CONTAINER_EXITED {
			t.Errorf("polite: %v", s)
		}
		signalled.Stop(30)
		if s := signalled.Status(); s.ExitCode != 6 {
			t.Errorf("with the image's stop signal: %v", s)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for _, grace := range []int64{600, 1, 600} {
			wg.Go(func() { stubborn.Stop(grace) })
		}
		wg.Wait()
		if s := stubborn.Status(); s.ExitCode != 137 || time.Since(began) > 30*time.Second {
			t.Errorf("stubborn: %v after %v; the shortest grace was 1 s", s, time.Since(began))
		}
		stubborn.Stop(0)
		created := pod.Create("sleep 1")
		created.Stop(0)
		if s := created.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED {
			t.Errorf("a created container, stopped: %v", s)
		}
		running := pod.Run("sleep 1000")
		running.Remove()
		if _, err := c.Runtime.ContainerStatus(c.Context(), running.ID, false); status.Code(err) != codes.NotFound {
			t.Errorf("a removed container: %v", err)
		}
	})
}

func TestOOM(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		limit := func(cfg *runtime.ContainerConfig) {
			cfg.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
		}
		victim := pod.Run("exec dd if=/dev/zero of=/dev/null bs=40M", limit)
		if s := victim.Wait(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
			t.Errorf("the victim: %v", s)
		}
		survivor := pod.Run("dd if=/dev/zero of=/dev/null bs=40M; exit 0", limit)
		if s := survivor.Wait(); s.ExitCode != 0 || s.Reason != "Completed" {
			t.Errorf("one whose child was the victim and that exits with 0: %v", s)
		}
		parent := pod.Run("dd if=/dev/zero of=/dev/null bs=40M; exit 3", limit)
		if s := parent.Wait(); s.ExitCode != 3 || s.Reason != "OOMKilled" {
			t.Errorf("one whose child was the victim and that fails of it: %v", s)
		}
		hardy := pod.Run("dd if=/dev/zero of=/dev/null bs=40M; echo on; sleep 1000", limit)
		// Its log tells: an exec would need the memory that there is not.
		eventually(t, "the container goes on", func() bool { return strings.Contains(hardy.Log(), " on\n") })
		hardy.Stop(0)
		if s := hardy.Status(); s.ExitCode != 137 || s.Reason != "Error" {
			t.Errorf("one whose child was the victim and that was stopped later: %v", s)
		}
	})
}

func TestExecSync(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("sleep 1000")
		exec := func(shell string, timeout int64) (*runtime.ExecSyncResponse, error) {
			return c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", shell}, Timeout: timeout})
		}
		resp, err := exec("echo out; echo err >&2; exit 9", 10)
		if err != nil || string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" || resp.ExitCode != 9 {
			t.Errorf("got %v, %v", resp, err)
		}
		_, err = exec("(setsid sleep 4321 &) ; sleep 4322", 1)
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("after the timeout: %v; want DeadlineExceeded", err)
		}
		if got := ctr.Exec("ps | grep '[s]leep 43' || true"); got != "" {
			t.Errorf("left of the timed-out exec: %q", got)
		}
		began := time.Now()
		resp, err = exec("sleep 20 & echo done", 15)
		if err != nil || string(resp.Stdout) != "done\n" || time.Since(began) > 5*time.Second {
			t.Errorf("a child that keeps the pipe: %v, %v after %v", resp, err, time.Since(began))
		}
		resp, err = exec("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2", 60)
		if err != nil || len(resp.Stdout) < 4<<20 || len(resp.Stderr) < 4<<20 || len(resp.Stdout)+len(resp.Stderr) > 16<<20-64<<10 {
			t.Errorf("40 MB of output: %d and %d bytes, %v", len(resp.GetStdout()), len(resp.GetStderr()), err)
		}
		ctr.Stop(0)
		if _, err := exec("true", 5); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("exec in a stopped container: %v; want FailedPrecondition", err)
		}
	})
}

func TestLogs(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("i=0; while [ ! -e /tmp/stop ]; do echo line $i; echo err $i >&2; i=$((i+1)); sleep 0.02; done; printf end")
	path := ctr.Status().LogPath
	if !filepath.IsAbs(path) || path != filepath.Join(pod.Config.LogDirectory, ctr.Config.LogPath) {
		t.Errorf("log path %q", path)
	}
	eventually(t, "the first lines", func() bool { return strings.Contains(ctr.Log(), "line 1") })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Runtime.ReopenContainerLog(c.Context(), ctr.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("no new log when ReopenContainerLog returned:", err)
	}
	c.Restart()
	ctr.Exec("touch /tmp/stop")
	ctr.Wait()
	old, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	whole := string(old) + ctr.Log()
	if strings.Count(whole, "\n") < 4 || !strings.Contains(whole, " stderr F err 0\n") || !strings.HasSuffix(whole, " stdout P end\n") {
		t.Errorf("log:\n%s", whole)
	}
	next := map[string]int{}
	for line := range strings.Lines(whole) {
		fields := strings.Fields(line)
		if len(fields) != 5 {
			continue // the last one
		}
		if want := next[fields[1]]; fields[4] != strconv.Itoa(want) {
			t.Fatalf("a gap in %s: %q, want number %d", fields[1], line, want)
		}
		next[fields[1]]++
	}
	if err := c.Runtime.ReopenContainerLog(c.Context(), ctr.ID); err == nil {
		t.Error("the log of a stopped container was reopened")
	}
}
