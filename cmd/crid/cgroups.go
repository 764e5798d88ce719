package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/systemd"
)

// The default cgroup parents.
const (
	parentSlice = "system.slice"
	parentPath  = "/crid"
)

// driver is who makes the cgroups of new containers.
type driver struct {
	cgroup.Names
	parent string // the path of the default parent
	why    string // it is this one
}

// cgroups are those of the host.
type cgroups struct {
	cgroup.Driver
	driver
}

// openCgroups finds the cgroups and who makes them.
func (r *rooms) openCgroups() error {
	tree, err := cgroup.Open(r.host)
	if err != nil {
		return err
	}
	chosen, manager, err := chooseDriver(r.cfg.Config)
	if err != nil {
		return err
	}
	r.onClose("connection to systemd", func(context.Context) error { return manager.Close() })
	r.cgroups = cgroups{cgroup.NewDriver(tree, unitsOf(manager)), chosen}
	if systemd.Running() && !chosen.Systemd && r.cfg.CgroupDriver == "auto" {
		r.warnings = append(r.warnings, fmt.Sprintf("the cgroup driver is cgroupfs on a host that systemd runs: %s", chosen.why))
	}
	if chosen.Systemd {
		return nil // it hands controllers down by itself
	}
	withheld, err := tree.Withheld()
	if len(withheld) > 0 {
		r.host.Controllers = slices.DeleteFunc(slices.Clone(r.host.Controllers), func(name string) bool { return slices.Contains(withheld, name) })
		r.warn(fmt.Sprintf("pods get no cgroup controllers %s, and limits that need them are refused: processes are in the root of the cgroups that crid sees. Move them, crid among them, to a cgroup below it before crid starts (DelegateSubgroup= of a systemd unit does)", strings.Join(withheld, ", ")))
	}
	return err
}

// unitsOf is where the scopes of containers are known, whatever the driver of new ones: it may have changed.
func unitsOf(m *systemd.Manager) cgroup.Units {
	if !systemd.Running() {
		return nil
	}
	return m
}

// chooseDriver asks the host where the configuration leaves the choice to it.
func chooseDriver(cfg config.Config) (driver, *systemd.Manager, error) {
	manager := systemd.New()
	d := driver{why: "cgroup_driver in crid.toml says so"}
	if cfg.CgroupDriver != "cgroupfs" {
		version, err := manager.Probe()
		switch {
		case err == nil:
			d.Systemd, d.why = true, version+" answers"
		case cfg.CgroupDriver == "systemd":
			return driver{}, nil, fmt.Errorf("cgroup_driver in crid.toml is systemd: %w", err)
		default:
			d.why = err.Error()
		}
	}
	otherwise := parentPath
	if d.Systemd {
		otherwise = parentSlice
	}
	var err error
	if d.parent, err = d.Parent(cmp.Or(cfg.CgroupParent, otherwise)); err != nil {
		return driver{}, nil, fmt.Errorf("cgroup_parent in crid.toml: %w", err)
	}
	return d, manager, nil
}
