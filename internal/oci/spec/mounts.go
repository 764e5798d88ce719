package spec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// setMounts puts together what every container has, the pod's files, the image's volumes and the CRI's
// mounts. A CRI mount takes the place of anything else at its destination; one over a standard mount (/dev,
// /sys) brings its own submounts, and one that is shared with the host keeps what the host has in it. Shallow destinations come first, so that no mount hides another.
func setMounts(s *specs.Spec, in Input) error {
	var asked, parts []specs.Mount // parts are of what is asked
	for i, m := range in.Mounts {
		if m.GetRecursiveReadOnly() && !in.Handler.RecursiveReadOnly {
			return fmt.Errorf("mounts[%d] (%s): recursive_read_only needs kernel 5.12 and a runtime "+
				"that knows it, which handler %q has not: %w", i, m.GetContainerPath(), in.Handler.Name, errdef.RecursiveReadOnly)
		}
		bind, err := bindMount(m, in)
		if err != nil {
			return fmt.Errorf("mounts[%d] (%s): %w", i, m.GetContainerPath(), err)
		}
		asked = append(asked, bind)
		parts = append(parts, submounts(m, in)...)
		s.Linux.RootfsPropagation = widest(s.Linux.RootfsPropagation, m.propagation())
	}
	below := func(m specs.Mount) bool {
		return slices.ContainsFunc(asked, func(a specs.Mount) bool { return within(m.Destination, a.Destination) })
	}
	instead := func(m specs.Mount) bool {
		return in.held(m.Destination) || slices.ContainsFunc(asked, func(a specs.Mount) bool { return a.Destination == m.Destination })
	}
	standard := standardMounts(securityContext(in.Config).GetPrivileged(), mapped(UserMap(in.Pod.Config).GIDs, ttyGroup))
	ours := in.ours()
	s.Mounts = slices.Concat(slices.DeleteFunc(standard, below), slices.DeleteFunc(ours, instead), parts, asked)
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return nil
}

// ours are the mounts that no request asks for, but those of the kernel's filesystems.
func (in Input) ours() []specs.Mount {
	return slices.Concat(podMounts(in.Pod, securityContext(in.Config).GetReadonlyRootfs()), volumeMounts(in.Volumes))
}

// Unasked are the places in the container that get a mount without the request's Mounts: the pod's files, the image's
// volumes, masked and read-only paths.
func Unasked(in Input) []string {
	var all []string
	for _, m := range in.ours() {
		all = append(all, m.Destination)
	}
	masked, readonly := hiddenPaths(securityContext(in.Config))
	return slices.Concat(all, masked, readonly)
}

// held tells whether the place lies within a mount that is shared with the host.
func (in Input) held(place string) bool {
	return slices.ContainsFunc(in.Mounts, func(m Mount) bool { return slices.Contains(m.Holds, place) })
}

// ttyGroup is the group of terminals in Linux distributions.
const ttyGroup = 5

func standardMounts(privileged, tty bool) []specs.Mount {
	access := "ro"
	if privileged {
		access = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if tty {
		pts = append(pts, fmt.Sprintf("gid=%d", ttyGroup))
	}
	return []specs.Mount{
		procMount(),
		devMount(),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

func procMount() specs.Mount {
	return specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
}

func devMount() specs.Mount {
	return specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
		Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}}
}

// podMounts are the pod's files and its shared memory. The files follow the root filesystem's access; shared
// memory is writable always.
func podMounts(pod PodEnv, readonly bool) []specs.Mount {
	access := "rw"
	if readonly {
		access = "ro"
	}
	shm := cmp.Or(pod.Shm, "/dev/shm")
	mounts := []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: shm,
		Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}}
	for _, f := range []struct{ destination, source string }{
		{"/etc/hostname", pod.HostnameFile},
		{"/etc/hosts", pod.Hosts},
		{"/etc/resolv.conf", pod.ResolvConf},
	} {
		if f.source != "" {
			mounts = append(mounts, specs.Mount{Destination: f.destination, Type: "bind", Source: f.source,
				Options: []string{"bind", "rprivate", "nosuid", "noexec", "nodev", access}})
		}
	}
	return mounts
}

// volumeMounts leaves out an image's volumes in the kernel's filesystems: there they would hide what masked
// and read-only paths protect.
func volumeMounts(volumes []Volume) []specs.Mount {
	var mounts []specs.Mount
	for _, v := range volumes {
		dest := path.Join("/", v.Destination)
		if dest == "/" || within(dest, "/proc") || within(dest, "/sys") || within(dest, "/dev") {
			continue
		}
		mounts = append(mounts, specs.Mount{Destination: dest, Type: "bind", Source: v.Source,
			Options: []string{"rbind", "rprivate", "rw"}})
	}
	return mounts
}

// propagation is what the CRI asks for. An image is always private: nobody mounts in it.
func (m Mount) propagation() runtime.MountPropagation {
	if m.GetImage().GetImage() != "" {
		return runtime.MountPropagation_PROPAGATION_PRIVATE
	}
	return m.GetPropagation()
}

// Shared tells whether what is mounted in it appears on the host.
func (m Mount) Shared() bool {
	return m.propagation() == runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
}

// bindMount is one mount of the CRI. "ro" holds for the mount itself only, "rro" for all that is mounted
// below it as well.
func bindMount(m Mount, in Input) (specs.Mount, error) {
	options := []string{"rbind"}
	if in.flatBinds() {
		options = []string{"bind"}
	}
	switch p := m.propagation(); p {
	case runtime.MountPropagation_PROPAGATION_PRIVATE:
		options = append(options, "rprivate")
	case runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
	case runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
	default:
		return specs.Mount{}, fmt.Errorf("propagation: unknown mode %v: %w", p, errdef.Invalid)
	}
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly() || m.GetImage().GetImage() != "" || slices.Contains(m.Flags, "ro"):
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{
		Destination: path.Join("/", m.GetContainerPath()),
		Type:        "bind",
		Source:      m.Source,
		Options:     append(options, in.forbid(m.GetMountOptions(), m.Flags)...),
	}, nil
}

// flatBinds tells whether what is mounted below a source has to be mounted by itself.
func (in Input) flatBinds() bool { return in.Handler.FlatBinds && in.Pod.UserNS != "" }

// forbid is the options that make up what a mount forbids. A runtime with FlatBinds heeds only those with an r in front,
// of a writable mount, and only the others, of one that it makes read-only.
func (in Input) forbid(asked, flags []string) []string {
	options := slices.Clone(asked)
	for _, f := range flags {
		if f != "ro" && !slices.Contains(options, f) {
			options = append(options, f)
		}
	}
	if in.flatBinds() {
		for _, o := range slices.Clone(options) {
			options = append(options, "r"+o)
		}
	}
	return options
}

// submounts are the mounts of what is mounted below the source of m, where none of the request's own mounts in m has
// its place.
func submounts(m Mount, in Input) []specs.Mount {
	var all []specs.Mount
	top := path.Join("/", m.GetContainerPath())
	for _, sub := range m.Below {
		one := Mount{
			Mount: &runtime.Mount{
				ContainerPath:     path.Join(top, sub.Path),
				Propagation:       m.GetPropagation(),
				RecursiveReadOnly: m.GetRecursiveReadOnly(),
			},
			Source: path.Join(m.Source, sub.Path),
			Flags:  sub.Flags,
		}
		if slices.ContainsFunc(in.Mounts, func(other Mount) bool {
			dest := path.Join("/", other.GetContainerPath())
			return dest != top && within(dest, top) && within(one.GetContainerPath(), dest)
		}) {
			continue
		}
		if bind, err := bindMount(one, in); err == nil { // its propagation is that of m
			all = append(all, bind)
		}
	}
	return all
}

// widest is the propagation that the root filesystem needs so that each mount can have its own: what a mount
// shares or receives has to pass through the root.
func widest(have string, p runtime.MountPropagation) string {
	switch {
	case p == runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return "rshared"
	case p == runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && have == "":
		return "rslave"
	}
	return have
}

// within tells whether p is dir or lies below it; both are clean.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

func depth(destination string) int {
	return strings.Count(destination, "/")
}

// setPaths hides and protects paths. On a filesystem that is shared with the host they would be hidden there, too.
func setPaths(s *specs.Spec, in Input) error {
	masked, readonly := hiddenPaths(securityContext(in.Config))
	if i := slices.IndexFunc(slices.Concat(masked, readonly), in.held); i >= 0 {
		return fmt.Errorf("linux.security_context: the masked or read-only path %q lies in a mount with PROPAGATION_BIDIRECTIONAL, "+
			"which would do the same to the host: %w", slices.Concat(masked, readonly)[i], errdef.Invalid)
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = masked, readonly
	return nil
}

// hiddenPaths are what the CRI lists, to the letter: the kubelet sends the lists, and an empty one means unmasked. Only
// a container without any security context gets the default lists.
func hiddenPaths(sc *runtime.LinuxContainerSecurityContext) (masked, readonly []string) {
	switch {
	case sc == nil:
		return defaultMaskedPaths(), defaultReadonlyPaths()
	case sc.GetPrivileged():
		return nil, nil
	}
	return sc.GetMaskedPaths(), sc.GetReadonlyPaths()
}

func defaultMaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func defaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
