package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// needAppArmor skips t where the kernel does not enforce AppArmor, and loads profiles of the node's: one that forbids
// a file, and those of Debian that give runtimes a name, so that theirs are not the signals of nobody.
func needAppArmor(t *testing.T) {
	t.Helper()
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || strings.TrimSpace(string(on)) != "Y" {
		t.Skip("this host does not enforce AppArmor")
	}
	file := filepath.Join(t.TempDir(), "profile")
	put(t, file, "profile crid-test flags=(attach_disconnected,mediate_deleted) {\n network,\n capability,\n file,\n signal,\n deny /forbidden rw,\n}\n", 0o644)
	for _, profile := range []string{file, "/etc/apparmor.d/crun", "/etc/apparmor.d/runc"} {
		if out, err := exec.Command("apparmor_parser", "-r", profile).CombinedOutput(); err != nil {
			t.Fatalf("load %s: %v: %s", profile, err, out)
		}
	}
}

// What confines a container is what the kernel says of its processes, and what they cannot do: also of those that come
// later by exec, and after a restart of crid.
func TestAppArmor(t *testing.T) {
	needAppArmor(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := privilegedPod(c)
		// A kernel without AppArmor's own file has it in attr/current.
		const label = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current"
		const try = "echo yes >/forbidden; mkdir -p /m; mount -t tmpfs none /m && echo mounted; echo 0 >/proc/sys/kernel/printk_ratelimit && echo wrote; "
		confined := func(typ runtime.SecurityProfile_ProfileType, ref string, privileged bool) func(*runtime.ContainerConfig) {
			return security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Apparmor = &runtime.SecurityProfile{ProfileType: typ, LocalhostRef: ref}
				s.Privileged, s.Capabilities = privileged, &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			})
		}
		const none, byDefault, local = runtime.SecurityProfile_Unconfined, runtime.SecurityProfile_RuntimeDefault, runtime.SecurityProfile_Localhost
		for name, want := range map[string]struct {
			edit   func(*runtime.ContainerConfig)
			output string
		}{
			"default":            {confined(byDefault, "", false), "crid-default (enforce)"},
			"nothing asked":      {security(func(*runtime.LinuxContainerSecurityContext) {}), "crid-default (enforce)"},
			"the old field":      {security(func(s *runtime.LinuxContainerSecurityContext) { s.ApparmorProfile = "runtime/default" }), "crid-default (enforce)"},
			"unconfined":         {confined(none, "", false), "mounted"},
			"privileged":         {confined(byDefault, "", true), "mounted\nwrote"},
			"the node's":         {confined(local, "localhost/crid-test", false), "crid-test (enforce)"},
			"privileged, node's": {confined(local, "crid-test", true), "wrote\ncrid-test (enforce)"},
		} {
			ctr := pod.Run("sleep 1000", want.edit)
			got := ctr.Exec("exec 2>/dev/null; " + try + label + "; [ -e /forbidden ] && echo forbidden || true")
			allowed := !strings.Contains(want.output, "crid-test")
			if !strings.Contains(got, want.output+"\n") || strings.Contains(got, "forbidden\n") != allowed ||
				strings.Contains(got, "mounted") != strings.Contains(want.output, "mounted") {
				t.Errorf("%s: %q, want %q", name, got, want.output)
			}
			if own, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", ctr.PID())); err != nil ||
				strings.Contains(want.output, "enforce") != strings.Contains(string(own), "enforce") {
				t.Errorf("%s: its process is %q, %v", name, own, err)
			}
			ctr.Stop(5) // SIGTERM reaches a confined process
			if s := ctr.Status(); s.ExitCode != 143 && s.ExitCode != 137 {
				t.Errorf("%s: %v", name, s)
			}
		}
		_, err := pod.TryCreate(pod.ContainerConfig("true", confined(local, "localhost/nonesuch", false)))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "apparmor_parser") {
			t.Errorf("a profile that is not loaded: %v", err)
		}
		ctr := pod.Run("sleep 1000")
		c.Crash()
		if got := ctr.Exec(label); !strings.Contains(got, "crid-default (enforce)") {
			t.Errorf("after a restart: %q", got)
		}
	})
}

// Processes of a container that is to have no new privileges signal and look at each other, also where the runtime has a
// profile of its own, with which crun mixes the container's.
func TestAppArmorWithoutNewPrivileges(t *testing.T) {
	needAppArmor(t)
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("trap 'exit 7' TERM; sleep 1000 & wait", security(func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true }))
		got := ctr.Exec("cat /proc/self/attr/current; cat /proc/1/environ >/dev/null && echo looked; sleep 1000 & kill $! && echo sent; mount -t tmpfs none /tmp || echo refused")
		if !strings.HasPrefix(got, "crid-default") || !strings.HasSuffix(got, "looked\nsent\nrefused\n") {
			t.Errorf("got %q", got)
		}
		ctr.Stop(20)
		if s := ctr.Status(); s.ExitCode != 7 {
			t.Errorf("SIGTERM did not come to it: %v", s)
		}
	})
}

// An administrator unloads what crid has loaded: the next container gets it again.
func TestAnUnloadedDefaultProfile(t *testing.T) {
	needAppArmor(t)
	c := harness.Start(t)
	pod := c.RunPod()
	put(t, "/sys/kernel/security/apparmor/.remove", "crid-default", 0o200)
	if got := pod.Output("cat /proc/self/attr/current"); got != "crid-default (enforce)\n" {
		t.Errorf("confined by %q", got)
	}
}

// A pause is confined as the containers of its pod.
func TestAppArmorConfinesThePause(t *testing.T) {
	needAppArmor(t)
	c := harness.Start(t)
	pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	ctr := pod.Run("sleep 1000")
	// The pause has no new privileges, so that crun may have mixed the profile with its own.
	if got := ctr.Exec("cat /proc/1/attr/current"); !strings.HasPrefix(got, "crid-default (enforce)\n") && !strings.HasPrefix(got, "crid-default//&crun (mixed)\n") {
		t.Errorf("the pause is confined by %q", got)
	}
}
