package sandbox

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/crid/crid/internal/step"
)

// kind is what an operation does to its pod. A pod has at most one operation of a kind at a time.
type kind string

const (
	opRun    kind = "run"
	opStop   kind = "stop"
	opRemove kind = "remove"
	opPause  kind = "start pause"
	opReap   kind = "reap"
)

// operation is work on a pod that several requests may wait for. It has a deadline of its own: a request's
// context bounds only its waiting.
type operation struct {
	kind   kind
	pod    *Pod
	since  time.Time
	stage  atomic.Pointer[string]
	leave  func(err error) // ends the stage for who watches; nil before the first. The work's own
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at the end
	err    error         // may be read once done is closed
}

// at notes the stage that the work has come to. ctx is the operation's; the stage goes on in the one that is returned.
func (o *operation) at(ctx context.Context, stage string) context.Context {
	o.stage.Store(&stage)
	o.left(nil)
	ctx, o.leave = o.pod.m.deps.Steps.Begin(ctx, step.Step{Kind: step.PodStage, Verb: string(o.kind), Part: stage, ID: o.pod.id})
	return ctx
}

// left ends the stage that the work was at.
func (o *operation) left(err error) {
	if o.leave != nil {
		o.leave(err)
		o.leave = nil
	}
}

// wait returns the outcome, or earlier when ctx ends.
func (o *operation) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
	}
	select {
	case <-o.done: // both: the outcome is what the caller wants
		return o.err
	default:
		return fmt.Errorf("%s pod %s: it goes on (%s): %w", o.kind, o.pod.id, *o.stage.Load(), context.Cause(ctx))
	}
}

// task is the work of an operation. It says by op.at how far it is.
type task func(ctx context.Context, op *operation) error

// timeout is the deadline of an operation's own work; undoing adds its own.
func (m *Manager) timeout(k kind) time.Duration {
	switch k {
	case opStop, opReap:
		return m.deps.Config.StopTimeout
	case opRemove:
		return m.deps.Config.UndoTimeout
	default:
		return m.deps.Config.CreateTimeout
	}
}

// join starts work as p's operation of this kind, or finds the one that is going on. It does not wait. Once
// crid is shutting down only what others in flight need is started.
func (m *Manager) join(ctx context.Context, p *Pod, k kind, work task) *operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	if op := p.ops[k]; op != nil {
		return op
	}
	if m.closed && (len(m.ops) == 0 || k == opPause) {
		return refusal()
	}
	return m.begin(ctx, p, k, work)
}

// refusal is the operation that ended before it began.
func refusal() *operation {
	op := &operation{done: make(chan struct{}), err: errClosing}
	close(op.done)
	return op
}

// begin starts an operation. m.mu is held.
func (m *Manager) begin(ctx context.Context, p *Pod, k kind, work task) *operation {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	op := &operation{kind: k, pod: p, since: time.Now(), cancel: cancel, done: make(chan struct{})}
	first := "begin"
	op.stage.Store(&first)
	p.ops[k] = op
	m.ops[op] = struct{}{}
	m.work.Add(1)
	go func() { // ends by its deadline; Close waits for it
		defer m.work.Done()
		ctx, stop := context.WithTimeout(ctx, m.timeout(k))
		ctx, end := m.deps.Steps.Begin(ctx, step.Step{Kind: step.Pod, Verb: string(k), ID: p.id})
		op.err = work(ctx, op)
		op.left(op.err)
		end(op.err)
		stop()
		cancel(nil)
		m.mu.Lock()
		delete(p.ops, k)
		delete(m.ops, op)
		m.mu.Unlock()
		close(op.done)
	}()
	return op
}

// do is join and wait.
func (m *Manager) do(ctx context.Context, p *Pod, k kind, work task) error {
	return m.join(ctx, p, k, work).wait(ctx)
}

// Operation is work on a pod that is going on, for Status verbose.
type Operation struct {
	Kind  string // run, stop, remove, start pause, reap
	PodID string
	Key   Key
	Stage string
	Since time.Time
	Age   time.Duration
}

// InFlight returns what is going on, pods being created included, in no order. It never waits.
func (m *Manager) InFlight() []Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Operation, 0, len(m.ops))
	for op := range m.ops {
		all = append(all, Operation{
			Kind: string(op.kind), PodID: op.pod.id, Key: op.pod.key, Stage: *op.stage.Load(),
			Since: op.since, Age: time.Since(op.since),
		})
	}
	return all
}
