package container

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/oci/spec"
)

// updateTimeout bounds an update; the runtime's `update` has a shorter limit of its own.
const updateTimeout = time.Minute

// Update changes the limits of a created or running container (WrongState otherwise) as change says; its zero
// fields leave things as they are. Either all of it is in force and on record when it returns nil, or nothing has
// changed. A memory limit below what is in use and cannot be dropped is WrongState, values that do not go
// together or that this host lacks a controller for are Invalid. Updates of one container follow each other; ctx
// bounds the waiting alone.
func (c *Container) Update(ctx context.Context, change *runtime.LinuxContainerResources) error {
	for {
		f, mine, err := c.beginUpdate(ctx, change)
		if err != nil {
			return err
		}
		err = f.wait(ctx)
		if mine || ctx.Err() != nil {
			return err
		}
	}
}

// beginUpdate begins an update, or returns the one in progress, which is another's.
func (c *Container) beginUpdate(ctx context.Context, change *runtime.LinuxContainerResources) (f *flight, mine bool, err error) {
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.limitable(); err != nil {
		return nil, false, err
	}
	if c.busy.updating != nil {
		return c.busy.updating, false, nil
	}
	f = newFlight()
	ctx = context.WithoutCancel(ctx)
	// One that hangs does not hold the end of crid, which undoes it, nor that of its container.
	begun := c.m.crew.watch(func(life context.Context) {
		ctx, cancel := context.WithTimeout(ctx, updateTimeout)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		go func() { // ends with the update, or with the container
			select {
			case <-c.exited:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := c.update(ctx, change)
		c.op.Lock()
		c.busy.updating = nil
		c.op.Unlock()
		f.land(err)
	})
	if !begun {
		return nil, false, errClosing
	}
	c.busy.updating = f
	return f, true, nil
}

// limitable tells whether there is a cgroup whose limits can be changed.
func (c *Container) limitable() error {
	if state := c.Status().State; state != Created && state != Running {
		return c.wrongState("update", "it is "+string(state))
	}
	if c.proc == nil || !c.proc.Alive() {
		return c.wrongState("update", "its process has ended")
	}
	return nil
}

func (c *Container) update(ctx context.Context, change *runtime.LinuxContainerResources) error {
	if err := c.undoUpdate(); err != nil {
		return err
	}
	change = spec.InForce(change, c.m.deps.Host)
	after, err := spec.MergeResources(c.Status().Resources, change)
	if err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	told, err := spec.Update(change, after, c.m.deps.Host)
	if err == nil {
		err = c.m.checkPlaces("linux", change)
	}
	if err != nil {
		return fmt.Errorf("update %s: %w", c, err)
	}
	if err := c.fits(change.GetMemoryLimitInBytes()); err != nil {
		return err
	}
	before, err := c.inForce(change)
	if err == nil {
		err = c.noteUpdate(func(s *Status) { s.undo = before })
	}
	if err != nil {
		return c.updateError(err)
	}
	if err = c.tell(ctx, told); err == nil {
		err = c.m.deps.Limits.SetLimits(c.plan.Cgroup, c.beside(change, before))
	}
	if err == nil {
		err = c.noteUpdate(func(s *Status) { s.undo, s.Resources = nil, after })
	}
	if err == nil {
		return nil
	}
	if undoErr := c.undoUpdate(); undoErr != nil {
		return fmt.Errorf("%w; then %w", c.updateError(err), undoErr)
	}
	return c.updateError(err)
}

// updateError says what an update met, which is no news when the container ended under it.
func (c *Container) updateError(err error) error {
	if state := c.limitable(); state != nil {
		return state
	}
	return fmt.Errorf("update %s: %w", c, err)
}

// inForce is what the files of the container's cgroup that limit something hold, those among them that change names.
// Invalid when it names one that there is not: only the kernel knows the files of a controller.
func (c *Container) inForce(change *runtime.LinuxContainerResources) (cgroup.Limits, error) {
	named := slices.Sorted(maps.Keys(change.GetUnified()))
	found, err := c.m.deps.Limits.Limits(c.plan.Cgroup, named...)
	if err != nil {
		return nil, err
	}
	for _, file := range named {
		if _, there := found[file]; !there {
			return nil, fmt.Errorf("linux.unified: the container's cgroup has no file %q: %w", file, errdef.Invalid)
		}
	}
	return found, nil
}

// fits refuses a memory limit that would have the kernel kill at once: v1 refuses it in its own words, v2 kills.
func (c *Container) fits(limit int64) error {
	if limit <= 0 {
		return nil
	}
	used, err := c.m.deps.Limits.MemoryInUse(c.plan.Cgroup)
	if err != nil {
		return c.updateError(err)
	}
	if used > uint64(limit) {
		return c.wrongState("update", fmt.Sprintf("its memory limit cannot be lowered to %d bytes, it uses %d that the kernel cannot take back", limit, used))
	}
	return nil
}

// tell has the runtime make the limits those that told says.
func (c *Container) tell(ctx context.Context, told *specs.LinuxResources) error {
	rt, err := c.runtime()
	if err != nil {
		return err
	}
	err = rt.Update(ctx, c.id, told)
	v1 := c.m.deps.Host.Cgroup != fact.CgroupV2
	if cpu := told.CPU; err != nil && ctx.Err() == nil && v1 && cpu != nil && cpu.Quota != nil && *cpu.Quota < 0 {
		// crun before 1.9 cannot say "no quota" to cgroup v1. Nothing that it says besides depends on it.
		rest, restCPU := *told, *cpu
		restCPU.Quota, rest.CPU = nil, &restCPU
		err = c.m.deps.Limits.SetLimits(c.plan.Cgroup, cgroup.Limits{"cpu.cfs_quota_us": "-1"})
		if err == nil {
			err = rt.Update(ctx, c.id, &rest)
		}
	}
	return err
}

// beside is what crid itself must write once the runtime has been told of a change: what the change does not speak of
// as it was before, since runc from 1.2 on sets it to what it was told last, by an update that has been undone it may
// be, and huge pages, of which runc's update knows nothing.
func (c *Container) beside(change *runtime.LinuxContainerResources, before cgroup.Limits) cgroup.Limits {
	mode := c.m.deps.Host.Cgroup
	limits := maps.Clone(before)
	for _, file := range spec.LimitFiles(change, mode) {
		delete(limits, file)
	}
	for _, h := range change.GetHugepageLimits() {
		used, promised := spec.HugepageFiles(h.GetPageSize(), mode)
		limits[used] = fmt.Sprint(h.GetLimit())
		if was, there := before[promised]; there && was == before[used] { // runc limits both, crun one
			limits[promised] = limits[used]
		}
	}
	return limits
}

// noteUpdate stores and publishes what an update has come to, unless the container has ended.
func (c *Container) noteUpdate(edit func(*Status)) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.limitable(); err != nil {
		return err
	}
	next := *c.status.Load()
	edit(&next)
	if err := c.m.deps.Records.Put(c.id, c.record(next)); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	c.status.Store(&next)
	return nil
}

// undoUpdate brings back the limits that were in force before an update that failed, or that the end of crid
// cut short. It may be repeated.
func (c *Container) undoUpdate() error {
	before := c.Status().undo
	if before == nil || c.limitable() != nil {
		return nil
	}
	err := c.m.deps.Limits.SetLimits(c.plan.Cgroup, before)
	if err == nil {
		err = c.noteUpdate(func(s *Status) { s.undo = nil })
	}
	if c.limitable() != nil {
		return nil // it ended
	}
	if err != nil {
		return fmt.Errorf("bring back the limits of %s, which the next update or start of crid tries again: %w", c, err)
	}
	return nil
}
