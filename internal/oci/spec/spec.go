// Package spec turns what the CRI asks for, an image, a pod's environment and the facts of the host into an
// OCI runtime configuration. It is pure: it reads no file, runs nothing, and the same input gives the same
// output.
package spec

import (
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
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
	PIDNS        string // of the pause process; only where the pod shares its PID namespace
	Hostname     string
	HostnameFile string
	ResolvConf   string
	Hosts        string
	Shm          string // a tmpfs for /dev/shm; empty = the host's /dev/shm
	CgroupParent string // absolute within the hierarchy, or a slice for the systemd driver
}

// Mount is one volume, resolved: the source exists and is no symbolic link.
type Mount struct {
	*runtime.Mount        // as the CRI asked
	Source         string // host path after links were followed
}

// Volume is one VOLUME of the image, already filled with the image's content.
type Volume struct {
	Source      string // host directory
	Destination string // in the container
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
	Devices []specs.LinuxDevice // of the CRI request, looked up on the host (see Devices in the caller)
	Target  string              // /proc/PID/ns/pid of the target of namespace mode TARGET
	Cgroup  string              // cgroupsPath: the container's leaf
	Seccomp Seccomp
}

// User is the process's identity, resolved against the root filesystem's passwd and group files.
type User struct {
	UID, GID   uint32
	Additional []uint32
	Home       string // for HOME when the environment has none
}

// Seccomp is the profile to apply, read by the caller: nil Profile = unconfined.
type Seccomp struct {
	Profile *specs.LinuxSeccomp
}

// Edit changes a configuration after Build: CDI devices, hooks, NRI adjustments. Edits are applied in order.
type Edit func(*specs.Spec) error
