package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// gadget makes a device node that no runtime gives to containers by itself: /dev/fuse under another name.
func gadget(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// open tells, of a device, which ways of opening it the container is allowed.
const open = `open() { ( : < $1 ) 2>/dev/null && printf r; ( : > $1 ) 2>/dev/null && printf w; echo " $1"; }; `

func TestDeviceRules(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		for _, name := range []string{"one", "many/a", "many/below/b"} {
			gadget(t, filepath.Join(dir, name))
		}
		if err := os.Symlink("one", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, "file"), "", 0o644)
		ask := func(host, inside, permissions string) func(*runtime.ContainerConfig) {
			return func(cfg *runtime.ContainerConfig) {
				cfg.Devices = append(cfg.Devices, &runtime.Device{HostPath: filepath.Join(dir, host), ContainerPath: inside, Permissions: permissions})
			}
		}
		pod := c.RunPod()
		got := pod.Output(open+"for d in all read write link; do open /dev/$d; done; stat -c '%t:%T %a' /dev/all; mknod /tmp/x c 10 229 && open /tmp/x",
			ask("one", "/dev/all", "rwm"), ask("one", "/dev/read", "r"), ask("one", "/dev/write", "w"), ask("link", "/dev/link", "rwm"))
		if want := "rw /dev/all\nrw /dev/read\nrw /dev/write\nrw /dev/link\na:e5 600\nrw /tmp/x\n"; got != want {
			t.Errorf("one device under several names, whose rules add up:\n%s\nwant\n%s", got, want)
		}
		for permissions, want := range map[string]string{"r": "r /dev/x\n", "w": "w /dev/x\n", "rw": "rw /dev/x\n", "m": " /dev/x\n", "": "rw /dev/x\n"} {
			if got := pod.Output(open+"open /dev/x", ask("one", "/dev/x", permissions)); got != want {
				t.Errorf("permissions %q: %q", permissions, got)
			}
		}
		if got, want := pod.Output(open+"mknod /tmp/x c 10 229; open /tmp/x"), " /tmp/x\n"; got != want {
			t.Errorf("a device that was not asked for: %q", got)
		}
		if got, want := pod.Output(open+"open /dev/d/a; open /dev/d/below/b", ask("many", "/dev/d", "r")), "r /dev/d/a\nr /dev/d/below/b\n"; got != want {
			t.Errorf("a directory: %q", got)
		}
		for name, want := range map[string]string{"none": "devices[0]", "file": "no device"} {
			_, err := pod.TryCreate(pod.ContainerConfig("true", ask(name, "/dev/x", "r")))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestPrivilegedDevices(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
		privileged := security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true })
		got := pod.Output(open+"open /dev/fuse; mknod /tmp/x c 10 229; open /tmp/x; ls /dev/loop-control; test -e /dev/kmsg && echo kmsg; touch /sys/kernel/x 2>&1 | grep -c Read-only", privileged)
		if want := "rw /dev/fuse\nrw /tmp/x\n/dev/loop-control\nkmsg\n0\n"; got != want {
			t.Errorf("a privileged container: %q, want %q", got, want)
		}
		got = pod.Output(open + "ls /dev/fuse 2>/dev/null; mknod /tmp/x c 10 229; open /tmp/x")
		if want := " /tmp/x\n"; got != want {
			t.Errorf("one that is not, in the same pod: %q, want %q", got, want)
		}
		plain := c.RunPod()
		_, err := plain.TryCreate(plain.ContainerConfig("true", privileged))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "privileged") {
			t.Errorf("a privileged container in a pod that is not: %v", err)
		}
	})
}

func TestCDI(t *testing.T) {
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) { testCDI(t, name) })
	}
}

func testCDI(t *testing.T, handler string) {
	dir := t.TempDir()
	specs, tool, node := filepath.Join(dir, "run", "cdi"), filepath.Join(dir, "tool"), filepath.Join(dir, "node")
	c := harness.Start(t, harness.Runtime(handler), harness.Config(fmt.Sprintf("cdi_spec_dirs = [%q, %q]", filepath.Join(dir, "etc"), specs)))
	gadget(t, node)
	put(t, tool, "of the vendor\n", 0o644)
	use := func(names ...string) func(*runtime.ContainerConfig) {
		return func(cfg *runtime.ContainerConfig) {
			for _, n := range names {
				cfg.CDIDevices = append(cfg.CDIDevices, &runtime.CDIDevice{Name: n})
			}
		}
	}
	pod := c.RunPod()
	_, err := pod.TryCreate(pod.ContainerConfig("true", use("example.com/gadget=one")))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "example.com/gadget=one") {
		t.Errorf("a device that nobody describes: %v", err)
	}
	// The directory did not exist when crid started.
	put(t, filepath.Join(specs, "vendor.json"), fmt.Sprintf(`{"cdiVersion": "0.7.0", "kind": "example.com/gadget",
		"containerEdits": {"env": ["GADGETS=here"], "mounts": [{"hostPath": %q, "containerPath": "/opt/tool", "options": ["ro", "bind"]}]},
		"devices": [
			{"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/gadget", "hostPath": %q, "permissions": "r"}], "env": ["ONE=1"]}},
			{"name": "group", "containerEdits": {"additionalGids": [4711]}}]}`, tool, node), 0o644)
	script := open + "echo $GADGETS $ONE; cat /opt/tool; open /dev/gadget; id -G"
	member := pod.Create("true", use("example.com/gadget=group"))
	if got := member.Status().GetUser().GetLinux().GetSupplementalGroups(); !slices.Equal(got, []int64{0, 4711}) {
		t.Errorf("groups as told: %v", got)
	}
	if got, want := pod.Output(script, use("example.com/gadget=one", "example.com/gadget=group")), "here 1\nof the vendor\nr /dev/gadget\n0 4711\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	_, err = pod.TryCreate(pod.ContainerConfig("true", use("example.com/gadget=one", "example.com/gadget=two")))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "gadget=two") || strings.Contains(err.Error(), "gadget=one") {
		t.Errorf("one of two devices: %v", err)
	}
}

// recorder is a hook's program: it keeps the container's state as the runtime tells it.
const recorder = "#!/bin/sh\ncat > $DIR/$1\n"

// takeAll removes the files of a directory and returns their names.
func takeAll(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Join(names, " ")
}

func TestHooks(t *testing.T) {
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) { testHooks(t, name) })
	}
}

func testHooks(t *testing.T, handler string) {
	dir := t.TempDir()
	said, program := filepath.Join(dir, "said"), filepath.Join(dir, "hook")
	usr, etc := filepath.Join(dir, "usr"), filepath.Join(dir, "etc")
	if err := os.Mkdir(said, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, program, recorder, 0o755)
	file := func(when string, stages ...string) string {
		return fmt.Sprintf(`{"version": "1.0.0", "when": %s, "stages": ["%s"],
			"hook": {"path": %q, "args": ["hook", %q], "env": ["DIR=%s", "PATH=/usr/bin:/bin"], "timeout": 10}}`,
			when, strings.Join(stages, `", "`), program, stages[0], said)
	}
	put(t, filepath.Join(usr, "10-run.json"), file(`{"annotations": {"^example\\.com/trace$": "^on$"}}`, "createRuntime"), 0o644)
	put(t, filepath.Join(usr, "20-start.json"), file(`{"commands": ["sh$"], "always": true}`, "createContainer"), 0o644)
	put(t, filepath.Join(usr, "30-stop.json"), file(`{"hasBindMounts": true}`, "poststop"), 0o644)
	c := harness.Start(t, harness.Runtime(handler), harness.Config(fmt.Sprintf("hooks_dirs = [%q, %q]", usr, etc)))
	ran := func() string { return takeAll(t, said) }
	pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Annotations["example.com/trace"] = "on" })
	volume := func(cfg *runtime.ContainerConfig) {
		cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/vol"}}
	}
	ctr := pod.Create("true", volume)
	if got := ran(); got != "createContainer createRuntime" {
		t.Errorf("at create: %q", got)
	}
	ctr.Start()
	ctr.Wait()
	ctr.Remove()
	if got := ran(); got != "poststop" {
		t.Errorf("from start to removal: %q", got)
	}
	put(t, filepath.Join(etc, "10-run.json"), file(`{"always": false}`, "createRuntime"), 0o644)
	pod.Create("true").Remove()
	if got := ran(); got != "createContainer" {
		t.Errorf("without mounts, one file replaced: %q", got)
	}
	put(t, filepath.Join(etc, "40-bad.json"), `{"version": "1.0.0", "hooks": {}}`, 0o644)
	_, err := pod.TryCreate(pod.ContainerConfig("true"))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), filepath.Join(etc, "40-bad.json")) {
		t.Errorf("a file with a fault: %v", err)
	}
	put(t, program, "#!/bin/sh\nexit 3\n", 0o755)
	put(t, filepath.Join(etc, "40-bad.json"), file(`{"always": true}`, "createRuntime"), 0o644)
	if _, err := pod.TryCreate(pod.ContainerConfig("true")); err == nil {
		t.Error("a container whose hook fails was created")
	}
}
