package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// eachCopy runs test for each runtime as a copy of the program, which an attack may overwrite.
func eachCopy(t *testing.T, test func(t *testing.T, c *harness.Crid, program string)) {
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			real, err := exec.LookPath(name)
			if err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(program, content, 0o755); err != nil {
				t.Fatal(err)
			}
			test(t, harness.Start(t, harness.Runtime(name), harness.Config(fmt.Sprintf("[runtimes.%s]\npath = %q", name, program))), program)
		})
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

// programs gets hold of what processes of a container run, as the container's own root could, until ctx ends. Then nobody
// runs them any more, and it tries to open them for writing. It answers what it saw beside the image's programs.
func programs(ctx context.Context, t *testing.T, proc string) map[string]bool {
	held := map[string]int{}
	for ctx.Err() == nil {
		links, err := filepath.Glob(proc + "/[0-9]*/exe")
		if err != nil {
			t.Error(err)
			break
		}
		for _, link := range links {
			name, err := os.Readlink(link)
			if _, known := held[name]; err != nil || known || strings.HasPrefix(name, "/bin/") {
				continue
			}
			if fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
				held[name] = fd
			}
		}
	}
	seen := map[string]bool{}
	for name, fd := range held {
		seen[name] = true
		w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			t.Errorf("the container could write to %q, which the runtime ran there", name)
			err = unix.Close(w)
		}
		t.Logf("writing to %q, which the runtime ran in the container: %v", name, err)
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	}
	return seen
}

// A container makes the runtime execute itself inside, by a command that is a script of /proc/self/exe, and overwrites
// the program that it finds there: that is the host's runtime, unless the runtime has replaced itself by a copy.
func TestCVE_2019_5736_RuntimesAreNotOverwritten(t *testing.T) {
	eachCopy(t, func(t *testing.T, c *harness.Crid, program string) {
		before := sum(t, program)
		ctr := c.RunPod().Run("sleep 1000")
		ctr.Exec(`printf '#!/proc/self/exe\n' > /bin/evil; chmod 755 /bin/evil`)
		ctx, stop := context.WithCancel(t.Context())
		var seen map[string]bool
		var watch sync.WaitGroup
		proc := fmt.Sprintf("/proc/%d/root/proc", ctr.PID())
		watch.Go(func() { seen = programs(ctx, t, proc) }) // ends with stop
		for range 10 {
			for _, cmd := range [][]string{{"/bin/evil"}, {"/proc/self/exe"}, {"true"}} {
				if resp, err := c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: cmd, Timeout: 5}); err == nil && resp.ExitCode == 0 && cmd[0] == "/bin/evil" {
					t.Error("the script of /proc/self/exe ran")
				}
			}
		}
		stop()
		watch.Wait()
		if len(seen) == 0 {
			t.Error("nobody saw the runtime in the container: this proves nothing")
		}
		if sum(t, program) != before {
			t.Error("the host's runtime has changed")
		}
	})
}

// A working directory is a descriptor that the runtime forgot to close: it leads to the host. So it would for a command
// that is run later, in a directory that the container has replaced by a link.
func TestCVE_2024_21626_WorkingDirectoriesOfTheHost(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		b := newBait(t)
		pod := c.RunPod()
		read := "cat ./" + b.up() + "/secret 2>&1; true"
		for fd := 3; fd < 10; fd++ {
			cfg := pod.ContainerConfig(read, func(cfg *runtime.ContainerConfig) { cfg.WorkingDir = fmt.Sprintf("/proc/self/fd/%d", fd) })
			if said := attempt(t, c, pod, cfg); strings.Contains(said, secret) {
				t.Fatalf("the working directory %s reads the host's file", cfg.WorkingDir)
			}
		}
		ctr := pod.Run("mkdir -p /work; sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.WorkingDir = "/work" })
		for fd := 3; fd < 10; fd++ {
			swap := fmt.Sprintf("cd /; rm -rf /work; ln -s /proc/self/fd/%d /work", fd)
			if _, err := c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", swap}, Timeout: 10}); err != nil && fd == 3 {
				t.Fatal(err)
			}
			resp, err := c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", read}, Timeout: 10})
			if err == nil && strings.Contains(string(resp.Stdout), secret) {
				t.Fatalf("a command in /proc/self/fd/%d reads the host's file", fd)
			}
			// Where commands find no directory, the container mends it for the next attempt.
			if f, err := os.Open(fmt.Sprintf("/proc/%d/root", ctr.PID())); err == nil {
				_ = unix.Unlinkat(int(f.Fd()), "work", 0)
				_ = unix.Mkdirat(int(f.Fd()), "work", 0o755)
				_ = f.Close()
			}
		}
		b.untouched()
	})
}

// Two containers share a volume. While one swaps a directory of it for a symbolic link, the other has something mounted
// below that directory.
func TestCVE_2021_30465_SwappedDestinations(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		b := newBait(t)
		shared, mounted := t.TempDir(), t.TempDir()
		for _, err := range []error{os.MkdirAll(shared+"/dir", 0o755), os.Symlink("/"+b.up(), shared+"/link")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		pod := c.RunPod()
		c.Pull(images.Busybox)
		ctx, stop := context.WithCancel(t.Context())
		var swapper sync.WaitGroup
		swapper.Go(func() { // ends with stop
			for ctx.Err() == nil {
				_ = unix.Renameat2(unix.AT_FDCWD, shared+"/dir", unix.AT_FDCWD, shared+"/link", unix.RENAME_EXCHANGE)
			}
		})
		for range 8 {
			said := attempt(t, c, pod, pod.ContainerConfig("cat "+b.dir+"/secret /shared/dir/secret /shared/link/secret 2>/dev/null; true",
				withMounts(&runtime.Mount{HostPath: shared, ContainerPath: "/shared"}, &runtime.Mount{HostPath: mounted, ContainerPath: "/shared/dir/mnt"})))
			if strings.Contains(said, secret) {
				t.Error("the container has the host's file")
			}
		}
		stop()
		swapper.Wait()
		b.mountedNothing()
	})
}

// mountedNothing fails the test if something was mounted in the bait. What an old runtime may have made there to mount
// upon, CVE-2024-45310, is an empty directory.
func (b bait) mountedNothing() {
	b.t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.t.Fatal(err)
	}
	if strings.Contains(string(raw), b.dir) {
		b.t.Error("something is mounted in the host's directory")
	}
	for _, name := range []string{"secret", "ptmx", "console"} {
		if content, err := os.ReadFile(filepath.Join(b.dir, name)); err != nil || string(content) != secret {
			b.t.Errorf("on the host, %s is now %q, %v", name, content, err)
		}
	}
}

// Containers of one image, made at the same time, get their own environment and nobody else's.
func TestCVE_2021_21334_EnvironmentsStayApart(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	c.Pull(images.Busybox)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() { // ends with the container
			mine := fmt.Sprintf("MINE_%d", i)
			ctr, err := pod.TryCreate(pod.ContainerConfig("env", func(cfg *runtime.ContainerConfig) {
				cfg.Envs = []*runtime.KeyValue{{Key: mine, Value: []byte("x")}, {Key: "WHO", Value: []byte(mine)}}
			}))
			if err == nil {
				err = c.Runtime.StartContainer(c.Context(), ctr.ID)
			}
			if err != nil {
				t.Error(err)
				return
			}
			eventually(t, "its end", func() bool { return ctr.Status().State == runtime.ContainerState_CONTAINER_EXITED })
			env := ctr.Text()
			if strings.Count(env, "MINE_") != 2 || !strings.Contains(env, "WHO="+mine+"\n") {
				t.Errorf("container %d has %s", i, env)
			}
		})
	}
	all.Wait()
}

// Leaving the primary group must not gain what is forbidden to that group: it is among the additional ones.
func TestCVE_2022_2995_PrimaryGroupsCannotBeLeft(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		forbidden := filepath.Join(dir, "forbidden")
		if err := os.WriteFile(forbidden, []byte(secret), 0o604); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.Chown(forbidden, 0, 5555), os.Chmod(forbidden, 0o604), os.Chmod(dir, 0o755)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		ctr := c.RunPod().Run("sleep 1000", withMounts(&runtime.Mount{HostPath: dir, ContainerPath: "/vol"}), security(func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtime.Int64Value{Value: 1001}, &runtime.Int64Value{Value: 5555}, []int64{6666}
		}))
		for _, pid := range []string{"1", "self"} {
			groups := ctr.Exec("grep Groups /proc/" + pid + "/status")
			if !strings.Contains(groups, "5555") || !strings.Contains(groups, "6666") {
				t.Errorf("process %s: %q", pid, groups)
			}
		}
		if got := ctr.Exec("cat /vol/forbidden 2>&1; true"); strings.Contains(got, secret) {
			t.Errorf("the group reads what it is forbidden: %q", got)
		}
	})
}

// A Localhost profile without a name is no profile, which must not mean that there is none.
func TestCVE_2023_2431_SeccompWithoutAName(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	for _, ref := range []string{"", " ", ".", "..", "/", "../../../../proc/self/environ"} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", security(func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
		})))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "seccomp") {
			t.Errorf("profile %q: %v; want InvalidArgument", ref, err)
		}
	}
}

// A volume takes the place of /dev, and has symbolic links to the kernel's files for the devices that a runtime binds over
// what it masks, and over the console: the container could write to what they lead to. It is not to be.
func TestCVE_2025_31133_MaskedByALink(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ref := c.Image(nil, images.Link("d", "dev"))
		pod := c.RunPod()
		for name, dest := range map[string]string{"dev": "/dev", "a link to dev": "/d", "a link in another volume": "/vol/d"} {
			for _, tty := range []bool{false, true} {
				dir, other := t.TempDir(), t.TempDir()
				for _, err := range []error{
					os.Symlink("/proc/sys/kernel/ostype", filepath.Join(dir, "null")), os.Symlink("/proc/sys/kernel/ostype", filepath.Join(dir, "console")),
					os.Symlink("../dev", filepath.Join(other, "d")), os.Mkdir(filepath.Join(dir, "pts"), 0o755),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
				said := attempt(t, c, pod, pod.ContainerConfig("echo begins; head -c 100 /proc/uptime; grep -E ' (/proc/uptime|/dev/console) ' /proc/self/mountinfo", fromImage(ref), func(cfg *runtime.ContainerConfig) {
					cfg.Tty = tty
					cfg.Mounts = []*runtime.Mount{{HostPath: other, ContainerPath: "/vol"}, {HostPath: dir, ContainerPath: dest}}
					cfg.Linux.SecurityContext.MaskedPaths = []string{"/proc/uptime", "/proc/timer_list", "/sys/firmware"}
				}))
				if strings.Contains(said, "begins") && (strings.Contains(said, "Linux") || strings.Contains(said, "ostype")) {
					t.Errorf("%s, terminal %v: what the link leads to is in the masked file's place: %q", name, tty, said)
				}
			}
		}
	})
}
