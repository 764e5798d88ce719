package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// A host that cannot is told from one that cannot at the moment: pods of an earlier life may be running there.
func TestAFailedProbeOfUserNamespaces(t *testing.T) {
	for _, c := range []struct {
		err   error
		limit string
		can   bool
	}{
		{fmt.Errorf("map ids: %w", errdef.Unsupported), "1000\n", false},
		{fmt.Errorf("make a user namespace: %w", errdef.Invalid), "1000\n", false},
		{fmt.Errorf("mount overlay: %w", unix.EINVAL), "1000\n", false},
		{fmt.Errorf("make namespaces: %w: %w", errdef.Exhausted, unix.ENOSPC), "1000\n", true},
		{fmt.Errorf("make namespaces: %w: %w", errdef.Exhausted, unix.ENOSPC), "0\n", false},
		{fmt.Errorf("pin: %w", unix.EMFILE), "", true},
	} {
		both := fact.Handler{Name: "crun", UserNamespaces: true}
		r := &rooms{observers: observers{log: slog.New(slog.DiscardHandler)}, programs: programs{
			facts:    []fact.Handler{both, {Name: "runc", UserNamespaces: true}},
			handlers: map[string]container.Handler{"crun": {Fact: both}},
		}}
		r.doubtUserns(c.err, c.limit)
		// The first of facts is what Status tells of the handler "".
		if r.programs.facts[0].UserNamespaces != c.can || r.programs.facts[1].UserNamespaces != c.can ||
			r.programs.handlers["crun"].Fact.UserNamespaces != c.can {
			t.Errorf("%v: %+v, %+v; want %v", c.err, r.programs.facts, r.programs.handlers, c.can)
		}
		if len(r.warnings) != 1 || !strings.Contains(r.warnings[0], c.err.Error()) {
			t.Errorf("%v: warnings %q", c.err, r.warnings)
		}
	}
}
