package container

import (
	"errors"
	"syscall"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/monitor"
)

// codeKilled is the exit code of a process that SIGKILL ended, and of a shell whose last command it was.
const codeKilled = 128 + int(syscall.SIGKILL)

// outOfMemory judges whether want of memory ended the container. There are three witnesses, and none suffices:
// the kernel's count says that a process of the container was killed, not when, nor that the container minded; the
// monitor's note says that memory ran out, which need not have killed anybody; and SIGKILL may be anybody's.
// A container that ends well has not been ended by it, whatever became of its children.
func (c *Container) outOfMemory(exit monitor.Exit) bool {
	if exit.Code == 0 {
		return false
	}
	kills, err := c.m.deps.Cgroups.OOMKills(c.plan.Cgroup)
	if errors.Is(err, errdef.NotFound) && c.m.deps.Host.Cgroup == fact.CgroupV2 {
		// systemd has taken the scope away, and crid has begun to count after that: the monitor's note is all there is.
		err = nil
		if exit.OOM {
			kills = 1
		}
	}
	if err != nil {
		c.m.log.Warn("cannot tell for certain whether memory ran out", "container", c.id, "err", err)
	}
	sent := c.Status().sent
	killed := exit.Code == codeKilled && !exit.Lost && sent != syscall.SIGKILL
	switch {
	case err != nil:
		return killed && exit.OOM
	case kills == 0:
		return false
	case killed:
		return true
	}
	// Another code, after a child was the victim: the monitor's note tells of this container's own limit, and nobody
	// but the container itself may have wished for the end. Of a scope the monitor may learn too late.
	return (exit.OOM || cgroup.IsScope(c.plan.Cgroup)) && sent == 0
}

// noteSignal remembers what crid is about to send to the main process, if that is there to be ended by it: on record
// too, for the crid that sees the exit may be another.
func (c *Container) noteSignal(sig syscall.Signal) {
	if !c.proc.Alive() {
		return
	}
	c.op.Lock()
	defer c.op.Unlock()
	next := *c.status.Load()
	if next.State == Exited || next.sent == sig {
		return
	}
	next.sent = sig
	if err := c.m.deps.Records.Keep(c.id, c.record(next)); err != nil {
		c.m.log.Warn("a stop is not on record: should crid be restarted before the exit, that may pass for want of memory",
			"container", c.id, "signal", sig, "err", err)
	}
	c.status.Store(&next)
}
