package network

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Recall answers the requests that libcni remembers having added and not deleted for id; for the empty id,
// all of them. It serves the undoing of what has no readable record.
func (c *CNI) Recall(id string) ([]Request, error) {
	attachments, err := c.lib.GetCachedAttachments(id)
	if err != nil {
		return nil, fmt.Errorf("read cached attachments: %w", err)
	}
	var found []Request
	for _, a := range attachments {
		r, err := recall(a)
		if err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, nil
}

// Rhythm says how often the network's garbage is collected.
type Rhythm struct {
	Period time.Duration // between collections
	Retry  time.Duration // until the next try of one that gave way to pods
}

// gcTimeout bounds one collection.
const gcTimeout = 5 * time.Minute

// KeepCollecting runs GC now and then in the rhythm until ctx ends. tell hears of each failure but that to find a
// quiet moment.
func (c *CNI) KeepCollecting(ctx context.Context, rhythm Rhythm, live func() []Request, tell func(error)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := c.collect(ctx, live)
		switch {
		case errors.Is(err, errBusy):
			timer.Reset(rhythm.Retry)
			continue
		case err != nil && ctx.Err() == nil:
			tell(err)
		}
		timer.Reset(rhythm.Period)
	}
}

func (c *CNI) collect(ctx context.Context, live func() []Request) error {
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	return c.GC(ctx, live)
}

// GC deletes what was added, is remembered and has no live owner, each with the request it was added with,
// and then tells today's network, if it has the verb, which attachments are valid. live is asked after the
// memory is read, while no ADD and no DEL runs; every request is recorded before its Add, so live knows the
// newest. CNI forbids GC beside ADD and DEL: while one of them is under way it is Unavailable at once, and when one
// comes it ends soon, Unavailable as well. It may be repeated.
func (c *CNI) GC(ctx context.Context, live func() []Request) error {
	ctx, leave, err := c.gate.alone(ctx)
	if err == nil {
		err = c.gc(ctx, live)
		leave()
	}
	if cause := context.Cause(ctx); errors.Is(cause, errBusy) {
		err = cause
	}
	if errors.Is(err, errBusy) {
		return fmt.Errorf("collect garbage of the network: %w", err)
	}
	return err
}

func (c *CNI) gc(ctx context.Context, live func() []Request) error {
	known, err := c.Recall("")
	if err != nil {
		return err
	}
	valid := map[types.GCAttachment]bool{}
	for _, r := range live() {
		valid[types.GCAttachment{ContainerID: r.ID, IfName: r.IfName}] = true
	}
	var errs []error
	for _, r := range known {
		if valid[types.GCAttachment{ContainerID: r.ID, IfName: r.IfName}] {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		list, err := r.list()
		if err == nil {
			err = c.del(ctx, list, r)
		}
		errs = append(errs, err)
	}
	errs = append(errs, c.gcVerb(ctx, valid))
	return errors.Join(errs...)
}

// gcVerb runs the GC verb of today's network. libcni would first delete stale attachments with today's
// configuration, so it is shown no memory: what is stale was deleted with its own.
func (c *CNI) gcVerb(ctx context.Context, valid map[types.GCAttachment]bool) error {
	n := c.view.Load().net
	if n == nil || !n.hasVerb11() {
		return nil
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for a := range valid {
		args.ValidAttachments = append(args.ValidAttachments, a)
	}
	forgetful := libcni.NewCNIConfigWithCacheDir(c.cfg.BinDirs, filepath.Join(c.cfg.CacheDir, "none"), &plugins{steps: c.cfg.Steps})
	err := c.verb(ctx, "GC", "", func(ctx context.Context) error { return forgetful.GCNetworkList(ctx, n.list, args) })
	if err != nil {
		return fmt.Errorf("collect garbage of network %s: %w", n.list.Name, pluginFailure(err))
	}
	return nil
}
