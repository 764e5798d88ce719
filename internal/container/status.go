package container

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci/spec"
)

// State is where a container stands in its life. Removal is no state but the absence of the record.
type State string

// The states, in order.
const (
	Creating State = "creating" // recorded, not yet there; nobody outside sees it
	Created  State = "created"  // the process waits to be started
	Running  State = "running"
	Exited   State = "exited"
)

// moves says which states may follow which.
func moves(from State) []State {
	switch from {
	case Creating:
		return []State{Created, Exited} // exited: it could not be made, and undoing may fail as well
	case Created:
		return []State{Running, Exited}
	case Running:
		return []State{Exited}
	}
	return nil
}

// Reasons of an exit, as the CRI reports them.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonCreate     = "CreateError"  // what could not be made and not be undone either
	ReasonReboot     = "HostRebooted" // the host went down with it
	ReasonUnrecorded = "ExitUnrecorded"
)

// Exit codes of containers whose process gave none.
const (
	codeNeverRan = 128 // it could not be created or started
	codeUnknown  = 255
)

// Life is the part of a container's status that its record keeps.
type Life struct {
	State      State     `json:"state"`
	CreatedAt  time.Time `json:"createdAt"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int32     `json:"exitCode,omitempty"`
	Reason     string    `json:"reason,omitempty"`  // one word in CamelCase
	Message    string    `json:"message,omitempty"` // for an operator
}

// Status is a container at one moment. The value is shared: do not change what it points to.
type Status struct {
	Life
	PID        int // on the host; 0 unless created or running
	User       spec.User
	Resources  *runtime.LinuxContainerResources // in force; nil = none were asked for
	Mounts     []*runtime.Mount                 // as asked
	ImageID    string
	ImageRef   string // by digest where the image has one, else its id
	LogPath    string // absolute; empty = no log
	StopSignal runtime.Signal

	ref  monitor.Ref    // for the record
	undo cgroup.Limits  // for the record: what was in force before the update that is under way
	sent syscall.Signal // for the record: the last that crid sent to end the main process; 0 = none
}

// move is the only way from one state to the next: check the table, store, publish, announce.
func (c *Container) move(to State, edit func(*Status)) error {
	c.op.Lock()
	defer c.op.Unlock()
	return c.moveLocked(to, edit)
}

// moveLocked is move for a caller that holds op. A created container exists only once its record says so;
// that one runs or has exited is a fact, published even where the record cannot be written: it is written when the disk
// takes it, and at the next start the same is observed again.
func (c *Container) moveLocked(to State, edit func(*Status)) error {
	next := *c.status.Load()
	if !slices.Contains(moves(next.State), to) {
		return c.wrongState("move "+string(to), "it is "+string(next.State))
	}
	edit(&next)
	next.State = to
	if to == Created {
		if err := c.m.deps.Records.Put(c.id, c.record(next)); err != nil {
			return fmt.Errorf("record %s: %w", c, err)
		}
	} else if err := c.m.deps.Records.Keep(c.id, c.record(next)); err != nil {
		c.m.log.Warn("the container's state is not on record", "container", c.id, "state", to, "err", err)
	}
	c.status.Store(&next)
	if to == Exited {
		close(c.exited)
	}
	c.announce(map[State]event.Kind{Created: event.Created, Running: event.Started, Exited: event.Stopped}[to])
	return nil
}

func (c *Container) announce(kind event.Kind) {
	if c.plan.Pause || c.unreadable() {
		return
	}
	c.m.deps.Events.Publish(event.Event{Kind: kind, PodID: c.PodID(), ContainerID: c.id, At: time.Now()})
}

// neverRan is the edit for a container that could not be made or started.
func neverRan(reason string, cause error) func(*Status) {
	return func(s *Status) {
		s.FinishedAt, s.PID = time.Now(), 0
		s.ExitCode, s.Reason, s.Message = codeNeverRan, reason, cause.Error()
	}
}

// exists is the error for a key that another container holds.
func (c *Container) exists(why string) error {
	return fmt.Errorf("%s %w: attempt %d of %q in pod %s %s; remove it (crictl rm %s) or ask for another attempt",
		c, errdef.Exists, c.plan.Key.Attempt, c.plan.Key.Name, c.plan.Key.PodID, why, c.id)
}
