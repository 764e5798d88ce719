package main

import (
	"context"

	"github.com/crid/crid/internal/cdi"
	"github.com/crid/crid/internal/hooks"
	"github.com/crid/crid/internal/lsm"
)

// additions is what the host adds to containers beside what the CRI asks for, and confines them with.
type additions struct {
	devices  *cdi.Registry
	hooks    *hooks.Hooks
	security *lsm.Modules
}

// openAdditions finds what the host adds to containers. Files with faults are told of, here and in Status.
func (r *rooms) openAdditions(ctx context.Context) error {
	var err error
	if r.additions.devices, err = cdi.Open(r.cfg.CDISpecDirs); err != nil {
		return err
	}
	r.onClose("CDI devices", func(context.Context) error { return r.additions.devices.Close() })
	r.additions.hooks = hooks.New(r.cfg.HooksDirs)
	r.additions.security = lsm.Open(ctx, r.host)
	_ = r.additions.hooks.Check() // kept as the room's Fault, which is told below
	r.warnings = append(r.warnings, r.additions.security.Warnings()...)
	for _, warning := range append(r.additionFaults(), r.additions.security.Warnings()...) {
		r.log.Warn(warning)
	}
	return nil
}

// additionFaults is what is wrong now, or without effect, with the files of the host that add to containers.
func (r *rooms) additionFaults() []string {
	var faults []string
	for _, fault := range r.additions.devices.Faults() {
		faults = append(faults, "CDI description left out: "+fault)
	}
	if fault := r.additions.hooks.Fault(); fault != "" {
		faults = append(faults, "containers cannot be created: "+fault)
	}
	for _, ignored := range r.additions.hooks.Ignored() {
		faults = append(faults, "ignored: "+ignored)
	}
	return faults
}
