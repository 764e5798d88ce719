package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/node"
)

// restarting kills a crid that has many pods, again and again, and measures from the start of the next one to its first
// answer, which is the right one.
func (f flags) restarting(ctx context.Context, n *node.Node) error {
	e, err := dial("crid", n.Socket, nil)
	if err != nil {
		return err
	}
	if err := f.pull(ctx, []*endpoint{e}); err != nil {
		return err
	}
	q := e.quiet()
	pods, err := q.several(ctx, f.held, f.atOnce, f.image)
	if err != nil {
		return errors.Join(err, q.away(ctx, pods, f.atOnce))
	}
	for range f.rounds {
		if err := n.Kill(); err != nil {
			return err
		}
		began := time.Now()
		if err := n.Again(ctx); err != nil {
			return err
		}
		e.note(fmt.Sprintf("serving again, %d pods", f.held), time.Since(began))
		list, err := n.Runtime.ListContainers(ctx, &runtime.ContainerFilter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}})
		if err != nil || len(list) != f.held {
			return fmt.Errorf("%d of %d containers run after a restart: %w", len(list), f.held, err)
		}
	}
	if err := report([]*endpoint{e}); err != nil {
		return err
	}
	if e, err = dial("crid", n.Socket, nil); err != nil { // the connection was to the first crid
		return err
	}
	return e.quiet().away(ctx, pods, f.atOnce)
}
