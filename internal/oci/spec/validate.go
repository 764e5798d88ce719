package spec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// ValidateContainer refuses, naming the CRI field, what cannot become a container in the pod, before anything
// is done for it. What depends on host, handler or files of the image is left to Build and ResolveUser.
func ValidateContainer(c *runtime.ContainerConfig, pod *runtime.PodSandboxConfig) error {
	if c.GetMetadata().GetName() == "" {
		return fmt.Errorf("metadata.name is empty: %w", errdef.Invalid)
	}
	if c.GetImage().GetImage() == "" {
		return fmt.Errorf("image.image is empty: %w", errdef.Invalid)
	}
	if n := c.GetMetadata().GetName(); !oneWord(n) || strings.Contains(n, "/") {
		return fmt.Errorf("metadata.name %q: has a space or a slash: %w", n, errdef.Invalid)
	}
	if err := cmp.Or(validateText(c), validateLogPath(c.GetLogPath())); err != nil {
		return err
	}
	if err := validateProcess(c); err != nil {
		return err
	}
	for i, m := range c.GetMounts() {
		if err := cmp.Or(validateMount(m), validateMountUserns(m, pod)); err != nil {
			return fmt.Errorf("mounts[%d] (%s): %w", i, m.GetContainerPath(), err)
		}
	}
	if err := validateDevices(c); err != nil {
		return err
	}
	if err := ValidateResources("linux.resources", c.GetLinux().GetResources()); err != nil {
		return err
	}
	if c.GetStopSignal() != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		if _, err := parseSignal(criSignalName(c.GetStopSignal())); err != nil {
			return fmt.Errorf("stop_signal: %w", err)
		}
	}
	return validateContainerSecurity(securityContext(c), pod)
}

// validateLogPath keeps the log within the pod's log directory, and does not let it be that directory.
func validateLogPath(p string) error {
	if path.IsAbs(p) || climbs(p) || p == "." || p != "" && path.Clean(p) != p {
		return fmt.Errorf("log_path %q does not name a file below the pod's log_directory: %w", p, errdef.Invalid)
	}
	return nil
}

func validateProcess(c *runtime.ContainerConfig) error {
	if dir := c.GetWorkingDir(); dir != "" && !path.IsAbs(dir) {
		return fmt.Errorf("working_dir %q is not an absolute path: %w", dir, errdef.Invalid)
	}
	for i, kv := range c.GetEnvs() {
		if kv.GetKey() == "" || strings.Contains(kv.GetKey(), "=") {
			return fmt.Errorf("envs[%d].key %q: empty, or with \"=\": %w", i, kv.GetKey(), errdef.Invalid)
		}
		if slices.Contains(kv.GetValue(), 0) {
			return fmt.Errorf("envs[%d] (%s): NUL byte in the value: %w", i, kv.GetKey(), errdef.Invalid)
		}
	}
	return nil
}

func validateMount(m *runtime.Mount) error {
	switch {
	case !path.IsAbs(m.GetContainerPath()) || climbs(m.GetContainerPath()) || path.Clean(m.GetContainerPath()) == "/":
		return fmt.Errorf("container_path is not an absolute path below /: %w", errdef.Invalid)
	case m.GetImage().GetImage() == "" && !path.IsAbs(m.GetHostPath()):
		return fmt.Errorf("host_path %q is not an absolute path: %w", m.GetHostPath(), errdef.Invalid)
	case climbs(m.GetHostPath()):
		return fmt.Errorf("host_path %q has a component \"..\": %w", m.GetHostPath(), errdef.Invalid)
	case m.GetImage().GetImage() != "" && m.GetHostPath() != "":
		return fmt.Errorf("host_path and image exclude each other: %w", errdef.Invalid)
	case m.GetImage().GetImage() == "" && m.GetImageSubPath() != "":
		return fmt.Errorf("image_sub_path without image: %w", errdef.Invalid)
	case path.IsAbs(m.GetImageSubPath()) || climbs(m.GetImageSubPath()):
		return fmt.Errorf("image_sub_path %q leaves the image: %w: %w", m.GetImageSubPath(), errdef.Invalid, errdef.ImageVolume)
	case runtime.MountPropagation_name[int32(m.GetPropagation())] == "":
		return fmt.Errorf("propagation: unknown mode %v: %w", m.GetPropagation(), errdef.Invalid)
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return fmt.Errorf("recursive_read_only needs readonly: %w", errdef.Invalid)
	case m.GetRecursiveReadOnly() && m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return fmt.Errorf("recursive_read_only needs propagation PROPAGATION_PRIVATE: %w", errdef.Invalid)
	}
	for _, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return fmt.Errorf("mount_options %q: only noexec, nodev and nosuid are allowed: %w", o, errdef.Invalid)
		}
	}
	return nil
}

func validateDevices(c *runtime.ContainerConfig) error {
	for i, d := range c.GetDevices() {
		for _, p := range []struct{ field, path string }{{"host_path", d.GetHostPath()}, {"container_path", d.GetContainerPath()}} {
			if !path.IsAbs(p.path) || climbs(p.path) || strings.ContainsRune(p.path, 0) {
				return fmt.Errorf("devices[%d].%s %q is not an absolute path without \"..\": %w", i, p.field, p.path, errdef.Invalid)
			}
		}
		if inside := path.Clean(d.GetContainerPath()); inside == "/" || ownedByRuntime(inside) {
			return fmt.Errorf("devices[%d].container_path %q: the container has a node or directory of its own there: %w", i,
				d.GetContainerPath(), errdef.Invalid)
		}
		if strings.Trim(d.GetPermissions(), allAccess) != "" {
			return fmt.Errorf("devices[%d].permissions %q: only r, w and m are known: %w", i, d.GetPermissions(),
				errdef.Invalid)
		}
	}
	for i, d := range c.GetCDIDevices() {
		if d.GetName() == "" {
			return fmt.Errorf("CDI_devices[%d].name is empty: %w", i, errdef.Invalid)
		}
	}
	return nil
}

func validateContainerSecurity(sc *runtime.LinuxContainerSecurityContext, pod *runtime.PodSandboxConfig) error {
	if sc.GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return fmt.Errorf("linux.security_context.privileged: the pod is not privileged: %w", errdef.Invalid)
	}
	if err := validateUser(sc); err != nil {
		return err
	}
	// What the host lacks is Build's to say: here everything may be there.
	if _, err := capabilities(sc.GetCapabilities(), fact.Host{Capabilities: everyCapability}); err != nil {
		return err
	}
	for _, p := range slices.Concat(sc.GetMaskedPaths(), sc.GetReadonlyPaths()) {
		if !path.IsAbs(p) {
			return fmt.Errorf("linux.security_context: masked or read-only path %q is not absolute: %w", p, errdef.Invalid)
		}
	}
	return validateContainerNamespaces(sc.GetNamespaceOptions(), pod)
}

func validateContainerNamespaces(o *runtime.NamespaceOption, pod *runtime.PodSandboxConfig) error {
	if err := podLevel("network", o.GetNetwork()); err != nil {
		return err
	}
	if err := podLevel("ipc", o.GetIpc()); err != nil {
		return err
	}
	const field = "linux.security_context.namespace_options"
	if _, known := runtime.NamespaceMode_name[int32(o.GetPid())]; !known {
		return fmt.Errorf("%s.pid: unknown mode %v: %w", field, o.GetPid(), errdef.Invalid)
	}
	if o.GetPid() == runtime.NamespaceMode_TARGET && o.GetTargetId() == "" {
		return fmt.Errorf("%s.target_id is empty with pid mode TARGET: %w", field, errdef.Invalid)
	}
	return validateContainerUserns(o, pod)
}

// validateUser holds for the CRI alone: the image's User does not make up for a missing run_as_user.
func validateUser(sc *runtime.LinuxContainerSecurityContext) error {
	const field = "linux.security_context"
	hasUser := sc.GetRunAsUser() != nil || sc.GetRunAsUsername() != ""
	switch {
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return fmt.Errorf("%s: run_as_user and run_as_username exclude each other: %w", field, errdef.Invalid)
	case sc.GetRunAsGroup() != nil && !hasUser:
		return fmt.Errorf("%s.run_as_group needs run_as_user or run_as_username: %w", field, errdef.Invalid)
	}
	if v := sc.GetRunAsUser().GetValue(); v < 0 || v > maxID {
		return fmt.Errorf("%s.run_as_user: %d is not within 0 and %d: %w", field, v, maxID, errdef.Invalid)
	}
	if v := sc.GetRunAsGroup().GetValue(); v < 0 || v > maxID {
		return fmt.Errorf("%s.run_as_group: %d is not within 0 and %d: %w", field, v, maxID, errdef.Invalid)
	}
	for i, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > maxID {
			return fmt.Errorf("%s.supplemental_groups[%d]: %d is not within 0 and %d: %w", field, i, g, maxID, errdef.Invalid)
		}
	}
	if p := sc.GetSupplementalGroupsPolicy(); runtime.SupplementalGroupsPolicy_name[int32(p)] == "" {
		return fmt.Errorf("%s.supplemental_groups_policy: unknown policy %v: %w", field, p, errdef.Invalid)
	}
	return nil
}

// climbs tells whether a path has a component "..".
func climbs(p string) bool {
	return slices.Contains(strings.Split(p, "/"), "..")
}

// oneWord tells whether s can stand in a line of a file or in a list of arguments without ending it.
func oneWord(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
}
