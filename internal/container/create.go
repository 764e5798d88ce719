package container

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/storage"
)

// createTimeout bounds a creation, whatever became of those who asked for it.
const createTimeout = 4 * time.Minute

// creation is a creation in progress, which outlives the request that began it.
type creation struct {
	*flight
	cancel  context.CancelCauseFunc
	sources []source // of the request's mounts; only the creation itself looks at them
	table   []*mountinfo.Info
}

// Create makes a container, or joins in making it: of concurrent calls with one key the first does the work and
// all get its outcome. A key whose container is created or running already answers that one; one that is being
// removed is waited for; an exited one, or one of another image or command, is errdef.Exists. ctx bounds the
// waiting alone: the work goes on, and a retry finds it. A creation that fails leaves nothing behind, or if
// undoing failed as well an EXITED container with reason CreateError, to be removed.
func (m *Manager) Create(ctx context.Context, r Request) (*Container, error) {
	fresh, err := m.draft(r)
	if err != nil {
		return nil, err
	}
	if err := m.displace(ctx, r.Key); err != nil {
		return nil, err
	}
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fresh.creation = &creation{flight: newFlight(), cancel: cancel}
	for {
		c, mine := m.claim(fresh)
		if mine {
			c.beginCreation(work, r)
		}
		free, err := c.admit(ctx, fresh, mine)
		if err != nil {
			return nil, err
		}
		if !free {
			return c, nil
		}
	}
}

// awaitCreation shares the outcome of a creation in progress.
func (c *Container) awaitCreation(ctx context.Context) error {
	if err := c.creation.wait(ctx); err != nil {
		return fmt.Errorf("create container %s: %w", c.plan.Key.Name, err)
	}
	return nil
}

// draft is a container that nobody knows yet: all that can be decided without touching anything.
func (m *Manager) draft(r Request) (*Container, error) {
	config := r.Config
	if config == nil && r.Pause {
		config = &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: pauseName}}
	}
	if _, ok := m.deps.Handlers[r.Pod.Handler]; !ok {
		return nil, fmt.Errorf("create container %s: runtime handler %q is not configured: %w", r.Key.Name, r.Pod.Handler, errdef.Invalid)
	}
	if kind := r.Image.ArtifactType; kind != "" {
		return nil, fmt.Errorf("create container %s: image %s is an artifact (%s), which has nothing to run: mount it as a volume: %w", r.Key.Name, r.Image.ID, kind, errdef.Invalid)
	}
	if err := spec.ValidateImage(config, r.Image.Config); err != nil {
		return nil, err
	}
	raw, err := encodeConfig(config)
	if err != nil {
		return nil, err
	}
	signal, err := spec.StopSignal(config, r.Image.Config)
	if err != nil {
		return nil, err
	}
	id := r.ID
	if id == "" {
		id = newID()
	}
	c := m.newContainer(id, Plan{
		Key:           r.Key,
		Handler:       r.Pod.Handler,
		Pause:         r.Pause,
		ImageID:       r.Image.ID,
		ImageRef:      imageRef(r.Image, r.Config.GetImage().GetUserSpecifiedImage()),
		Volumes:       volumesOf(r),
		Cgroup:        m.deps.Options.Cgroups.Leaf(r.Pod.CgroupParent, id),
		MonitorCgroup: m.deps.Options.Cgroups.MonitorLeaf(r.Pod.CgroupParent, id),
		LogPath:       logPath(r),
		StopSignal:    spec.CRISignal(signal),
		Signal:        int(signal),
	}, config)
	c.raw = raw
	c.publish(Status{Life: Life{State: Creating, CreatedAt: time.Now()}})
	return c, nil
}

func (m *Manager) newContainer(id string, plan Plan, config *runtime.ContainerConfig) *Container {
	return &Container{id: id, m: m, plan: plan, config: config, exited: make(chan struct{})}
}

// publish makes s, completed by what never changes, the status that readers see.
func (c *Container) publish(s Status) {
	if s.Resources == nil {
		s.Resources = c.config.GetLinux().GetResources()
	}
	s.Resources = spec.InForce(s.Resources, c.m.deps.Host)
	s.Mounts = c.mounts()
	s.ImageID, s.ImageRef = c.plan.ImageID, c.plan.ImageRef
	s.LogPath, s.StopSignal = c.plan.LogPath, c.plan.StopSignal
	c.status.Store(&s)
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// imageRef is the image by digest, under the name that the user gave where it has that, else its id.
func imageRef(image storage.Image, specified string) string {
	if len(image.RepoDigests) == 0 {
		return image.ID
	}
	asked, err := reference.ParseNormalizedNamed(specified)
	if err != nil {
		return image.RepoDigests[0]
	}
	for _, d := range image.RepoDigests {
		if named, err := reference.ParseNormalizedNamed(d); err == nil && named.Name() == asked.Name() {
			return d
		}
	}
	return image.RepoDigests[0]
}

func logPath(r Request) string {
	dir, name := r.Pod.Config.GetLogDirectory(), r.Config.GetLogPath()
	if dir == "" || name == "" {
		return ""
	}
	return filepath.Join(dir, name)
}

// admit waits until it is clear what the holder of a key is to one who asks for fresh under the same key: the
// container asked for, no more because the key has become free, or an error. The one whose own it is (mine) gets
// its outcome, whatever that is.
func (c *Container) admit(ctx context.Context, fresh *Container, mine bool) (free bool, err error) {
	if mine {
		return false, c.awaitCreation(ctx)
	}
	c.op.Lock()
	removing := c.busy.removing
	c.op.Unlock()
	switch {
	case removing != nil && c.Status().State != Creating:
		err := removing.wait(ctx)
		if ctx.Err() != nil {
			return false, fmt.Errorf("create container %s: wait for the removal of %s: %w", fresh.plan.Key.Name, c.id, err)
		}
		return true, nil // if the removal failed, the next look says EXITED
	case c.plan.Key != fresh.plan.Key:
		return false, fmt.Errorf("container id %s: %w", c.id, errdef.Exists)
	case !c.sameAs(fresh):
		return false, c.exists("has another image or command")
	case c.Status().State == Creating:
		return false, c.awaitCreation(ctx)
	case c.Status().State == Exited:
		return false, c.exists("has exited")
	}
	return false, nil
}

// sameAs tells whether two requests mean the same container. The rest of a config may differ: the kubelet makes
// it anew for each call.
func (c *Container) sameAs(other *Container) bool {
	return c.plan.ImageID == other.plan.ImageID && c.plan.Pause == other.plan.Pause &&
		slices.Equal(c.config.GetCommand(), other.config.GetCommand()) &&
		slices.Equal(c.config.GetArgs(), other.config.GetArgs())
}

// beginCreation starts the work on a container that has just been claimed.
func (c *Container) beginCreation(ctx context.Context, r Request) {
	begun := c.m.crew.work(func(life context.Context) {
		defer context.AfterFunc(life, func() { c.creation.cancel(errClosing) })()
		defer c.creation.cancel(nil)
		c.creation.land(c.create(ctx, life, r))
	})
	if !begun {
		c.m.forget(c)
		c.creation.land(errClosing)
	}
}

// create makes the container or undoes what was made of it. When life ends, so does crid, and the undoing is left
// to its next start.
func (c *Container) create(ctx, life context.Context, r Request) error {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	ctx, done := c.doing(ctx, opCreate)
	err := c.build(ctx, r)
	done(err)
	if err == nil {
		return nil
	}
	err = errdef.Where(err, c.disks()...)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	if life.Err() != nil {
		return err
	}
	// EXITED comes first: were the undoing to fail, the container would otherwise stay unlisted for ever.
	if moveErr := c.move(Exited, neverRan(ReasonCreate, err)); moveErr != nil {
		return fmt.Errorf("%w; then %w", err, moveErr)
	}
	undo, mine := c.takeRemoval()
	if mine {
		c.runRemoval(life, undo)
	}
	if undoErr := undo.wait(life); undoErr != nil { // it has a deadline of its own
		return fmt.Errorf("%w; it could not be undone: %w", err, undoErr)
	}
	return err
}

// build goes from the request to the created process.
func (c *Container) build(ctx context.Context, r Request) error {
	c.at(ctx, opCreate, "record")
	if err := c.m.deps.Records.Put(c.id, c.record(c.Status())); err != nil {
		return err
	}
	release, err := c.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := c.permit(ctx, r.Pod); err != nil {
		return err
	}
	defer c.creation.closeSources()
	s, user, err := c.specify(ctx, r)
	if err != nil {
		return err
	}
	proc, ref, err := c.launch(ctx, s)
	if err != nil {
		return err
	}
	if err := c.unmap(r.Pod); err != nil {
		c.m.log.Warn("mounts with mapped ids stay until the container is removed", "container", c.id, "err", err)
	}
	if err := c.confirmMounts(ref.PID, s); err != nil {
		return err
	}
	if _, err := c.target(); err != nil { // its pid may have passed to a stranger before the runtime used it
		return err
	}
	c.proc = proc
	err = c.move(Created, func(next *Status) {
		next.CreatedAt, next.PID, next.User, next.ref = time.Now(), ref.PID, user, ref
	})
	if err != nil {
		return err
	}
	c.m.crew.watch(c.watch) // not begun while crid ends: the next start of crid looks at the container
	return nil
}

// disks are where something is written for the container.
func (c *Container) disks() []string {
	dirs := slices.Clone(c.m.deps.Options.Roots)
	if c.plan.LogPath != "" {
		dirs = append(dirs, filepath.Dir(c.plan.LogPath))
	}
	return dirs
}

// unmap takes away the mounts with mapped ids, which the created container has in its own mount namespace now.
func (c *Container) unmap(pod spec.PodEnv) error {
	if pod.UserNS == "" {
		return nil
	}
	return c.m.deps.Mapper.Unmap(c.id)
}

// launch writes the configuration and runs the runtime's `create` under a monitor.
func (c *Container) launch(ctx context.Context, s *specs.Spec) (Process, monitor.Ref, error) {
	ctx = c.at(ctx, opCreate, "create process")
	raw, err := spec.Marshal(s)
	if err != nil {
		return nil, monitor.Ref{}, err
	}
	if err := c.prepareLog(); err != nil {
		return nil, monitor.Ref{}, err
	}
	c.template.Store(s.Process)
	rt := c.m.deps.Handlers[c.plan.Handler].Runtime.Config()
	return c.m.deps.Monitors.Start(ctx, monitor.Spec{
		ID:            c.id,
		Name:          cmp.Or(c.plan.Key.Name, pauseName),
		Runtime:       rt.Path,
		RuntimeRoot:   rt.Root,
		Config:        raw,
		LogPath:       c.plan.LogPath,
		Cgroup:        c.plan.MonitorCgroup,
		Terminal:      c.config.GetTty(),
		Stdin:         c.config.GetStdin(),
		StdinOnce:     c.config.GetStdinOnce(),
		SystemdCgroup: cgroup.IsScope(c.plan.Cgroup),
		Env:           rt.Environment(),
	})
}
