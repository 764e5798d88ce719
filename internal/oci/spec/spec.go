// Package spec turns what the CRI asks for, an image, a pod's environment and the facts of the host into an
// OCI runtime configuration. It is pure: it reads no file, runs nothing, and the same input gives the same
// output.
package spec

import (
	"fmt"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/fact"
)

// PodEnv is what a container takes from its pod. Paths are the host's; an empty path means that the pod has
// no such thing of its own (for a namespace: the host's).
type PodEnv struct {
	ID           string
	Config       *runtime.PodSandboxConfig // read-only
	Handler      string                    // the runtime handler's name, resolved: never ""
	NetNS        string
	IPCNS        string
	UTSNS        string
	UserNS       string // its mappings are UserMap of Config
	PIDNS        string // of the pause process; only where the pod shares its PID namespace
	Hostname     string
	HostnameFile string
	ResolvConf   string
	Hosts        string
	Shm          string // a tmpfs for /dev/shm; empty = the host's /dev/shm
	SELinux      fact.Labels
	CgroupParent string // absolute within the hierarchy
}

// Mount is one volume, resolved: the source exists and is no symbolic link.
type Mount struct {
	*runtime.Mount        // as the CRI asked
	Source         string // host path after links were followed

	// Holds are those of Unasked that lie within this mount, which is BIDIRECTIONAL: mounted there, they would be
	// mounted on the host as well.
	Holds []string

	// Flags and Below are looked up for pods with a user namespace alone.
	Flags []string   // those of ro, nosuid, nodev and noexec that the source's mount has: they cannot be taken away
	Below []Submount // where the handler has FlatBinds
}

// Submount is what is mounted below a bind source.
type Submount struct {
	Path  string // relative to the source and to the container's path
	Flags []string
}

// Volume is one VOLUME of the image, already filled with the image's content.
type Volume struct {
	Source      string // host directory
	Destination string // in the container
}

// Device is one device node of the host as the container gets it.
type Device struct {
	specs.LinuxDevice        // Path is the container's
	Access            string // what the device cgroup allows: of r, w, m; empty = "rwm"
}

// Input is everything that a container's configuration depends on.
type Input struct {
	ID      string
	Config  *runtime.ContainerConfig // read-only
	Image   imgspec.ImageConfig
	Pod     PodEnv
	Host    fact.Host
	Handler fact.Handler
	Rootfs  string // host path of the mounted root filesystem
	User    User
	Mounts  []Mount
	Volumes []Volume
	Devices []Device // of the CRI request, looked up on the host; all of the host's for a privileged container
	Target  string   // /proc/PID/ns/pid of the target of namespace mode TARGET
	Cgroup  string   // cgroupsPath: the container's leaf, or "slice:prefix:name" of a scope of systemd
	Confinement

	// AllowedAnnotations are the handler's globs (path.Match): annotations of the pod and the container that
	// match one reach the OCI runtime, no others do.
	AllowedAnnotations []string
}

// User is the process's identity, resolved against the root filesystem's passwd and group files.
type User struct {
	UID, GID   uint32
	Additional []uint32 // sorted, and the primary group is among them
	Home       string   // for HOME when the environment has none
}

// Confinement is what the kernel's security modules and filters hold the process to, looked up by the caller. Zero
// values are no confinement.
type Confinement struct {
	Seccomp  *specs.LinuxSeccomp
	AppArmor string // name of a profile that is loaded
	SELinux  fact.Labels
}

// apply writes the confinement into a configuration.
func (c Confinement) apply(s *specs.Spec) {
	s.Linux.Seccomp = c.Seccomp
	s.Process.ApparmorProfile = c.AppArmor
	s.Process.SelinuxLabel = c.SELinux.Process
	s.Linux.MountLabel = c.SELinux.Mount
}

// Edit changes a configuration after Build: CDI devices, hooks, NRI adjustments. Edits are applied in order.
type Edit func(*specs.Spec) error

// Build makes the configuration of one container. The config must have passed ValidateContainer. Errors are
// of kind Invalid and name the CRI field, or Unsupported where host or handler cannot do what is asked.
func Build(in Input, edits ...Edit) (*specs.Spec, error) {
	s, err := base(in)
	if err != nil {
		return nil, err
	}
	sc := securityContext(in.Config)
	s.Root.Readonly = sc.GetReadonlyRootfs()
	steps := []func(*specs.Spec, Input) error{
		setProcess, setCapabilities, setNamespaces, setUserns, setMounts, setPaths, setDevices, setResources, setAnnotations,
	}
	for _, step := range steps {
		if err := step(s, in); err != nil {
			return nil, err
		}
	}
	in.Confinement.apply(s)
	if sc.GetPrivileged() {
		s.Linux.Seccomp = nil
	}
	for _, edit := range edits {
		if err := edit(s); err != nil {
			return nil, fmt.Errorf("edit configuration of container %s: %w", in.ID, err)
		}
	}
	return s, nil
}

// base is the generator's default configuration without what it sets for standalone use: a host name, a
// limit on open files, capabilities, mounts and a seccomp profile of its own.
func base(in Input) (*specs.Spec, error) {
	g, err := generate.New("linux")
	if err != nil {
		return nil, fmt.Errorf("make the default configuration: %w", err)
	}
	g.SetVersion(specVersion(in.Handler))
	g.RemoveHostname()
	g.SetRootPath(in.Rootfs)
	g.ClearProcessRlimits()
	g.ClearProcessEnv()
	g.ClearProcessCapabilities()
	g.ClearMounts()
	g.ClearLinuxNamespaces()
	g.SetLinuxCgroupsPath(in.Cgroup)
	g.Config.Linux.Seccomp = nil
	return g.Config, nil
}

// securityContext answers an empty context where the config has none.
func securityContext(c *runtime.ContainerConfig) *runtime.LinuxContainerSecurityContext {
	return c.GetLinux().GetSecurityContext()
}
