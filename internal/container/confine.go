package container

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/oci/spec"
)

// modules is what the host's security modules hold a container of the pod to.
func (m *Manager) modules(ctx context.Context, pod spec.PodEnv, sc *runtime.LinuxContainerSecurityContext) (spec.Confinement, error) {
	profile, err := m.deps.Security.AppArmor(ctx, sc.GetApparmor(), sc.GetApparmorProfile(), sc.GetPrivileged())
	if err != nil {
		return spec.Confinement{}, err
	}
	labels, err := m.deps.Security.SELinux(pod.SELinux, sc)
	return spec.Confinement{AppArmor: profile, SELinux: labels}, err
}

// confinePause takes the pod's own security context for a container's. The pod's SELinux options are in its labels.
func (m *Manager) confinePause(ctx context.Context, pod spec.PodEnv) (spec.Confinement, error) {
	sc := pod.Config.GetLinux().GetSecurityContext()
	confinement, err := m.modules(ctx, pod, &runtime.LinuxContainerSecurityContext{
		Privileged:       sc.GetPrivileged(),
		NamespaceOptions: sc.GetNamespaceOptions(),
		SelinuxOptions:   sc.GetSelinuxOptions(),
		Apparmor:         sc.GetApparmor(),
	})
	if err == nil && !sc.GetPrivileged() {
		confinement.Seccomp, err = m.seccomp(sc.GetSeccomp(), nil)
	}
	return confinement, err
}

// filter sets the seccomp profile, which depends on the capabilities that Build has worked out.
func (c *Container) filter(s *specs.Spec) error {
	sc := c.config.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() {
		return nil
	}
	profile, err := c.m.seccomp(sc.GetSeccomp(), s.Process.Capabilities.Bounding)
	if err != nil {
		return err
	}
	s.Linux.Seccomp = profile
	return nil
}

// relabel lets the container in to what it mounts: the pod's files, which all its containers share, the image's
// volumes, and those mounts of which the request says so: these as they are held open, for whoever may write beside them
// can put another directory of the host in their place. A process that SELinux does not confine needs none of that,
// and relabelling would shut others out.
func (c *Container) relabel(_ context.Context, in *spec.Input) error {
	labels := in.SELinux
	if labels.Mount == "" {
		return nil
	}
	for _, path := range []string{in.Pod.HostnameFile, in.Pod.Hosts, in.Pod.ResolvConf, in.Pod.Shm} {
		if path == "" {
			continue
		}
		if err := c.m.deps.Security.Relabel(path, in.Pod.SELinux.Mount); err != nil {
			return err
		}
	}
	for _, v := range in.Volumes {
		if err := c.m.deps.Security.Relabel(v.Source, labels.Mount); err != nil {
			return err
		}
	}
	if labels.Process == "" || strings.Contains(labels.Process, ":spc_t:") {
		return nil
	}
	for _, src := range c.creation.sources { // an image is none: it is not written, not even by crid
		if !src.relabel {
			continue
		}
		if err := c.m.deps.Security.RelabelOpen(src.at, labels.Mount); err != nil {
			return fmt.Errorf("%s: selinux_relabel: %w", src.field, err)
		}
	}
	return nil
}
