package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

// maxAccounts bounds what is read of an image's passwd and group files, in bytes.
const maxAccounts = 4 << 20

// specify makes the root filesystem and looks up on the host what the configuration depends on.
func (c *Container) specify(ctx context.Context, r Request) (*specs.Spec, spec.User, error) {
	h := c.m.deps.Handlers[c.plan.Handler]
	in := spec.Input{
		ID:                 c.id,
		Config:             c.config,
		Image:              r.Image.Config,
		Pod:                r.Pod,
		Host:               c.m.deps.Host,
		Handler:            h.Fact,
		Cgroup:             cgroup.RuntimePath(c.plan.Cgroup),
		AllowedAnnotations: h.AllowedAnnotations,
	}
	if c.plan.Pause {
		return c.specifyPause(ctx, in)
	}
	var err error
	if in.Confinement, err = c.m.modules(ctx, r.Pod, c.config.GetLinux().GetSecurityContext()); err != nil {
		return nil, spec.User{}, err
	}
	mounting := c.at(ctx, opCreate, "mount root filesystem")
	owner := ownerIn(r.Pod)
	owner.Label = in.SELinux.Mount
	root, err := c.m.deps.Rootfs.Mount(mounting, c.id, c.plan.ImageID, owner)
	if err != nil {
		return nil, spec.User{}, err
	}
	in.Rootfs = root
	if err := wantKernelDirs(root); err != nil {
		return nil, spec.User{}, err
	}
	ctx = c.at(ctx, opCreate, "look up mounts, devices and user")
	for _, look := range []func(context.Context, *spec.Input) error{
		c.lookUpPlaces, c.lookUpUser, c.lookUpDevices, c.lookUpTarget, c.lookUpMounts, c.lookUpVolumes, c.lookUpShared, c.relabel,
	} {
		if err := look(ctx, &in); err != nil {
			return nil, spec.User{}, err
		}
	}
	s, err := spec.Build(in, c.filter, c.addDevices, c.addHooks(r.Pod.Config.GetAnnotations()))
	if err == nil {
		err = equip(root, s, spec.UserMap(r.Pod.Config))
	}
	if err != nil {
		return nil, spec.User{}, err
	}
	return s, becomes(s.Process.User, in.User.Home), nil
}

// becomes is who the process will be, with the groups that devices bring.
func becomes(u specs.User, home string) spec.User {
	groups := slices.Sorted(slices.Values(u.AdditionalGids))
	return spec.User{UID: u.UID, GID: u.GID, Additional: slices.Compact(groups), Home: home}
}

// kernelDirs are where the kernel's filesystems are mounted in every container.
var kernelDirs = []string{"/proc", "/sys", "/dev"}

// wantKernelDirs refuses a root filesystem in which one of them is there and no directory. A runtime prepares them
// before it confines itself to the root filesystem: runc before 1.3.6 and crun before 1.28 follow a symbolic link at /dev
// to the host, and make and delete files there.
func wantKernelDirs(root string) error {
	for _, dir := range kernelDirs {
		info, err := os.Lstat(filepath.Join(root, dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s of the image: %w", dir, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("the image has a %s at %s, where a directory must be or nothing: %w", kindOf(info.Mode()), dir, errdef.Invalid)
		}
	}
	return nil
}

func kindOf(mode fs.FileMode) string {
	if mode&fs.ModeSymlink != 0 {
		return "symbolic link"
	}
	return "file"
}

func (c *Container) specifyPause(ctx context.Context, in spec.Input) (*specs.Spec, spec.User, error) {
	in.Rootfs = c.m.deps.Options.PauseRoot
	var err error
	if in.Confinement, err = c.m.confinePause(ctx, in.Pod); err != nil {
		return nil, spec.User{}, err
	}
	if in.Pod.UserNS != "" {
		// Its root is nobody on the host and may not get to a directory below crid's root.
		root, err := os.Open(in.Rootfs)
		if err != nil {
			return nil, spec.User{}, err
		}
		defer root.Close()
		if in.Rootfs, err = c.m.deps.Mapper.MapMount(ctx, c.id, root, ownerIn(in.Pod)); err != nil {
			return nil, spec.User{}, err
		}
	}
	s, err := spec.BuildPause(in)
	return s, spec.User{}, err
}

func (c *Container) lookUpPlaces(context.Context, *spec.Input) error {
	return c.m.checkPlaces("linux.resources", c.config.GetLinux().GetResources())
}

// checkPlaces refuses CPUs and memory nodes that this host does not have. Without a controller for them, spec does.
func (m *Manager) checkPlaces(field string, r *runtime.LinuxContainerResources) error {
	if r.GetCpusetCpus() == "" && r.GetCpusetMems() == "" || !m.deps.Host.HasController("cpuset") {
		return nil
	}
	cpus, mems, err := m.deps.Limits.Places()
	if err != nil {
		return err
	}
	return spec.CheckPlaces(field, r, cpus, mems)
}

func (c *Container) lookUpUser(_ context.Context, in *spec.Input) error {
	passwd, err := readAccounts(in.Rootfs, "/etc/passwd")
	if err != nil {
		return err
	}
	group, err := readAccounts(in.Rootfs, "/etc/group")
	if err != nil {
		return err
	}
	in.User, err = spec.ResolveUser(spec.Accounts{Passwd: passwd, Group: group}, c.config, in.Image.User)
	return err
}

// readAccounts reads one of the image's files as the container would find it; an absent one is nil.
func readAccounts(root, name string) ([]byte, error) {
	raw, err := storage.ReadFile(root, name, maxAccounts)
	if errors.Is(err, errdef.NotFound) {
		return nil, nil
	}
	return raw, err
}

// ownerIn is the owner of the files of the pod's containers.
func ownerIn(pod spec.PodEnv) storage.Owner {
	uid, gid := spec.UserMap(pod.Config).Root()
	return storage.Owner{UserNS: pod.UserNS, UID: uid, GID: gid}
}

// lookUpMounts takes sources that are not there last, so that no directory is made for a request that is refused for
// another mount.
func (c *Container) lookUpMounts(ctx context.Context, in *spec.Input) error {
	asked := c.config.GetMounts()
	in.Mounts = make([]spec.Mount, len(asked))
	var missing []int
	for i := range asked {
		err := c.lookUpMount(ctx, in, i)
		if errors.Is(err, errMissing) {
			missing = append(missing, i)
			continue
		}
		if err != nil {
			return err
		}
	}
	for _, i := range missing {
		if err := canBeMade(asked[i].GetHostPath()); err != nil {
			return fmt.Errorf("mounts[%d] (%s): host_path: %w", i, asked[i].GetContainerPath(), badPath(err))
		}
	}
	for _, i := range missing {
		if err := os.MkdirAll(asked[i].GetHostPath(), 0o755); err != nil {
			return fmt.Errorf("mounts[%d] (%s): make the missing host_path: %w", i, asked[i].GetContainerPath(), badPath(err))
		}
		failpoint.Hit("container/create/host-path-made")
		if err := c.lookUpMount(ctx, in, i); err != nil {
			return err
		}
	}
	return nil
}

// errMissing is a host path that is not there.
var errMissing = errors.New("host_path is not there")

// canBeMade tells whether the missing directories of a path can be made, as far as that shows.
func canBeMade(name string) error {
	for {
		info, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			name = filepath.Dir(name)
			continue
		}
		if err == nil && info.Mode()&fs.ModeSymlink != 0 {
			info, err = os.Stat(name)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s is a dangling symbolic link: %w", name, errdef.Invalid)
			}
		}
		if err == nil && !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
		}
		return err
	}
}

func (c *Container) lookUpMount(ctx context.Context, in *spec.Input, i int) error {
	asked := c.config.GetMounts()[i]
	fail := func(err error) error { return fmt.Errorf("mounts[%d] (%s): %w", i, asked.GetContainerPath(), err) }
	if asked.GetImage().GetImage() != "" {
		m, err := c.lookUpImageVolume(ctx, asked, in.Pod)
		if err != nil {
			return fail(fmt.Errorf("%w: %w", err, errdef.ImageVolume))
		}
		in.Mounts[i] = m
		return nil
	}
	m, err := c.lookUpHostPath(i, asked)
	if err == nil && in.Pod.UserNS != "" {
		err = c.fitUserNS(ctx, &m, *in)
	}
	if err != nil {
		return fail(err)
	}
	in.Mounts[i] = m
	return nil
}

// fitUserNS makes a mount that was just looked up fit for the pod's user namespace.
func (c *Container) fitUserNS(ctx context.Context, m *spec.Mount, in spec.Input) error {
	src := &c.creation.sources[len(c.creation.sources)-1]
	if len(m.GetUidMappings()) > 0 {
		var err error
		if m.Source, err = c.m.deps.Mapper.MapMount(ctx, c.id, src.at, ownerIn(in.Pod)); err != nil {
			return err
		}
		src.name = m.Source
	}
	return c.lookUpFlags(m, *src, in.Handler.FlatBinds)
}

// lookUpHostPath follows a source's symbolic links on the host and holds on to what it finds: errMissing when that is
// nothing.
func (c *Container) lookUpHostPath(i int, asked *runtime.Mount) (spec.Mount, error) {
	if !filepath.IsAbs(asked.GetHostPath()) {
		return spec.Mount{}, fmt.Errorf("host_path %q is not absolute: %w", asked.GetHostPath(), errdef.Invalid)
	}
	at, real, err := openSource(asked.GetHostPath())
	if errors.Is(err, fs.ErrNotExist) {
		return spec.Mount{}, errMissing
	}
	if err != nil {
		return spec.Mount{}, fmt.Errorf("host_path: %w", badPath(err))
	}
	c.creation.sources = append(c.creation.sources, source{
		at:    at,
		field: fmt.Sprintf("mounts[%d] (%s)", i, asked.GetContainerPath()),
		real:  real,
		dest:  path.Join("/", asked.GetContainerPath()),
		name:  real,

		relabel: asked.GetSelinuxRelabel(),
	})
	if err := wantPropagation(at, real, asked.GetPropagation()); err != nil {
		return spec.Mount{}, err
	}
	if asked.GetPropagation() == runtime.MountPropagation_PROPAGATION_PRIVATE && c.m.coversOwn(real) {
		asked = proto.CloneOf(asked)
		asked.Propagation = runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	}
	return spec.Mount{Mount: asked, Source: real}, nil
}

// coversOwn tells whether a host path contains crid's mounts, or some of them. A private copy of them would
// keep them busy after crid has unmounted them.
func (m *Manager) coversOwn(source string) bool {
	return m.isOwn(source) || slices.ContainsFunc(m.roots(), func(root string) bool { return within(root, source) })
}

// isOwn tells whether a host path is crid's own or lies in one that is.
func (m *Manager) isOwn(name string) bool {
	return slices.ContainsFunc(m.roots(), func(root string) bool { return within(name, root) })
}

// roots are crid's directories without symbolic links.
func (m *Manager) roots() []string {
	roots := slices.Clone(m.deps.Options.Roots)
	for i, root := range roots {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			roots[i] = real
		}
	}
	return roots
}

// within tells whether p is dir or lies below it; both are clean.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// lookUpVolumes provides for the image's VOLUMEs that no mount of the request takes the place of.
func (c *Container) lookUpVolumes(ctx context.Context, in *spec.Input) error {
	mode := c.m.deps.Options.ImageVolumes
	if mode == VolumesIgnore {
		return nil
	}
	for _, dest := range slices.Sorted(maps.Keys(in.Image.Volumes)) {
		dest = path.Join("/", dest)
		if dest == "/" || c.covered(dest) {
			continue
		}
		if mode == VolumesMkdir {
			if err := storage.MkdirAll(in.Rootfs, dest, ownerIn(in.Pod)); err != nil {
				return fmt.Errorf("make the image's volume %s: %w", dest, err)
			}
			continue
		}
		dir, err := c.m.deps.Rootfs.Volume(ctx, c.id, dest, ownerIn(in.Pod))
		if err != nil {
			return fmt.Errorf("fill the image's volume %s: %w", dest, err)
		}
		in.Volumes = append(in.Volumes, spec.Volume{Source: dir, Destination: dest})
	}
	return nil
}

// covered tells whether something else is mounted at dest: a mount of the request, or the kernel's filesystems.
func (c *Container) covered(dest string) bool {
	if slices.ContainsFunc(kernelDirs, func(dir string) bool { return within(dest, dir) }) {
		return true
	}
	return slices.ContainsFunc(c.config.GetMounts(), func(m *runtime.Mount) bool {
		return path.Join("/", m.GetContainerPath()) == dest
	})
}

func (c *Container) lookUpTarget(_ context.Context, in *spec.Input) error {
	target, err := c.target()
	if target != nil {
		in.Target = fmt.Sprintf("/proc/%d/ns/pid", target.PID())
	}
	return err
}

// target is the container whose PID namespace this one is to join; nil when it joins none. It must run, in the
// same pod.
func (c *Container) target() (*Container, error) {
	options := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options.GetPid() != runtime.NamespaceMode_TARGET {
		return nil, nil
	}
	t, err := c.m.Get(options.GetTargetId())
	if errors.Is(err, errdef.NotFound) {
		return nil, fmt.Errorf("target_id: there is no container %q: %w", options.GetTargetId(), errdef.Invalid)
	}
	if err != nil {
		return nil, fmt.Errorf("target_id: %w", err)
	}
	if t.PodID() != c.PodID() {
		return nil, fmt.Errorf("target_id: %s belongs to pod %s, not to pod %s: %w", t, t.PodID(), c.PodID(), errdef.Invalid)
	}
	if state := t.Status().State; state != Running || t.proc == nil || !t.proc.Alive() {
		return nil, fmt.Errorf("target_id: %s does not run (%s): %w", t, state, errdef.WrongState)
	}
	return t, nil
}
