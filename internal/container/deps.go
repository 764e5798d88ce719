package container

import (
	"context"
	"iter"
	"log/slog"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/step"
	"github.com/crid/crid/internal/storage"
)

// Deps is what containers are made with. All of it is needed.
type Deps struct {
	Handlers map[string]Handler // by name
	Monitors Monitors
	Rootfs   Rootfs
	Mapper   Mapper
	Images   Images
	Volumes  ImageMounts
	Cgroups  Cgroups
	Limits   Limits
	Records  Records
	Events   Events
	Host     fact.Host
	Steps    step.Watch // told of operations and their stages; nil = nobody
	Log      *slog.Logger
	Options  Options
	Additions
}

// Additions is what the host's administrator and vendors decide of containers, and no client.
type Additions struct {
	Devices  Devices
	Hooks    Hooks
	Security Security
}

// Options is what an operator may choose, and where things lie.
type Options struct {
	ImageVolumes string       // what becomes of an image's VOLUMEs: "bind", "mkdir" or "ignore"
	SeccompDir   string       // where relative names of Localhost profiles are looked up
	Roots        []string     // crid's own directories: a hostPath over one of them is mounted at most rslave
	PauseRoot    string       // directory with the pause program, the root filesystem of pauses
	Cgroups      cgroup.Names // what new containers' cgroups are called
}

// The values of Options.ImageVolumes.
const (
	VolumesBind   = "bind"   // a directory of the container's own, filled from the image
	VolumesMkdir  = "mkdir"  // a directory in the root filesystem
	VolumesIgnore = "ignore" // whatever the image has there
)

// Handler is a runtime handler that containers may ask for.
type Handler struct {
	Fact               fact.Handler
	Runtime            Runtime
	AllowedAnnotations []string // globs of the annotations that reach the runtime
}

// Runtime is an OCI runtime's binary.
type Runtime interface {
	Lifecycle
	Config() oci.Config
	Exec(ctx context.Context, id string, e oci.Exec) (oci.ExecResult, error)
	Stream(ctx context.Context, id string, e oci.Exec, s oci.Streams) (exitCode int, err error)
	Update(ctx context.Context, id string, res *specs.LinuxResources) error // nil fields stay; an error may leave half of it
}

// Lifecycle is the part of a Runtime that leads through a container's life.
type Lifecycle interface {
	Start(ctx context.Context, id string) error
	State(ctx context.Context, id string) (specs.State, error)
	Delete(ctx context.Context, id string, force bool) error // absent is fine
}

// Monitors starts and finds the processes that outlive crid: a monitor.Launcher, whose processes are interfaces.
type Monitors interface {
	Start(ctx context.Context, s monitor.Spec) (Process, monitor.Ref, error)
	Open(id string, ref monitor.Ref) (Process, error)
	Find(id string) (config []byte, about bool) // what it was created from, nil = gone; whether its monitor lives
	Remove(ctx context.Context, id string) error
	Disarm(id string) error
}

// Process is a container's main process, seen through its monitor.
type Process interface {
	Alive() bool
	Bundle() string
	Wait(ctx context.Context) (monitor.Exit, error)
	Signal(sig syscall.Signal) error // gone = nil
	Stdio
}

// Stdio is where a process reads from and writes to, which its monitor holds.
type Stdio interface {
	ReopenLog(ctx context.Context) error
	Attach(ctx context.Context, s monitor.Streams) error
}

// Rootfs makes root filesystems. Every method may be repeated.
type Rootfs interface {
	Mount(ctx context.Context, id, imageID string, owner storage.Owner) (path string, err error)
	Volume(ctx context.Context, id, dest string, owner storage.Owner) (hostDir string, err error)
	Unmount(id string) error // what it holds stays
	Remove(ctx context.Context, id string) error
	List() ([]string, error)
}

// Mapper shows files to a container in a user namespace as if they were the host's to it. What it made for an id goes
// with Rootfs.Remove too.
type Mapper interface {
	MapMount(ctx context.Context, id string, source *os.File, owner storage.Owner) (path string, err error)
	MapImage(ctx context.Context, id, imageID string, owner storage.Owner) (path string, err error) // read-only
	Unmap(id string) error                                                                          // containers that are created keep it
}

// Images keeps an image from being removed while a container is made with it, and knows whether one may be.
type Images interface {
	Permit(ctx context.Context, u storage.Use) error
	Hold(ctx context.Context, imageID string) (release func(), err error)
}

// ImageMounts mounts images for containers to have as volumes, each once. Every method may be repeated.
type ImageMounts interface {
	Mount(ctx context.Context, imageID string) (dir string, err error)
	Unmount(ctx context.Context, imageID string, used func() bool) error // not while it is used
	List() (imageIDs []string, err error)
}

// Cgroups reads and clears cgroups, all hierarchies at once.
type Cgroups interface {
	Pids(path string) ([]int, error)                       // absent = none
	Kill(ctx context.Context, path string) error           // until empty; the error names who survived
	Remove(ctx context.Context, path string) error         // Kill, then rmdir; absent is fine
	OOMKills(path string) (uint64, error)                  // of processes in it
	Find(ctx context.Context, id string) ([]string, error) // paths of a container's cgroups, its own first; slow
}

// Limits reads and writes what limits a cgroup.
type Limits interface {
	Limits(path string, more ...string) (cgroup.Limits, error) // more = files beside the usual ones
	SetLimits(path string, limits cgroup.Limits) error
	MemoryInUse(path string) (uint64, error) // bytes that no limit can take back without killing
	Places() (cpus, mems string, err error)  // of the host's cpuset
}

// Records keeps one record per container.
type Records interface {
	Put(id string, rec Record) error  // whole or not at all
	Keep(id string, rec Record) error // an error is no more than a warning: it is stored once the disk takes it
	Delete(id string) error
	All() iter.Seq2[state.Entry[Record], error]
}

// Devices knows the devices that vendors describe for the Container Device Interface.
type Devices interface {
	Inject(s *specs.Spec, names []string) error // Invalid, with its name, for one that is not described
}

// Hooks knows the programs that the host's administrator wants run along with containers.
type Hooks interface {
	Inject(s *specs.Spec, annotations map[string]string, bindMounts bool) error
}

// Security is the host's security modules. Without them it asks for nothing.
type Security interface {
	AppArmor(ctx context.Context, asked *runtime.SecurityProfile, deprecated string, privileged bool) (profile string, err error)
	SELinux(pod fact.Labels, sc *runtime.LinuxContainerSecurityContext) (fact.Labels, error)
	Relabel(path, label string) error            // crid's own file, or directory with all in it; no label = nothing is done
	RelabelOpen(at *os.File, label string) error // what is open, whatever its name means by now; Invalid for the host's own
}

// Events takes what happens to containers. It never blocks.
type Events interface {
	Publish(e event.Event)
}
