package integration

import (
	"fmt"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// rawBytes is what no JSON can carry: all bytes that are not ASCII, in no order that makes UTF-8 of them.
func rawBytes() []byte {
	raw := []byte("a=\xff\xfe\n\xc3")
	for b := 255; b >= 128; b-- {
		raw = append(raw, byte(b))
	}
	return raw
}

// rawEnv gives a container variables of bytes, among others.
func rawEnv(cfg *runtime.ContainerConfig) {
	cfg.Envs = append(cfg.Envs, &runtime.KeyValue{Key: "BEFORE", Value: []byte("\u20ac")},
		&runtime.KeyValue{Key: "RAW", Value: rawBytes()}, &runtime.KeyValue{Key: "HOME", Value: []byte("/\xff")},
		&runtime.KeyValue{Key: "AFTER", Value: []byte("b c")})
}

// environ is a process's environment of a container, through a shell that lets no byte be lost.
func environ(t *testing.T, ctr *harness.Container, pid string) map[string]string {
	t.Helper()
	hex := ctr.Exec("od -An -v -tx1 /proc/" + pid + "/environ | tr -d ' \\n'")
	raw := make([]byte, len(hex)/2)
	if _, err := fmt.Sscanf(hex, "%x", &raw); err != nil {
		t.Fatalf("%q: %v", hex, err)
	}
	env := map[string]string{}
	for _, assignment := range strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00") {
		name, value, _ := strings.Cut(assignment, "=")
		if _, twice := env[name]; twice {
			t.Errorf("%s stands twice in the environment of %s", name, pid)
		}
		env[name] = value
	}
	return env
}

func wantRawEnv(t *testing.T, ctr *harness.Container, pid string) {
	t.Helper()
	env := environ(t, ctr, pid)
	for name, want := range map[string]string{"BEFORE": "\u20ac", "RAW": string(rawBytes()), "HOME": "/\xff", "AFTER": "b c", "HOSTNAME": "podhost"} {
		if env[name] != want {
			t.Errorf("process %s has %s=%q, want %q", pid, name, env[name], want)
		}
	}
	if env["PATH"] == "" {
		t.Errorf("process %s has no PATH", pid)
	}
}

func TestEnvironmentOfAnyBytes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, v := range []struct {
			name string
			edit func(*runtime.ContainerConfig)
		}{
			{"found in the PATH", func(cfg *runtime.ContainerConfig) { cfg.Command = []string{"sleep", "1000"} }},
			{"absolute", func(cfg *runtime.ContainerConfig) { cfg.Command = []string{"/bin/sleep", "1000"} }},
			{"relative", func(cfg *runtime.ContainerConfig) {
				cfg.Command, cfg.WorkingDir = []string{"./bin/sleep", "1000"}, "/"
			}},
			{"locked up", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.NoNewPrivs, s.ReadonlyRootfs = true, true
				s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 1001}
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
			})},
			{"root without capabilities", security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
			})},
			{"a terminal", func(cfg *runtime.ContainerConfig) { cfg.Tty = true }},
		} {
			t.Run(v.name, func(t *testing.T) {
				ctr := pod.Run("exec sleep 1000", rawEnv, v.edit)
				for _, pid := range []string{"1", "self"} {
					wantRawEnv(t, ctr, pid)
				}
				if got := ctr.Exec(`tr '\0' ' ' < /proc/1/cmdline`); !strings.HasSuffix(got, "sleep 1000 ") || strings.Contains(got, "crid") {
					t.Errorf("the main process is %q", got)
				}
				ctr.Remove()
			})
		}
	})
}

func TestEnvironmentOfAnyBytesAfterARestart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("exec sleep 1000", rawEnv)
		c.Restart()
		wantRawEnv(t, ctr, "1")
		wantRawEnv(t, ctr, "self")
	})
}

// A launcher holds a part of the environment, which is no other user's to see.
func TestALauncherIsItsUsersOnly(t *testing.T) {
	c := harness.Start(t)
	ctr := c.RunPod().Run("sleep 1000", rawEnv, security(func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtime.Int64Value{Value: 1000}
	}))
	if got := ctr.Exec("stat -c '%a %u' /.crid-launch"); got != "500 1000\n" {
		t.Errorf("mode and owner: %q", got)
	}
	if got := ctr.Exec("rm -f /.crid-launch 2>&1; ls /.crid-launch"); !strings.HasSuffix(got, "/.crid-launch\n") {
		t.Errorf("the user can remove it: %q", got)
	}
	if got := c.RunPod().Output("ls -A /"); strings.Contains(got, "crid") {
		t.Errorf("a container that needs no launcher has one: %q", got)
	}
}

func TestMissingCommandsWithALauncher(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		dir := t.TempDir()
		for _, command := range []string{"nonesuch", "/no/such/program", "./no/such"} {
			_, err := pod.TryCreate(pod.ContainerConfig("", rawEnv, func(cfg *runtime.ContainerConfig) { cfg.Command = []string{command} }))
			if err == nil || !strings.Contains(err.Error(), command) {
				t.Errorf("the error does not say what could not be run: %v", err)
			}
		}
		ctr := pod.Run("", rawEnv, func(cfg *runtime.ContainerConfig) {
			cfg.Command = []string{"/vol/program"}
			cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/vol"}}
		})
		if s := ctr.Wait(); s.ExitCode != 127 || ctr.Text() != "crid: exec /vol/program: not found\n" {
			t.Errorf("%v, it says %q", s, ctr.Text())
		}
		ctr = pod.Run("sleep 1000", rawEnv, func(cfg *runtime.ContainerConfig) {
			cfg.Mounts = []*runtime.Mount{{HostPath: dir, ContainerPath: "/vol"}}
		})
		for command, want := range map[string]string{"nonesuch": "not found", "/vol/x": "not found", "/vol": "permission denied"} {
			resp, err := c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{command}, Timeout: 10})
			if err != nil || string(resp.Stderr) != "crid: exec "+command+": "+want+"\n" || resp.ExitCode < 126 {
				t.Errorf("exec of %s: %v, %v", command, resp, err)
			}
		}
	})
}
