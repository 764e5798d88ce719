package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/storage"
)

// usernsProbe is the id of the namespace that the probe makes; no pod has it.
const usernsProbe = "probe"

// probeUserns finds out by trying whether pods can have user namespaces here. Where they cannot, no handler runs them,
// and Status says why.
func (r *rooms) probeUserns(ctx context.Context) error {
	err := r.tryUserns(ctx)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	limit, _ := os.ReadFile(maxUserNamespaces) // a kernel without user namespaces has none
	r.doubtUserns(err, string(limit))
	return nil
}

// maxUserNamespaces is how many user namespaces there may be.
const maxUserNamespaces = "/proc/sys/user/max_user_namespaces"

// doubtUserns judges the failure of a try. What the host lacks at the moment does not count: pods may be running, and
// each new one is told by its own failure.
func (r *rooms) doubtUserns(err error, limit string) {
	warning := fmt.Sprintf("pods with a user namespace cannot run: %v", err)
	if passes(err) && strings.TrimSpace(limit) != "0" {
		warning = fmt.Sprintf("it could not be tried whether pods with a user namespace can run: %v", err)
	} else {
		r.programs.withoutUserns()
	}
	r.warn(warning)
}

// passes tells whether a failure is of the moment.
func passes(err error) bool {
	return slices.ContainsFunc([]error{errdef.Exhausted, errdef.Unavailable, context.DeadlineExceeded, unix.ENOSPC, unix.ENOMEM,
		unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.EBUSY, unix.EINTR}, func(kind error) bool { return errors.Is(err, kind) })
}

// tryUserns makes what such a pod needs: a namespace, and a root filesystem and an image store with mapped ids.
func (r *rooms) tryUserns(ctx context.Context) (err error) {
	pins := r.cfg.pinner()
	if err := pins.Unpin(ctx, usernsProbe); err != nil { // of a crash amid a probe
		return err
	}
	some := []fact.IDRange{{Container: 0, Host: 1 << 16, Length: 1 << 16}}
	users := fact.IDMap{UIDs: some, GIDs: some}
	set, err := pins.Pin(ctx, usernsProbe, ns.Want{Users: users})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pins.Unpin(context.WithoutCancel(ctx), usernsProbe)) }()
	uid, gid := users.Root()
	return r.rootfs.ProbeMapped(ctx, storage.Owner{UserNS: set.User, UID: uid, GID: gid}, r.images.Dir())
}

// withoutUserns takes the ability from every handler.
func (p *programs) withoutUserns() {
	for i := range p.facts {
		p.facts[i].UserNamespaces = false
	}
	for name, h := range p.handlers {
		h.Fact.UserNamespaces = false
		p.handlers[name] = h
	}
}
