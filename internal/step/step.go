// Package step lets rooms tell what they do, step by step, to whoever measures or traces it. It does not know who that is,
// nor what becomes of what is told.
package step

import "context"

// Kind is what sort of work a step is.
type Kind int

// The kinds.
const (
	Call           Kind = iota // an RPC; Verb is its method
	Pod                        // an operation on a pod: run, stop ...
	PodStage                   // a stage of one; Part is the stage
	Container                  // an operation on a container: create, start ...
	ContainerStage             // a stage of one; Part is the stage
	CNI                        // a verb of the network; plugins run in it
	Program                    // a run of a foreign program; Part is its name, Verb what it is asked for
	Exec                       // a command in a container, from its turn to its end; Part is the runtime's name
	Pull                       // a download of an image
)

// Step is a piece of work that has a beginning and an end. Of its values but ID there are few, whatever happens: they
// become labels of metrics.
type Step struct {
	Kind Kind
	Verb string
	Part string
	ID   string // of the pod, the container or the image that it is about; only traces have it
}

// Outcome is how a Call ended, which its end is told as an error.
type Outcome struct {
	Code string // the answer's gRPC code, OK included
	Err  error  // nil when it is OK
}

func (o Outcome) Error() string {
	if o.Err == nil {
		return o.Code
	}
	return o.Err.Error()
}

func (o Outcome) Unwrap() error { return o.Err }

// Watch is told of a step that begins. The step goes on in the context it returns, so that steps within it are known as
// such; end is called once, with what the step failed with.
type Watch func(ctx context.Context, s Step) (within context.Context, end func(err error))

// Begin tells w of s. A nil Watch is nobody.
func (w Watch) Begin(ctx context.Context, s Step) (within context.Context, end func(err error)) {
	if w == nil {
		return ctx, ignore
	}
	return w(ctx, s)
}

func ignore(error) {}

// Both tells the two of them; either may be nil.
func Both(a, b Watch) Watch {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return func(ctx context.Context, s Step) (context.Context, func(error)) {
		ctx, endA := a(ctx, s)
		ctx, endB := b(ctx, s)
		return ctx, func(err error) { endB(err); endA(err) }
	}
}

// Do runs f as the step s.
func (w Watch) Do(ctx context.Context, s Step, f func(ctx context.Context) error) error {
	ctx, end := w.Begin(ctx, s)
	err := f(ctx)
	end(err)
	return err
}
