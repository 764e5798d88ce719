package integration

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// A host without security modules runs whatever does not insist on them.
func TestHostsWithoutModules(t *testing.T) {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.TrimSpace(string(on)) == "Y" {
		t.Skip("this host enforces AppArmor")
	}
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this host has SELinux")
	}
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		options := &runtime.SELinuxOption{Type: "container_t", Level: "s0:c1,c2"}
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.SelinuxOptions = options })
		apparmor := func(typ runtime.SecurityProfile_ProfileType, ref, old string) func(*runtime.ContainerConfig) {
			return security(func(s *runtime.LinuxContainerSecurityContext) {
				s.Apparmor, s.ApparmorProfile = &runtime.SecurityProfile{ProfileType: typ, LocalhostRef: ref}, old
				s.SelinuxOptions = options
			})
		}
		for name, edit := range map[string]func(*runtime.ContainerConfig){
			"default":        apparmor(runtime.SecurityProfile_RuntimeDefault, "", ""),
			"unconfined":     apparmor(runtime.SecurityProfile_Unconfined, "", ""),
			"new before old": apparmor(runtime.SecurityProfile_Unconfined, "", "localhost/mine"),
			"old default":    security(func(s *runtime.LinuxContainerSecurityContext) { s.ApparmorProfile = "runtime/default" }),
			"mount relabeled": func(cfg *runtime.ContainerConfig) {
				cfg.Mounts = []*runtime.Mount{{HostPath: t.TempDir(), ContainerPath: "/v", SelinuxRelabel: true}}
			},
		} {
			if got := pod.Output("echo fine", edit); got != "fine\n" {
				t.Errorf("%s: %q", name, got)
			}
		}
		for field, edit := range map[string]func(*runtime.ContainerConfig){
			"apparmor:":         apparmor(runtime.SecurityProfile_Localhost, "localhost/mine", ""),
			"apparmor_profile:": security(func(s *runtime.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/mine" }),
		} {
			_, err := pod.TryCreate(pod.ContainerConfig("true", edit))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "security_context."+field) || !strings.Contains(err.Error(), `"mine"`) {
				t.Errorf("%s: %v", field, err)
			}
		}
		_, err := pod.TryCreate(pod.ContainerConfig("true", security(func(s *runtime.LinuxContainerSecurityContext) { s.ApparmorProfile = "mine" })))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("neither default, unconfined nor localhost/: %v", err)
		}
	})
}
