// Package container leads one container through its life, from the first record to the last: created, started,
// watched, stopped, erased. It does not know pods: it is handed a pod's environment as a value and a pod's id
// to group by; it knows neither networks nor the CRI's calls.
package container

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/step"
	"github.com/crid/crid/internal/storage"
)

// Key is what a container is called by those who ask for it. At most one container has a key at a time.
type Key struct {
	PodID   string `json:"podId"`
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt"`
}

// Request is everything that a container is made of. Its values are read-only, before and after.
type Request struct {
	Key    Key
	Pod    spec.PodEnv
	Config *runtime.ContainerConfig // may be nil for the pause
	Image  storage.Image            // zero for the pause
	// Volumes are the images that mounts name, by mounts[].image.image.
	Volumes map[string]storage.Image
	Pause   bool   // crid's own pause program instead of an image
	ID      string // of the pause, chosen by its pod; every other container gets a random one
}

// Container is one container. Its methods may be called concurrently; those that only read take no lock.
type Container struct {
	id     string
	m      *Manager
	plan   Plan                     // never changes
	config *runtime.ContainerConfig // never changes
	raw    json.RawMessage          // config as records keep it
	broken error                    // why nothing but the id is known: the record cannot be read; never changes
	status atomic.Pointer[Status]   // written by publish alone

	creation *creation     // of this run of crid; nil when the container was loaded
	letGo    atomic.Bool   // of the images that it has as volumes: set once, when its removal begins
	exited   chan struct{} // closed once EXITED is published

	// proc is set before CREATED is published and not touched afterwards; nil when there is none or when it
	// could not be found again.
	proc Process

	// op covers state transitions and the fields of busy. It is never held while waiting for a process.
	op   sync.Mutex
	busy busy

	stage   atomic.Pointer[stage] // what is being done to the container; nil = nothing
	derived                       // from all this, when it is first asked for
}

// derived is what need not be made again for each call.
type derived struct {
	template atomic.Pointer[specs.Process] // of processes to exec
	memo     atomic.Value                  // of who lists containers
}

// busy is what is going on with a container, for others to join. Guarded by Container.op.
type busy struct {
	starting *starting
	stopping *stopping
	updating *flight // of limits
	reaping  *flight // `delete` of the runtime's state after the exit
	removing *flight // left in place once the container is gone
}

// ID is the container's id.
func (c *Container) ID() string { return c.id }

// PodID is the id of the pod that the container belongs to.
func (c *Container) PodID() string { return c.plan.Key.PodID }

// Handler is the name of the runtime handler that runs the container.
func (c *Container) Handler() string { return c.plan.Handler }

// Pause tells crid's own pause program from what a client asked for.
func (c *Container) Pause() bool { return c.plan.Pause }

// Cgroup is the path of the container's own cgroup.
func (c *Container) Cgroup() string { return c.plan.Cgroup }

// Config is the configuration as it came. It is shared: do not change it. It is nil when the record could not be
// read.
func (c *Container) Config() *runtime.ContainerConfig { return c.config }

// Status is what is known of the container now. It never waits.
func (c *Container) Status() Status { return *c.status.Load() }

// Memo is a place where who lists containers may keep what it has made of this one. It goes with the container.
func (c *Container) Memo() *atomic.Value { return &c.memo }

// PID is the main process's id on the host; 0 unless the container is created or running.
func (c *Container) PID() int { return c.status.Load().PID }

// String names the container in messages.
func (c *Container) String() string {
	if c.plan.Pause {
		return fmt.Sprintf("pause %s", c.id)
	}
	return fmt.Sprintf("container %s (%s)", c.id, c.plan.Key.Name)
}

// wrongState is the error of a call that the container's state does not allow.
func (c *Container) wrongState(verb, why string) error {
	return fmt.Errorf("%s %s: %w: %s", verb, c, errdef.WrongState, why)
}

// stage is the step that work on a container is at.
type stage struct {
	name  string
	since time.Time
	leave func(err error) // tells who watches; called by whoever takes the stage's place
}

// The operations on a container, as who watches hears of them.
const (
	opCreate = "create"
	opStart  = "start"
	opStop   = "stop"
	opRemove = "remove"
	opExit   = "exit" // from the record of an exit until it is told
)

// doing tells who watches that an operation on the container begins; done is called at its end, which ends its last stage.
func (c *Container) doing(ctx context.Context, op string) (within context.Context, done func(err error)) {
	within, end := c.m.deps.Steps.Begin(ctx, step.Step{Kind: step.Container, Verb: op, ID: c.id})
	return within, func(err error) {
		c.pass(nil, err)
		end(err)
	}
}

// at notes the step that an operation has come to. ctx is the operation's; the step goes on in the one that is returned.
func (c *Container) at(ctx context.Context, op, name string) context.Context {
	within, leave := c.m.deps.Steps.Begin(ctx, step.Step{Kind: step.ContainerStage, Verb: op, Part: name, ID: c.id})
	c.pass(&stage{name, time.Now(), leave}, nil)
	return within
}

// pass puts next, which may be nil, in the place of the stage before. err is what that failed with.
func (c *Container) pass(next *stage, err error) {
	if before := c.stage.Swap(next); before != nil {
		before.leave(err)
	}
}

// flight is one piece of work that several callers wait for.
type flight struct {
	done chan struct{} // closed by land
	err  error         // read only after done
}

func newFlight() *flight { return &flight{done: make(chan struct{})} }

// land ends the flight; it is called once.
func (f *flight) land(err error) {
	f.err = err
	close(f.done)
}

// wait returns the outcome, or an error that wraps the context's when that ends first: the work goes on.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("stopped waiting, the work goes on: %w", context.Cause(ctx))
	}
}
