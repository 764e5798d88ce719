package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/oci/spec"
)

// Exec runs cmd in the container and waits for its end: WrongState unless the container runs. timeout 0 = none;
// at its end, or that of ctx, all that cmd has started is killed and the error wraps context.DeadlineExceeded
// or the context's; when crid ends, it is Unavailable. limit is how many bytes of stdout and of stderr are kept, each.
func (c *Container) Exec(ctx context.Context, cmd []string, timeout time.Duration, limit int) (oci.ExecResult, error) {
	rt, e, err := c.execution(cmd, false)
	if err != nil {
		return oci.ExecResult{}, err
	}
	e.Timeout, e.Limit = timeout, limit
	ctx, done := c.m.crew.patient(ctx)
	defer done()
	result, err := rt.Exec(ctx, c.id, e)
	return result, c.killed(ctx, err)
}

// Stream runs cmd in the container, at a terminal of its own or not, with its stdio connected to s, and waits for
// its end: WrongState unless the container runs. At the end of ctx all that cmd has started is killed.
func (c *Container) Stream(ctx context.Context, cmd []string, terminal bool, s oci.Streams) (exitCode int, err error) {
	rt, e, err := c.execution(cmd, terminal)
	if err != nil {
		return 0, err
	}
	ctx, done := c.m.crew.patient(ctx)
	defer done()
	code, err := rt.Stream(ctx, c.id, e, s)
	return code, c.killed(ctx, err)
}

// killed says why a command was killed, if it was because crid ends.
func (c *Container) killed(ctx context.Context, err error) error {
	if err != nil && context.Cause(ctx) == errClosing {
		return fmt.Errorf("exec in %s: the command was killed: %w", c, errClosing)
	}
	return err
}

// execution is a run of cmd in the container, which must be running.
func (c *Container) execution(cmd []string, terminal bool) (Runtime, oci.Exec, error) {
	if state := c.Status().State; state != Running {
		return nil, oci.Exec{}, c.wrongState("exec in", "it is "+string(state))
	}
	rt, err := c.runtime()
	if err != nil {
		return nil, oci.Exec{}, err
	}
	template, err := c.execTemplate()
	if err != nil {
		return nil, oci.Exec{}, err
	}
	process := spec.ExecProcess(&specs.Spec{Process: template}, cmd, terminal)
	return rt, oci.Exec{Process: process, Cgroup: c.plan.Cgroup}, nil
}

// Attach connects s to the container's main process until that or ctx ends: WrongState unless the container runs.
func (c *Container) Attach(ctx context.Context, s monitor.Streams) error {
	if state := c.Status().State; state != Running {
		return c.wrongState("attach to", "it is "+string(state))
	}
	if c.proc == nil {
		return c.wrongState("attach to", "its process was lost; remove it")
	}
	ctx, done := c.m.crew.patient(ctx)
	defer done()
	if err := c.proc.Attach(ctx, s); err != nil {
		return fmt.Errorf("attach to %s: %w", c, err)
	}
	return nil
}

// execTemplate is the container's own process: from memory, or after a restart of crid from its bundle.
func (c *Container) execTemplate() (*specs.Process, error) {
	if known := c.template.Load(); known != nil {
		return known, nil
	}
	if c.proc == nil {
		return nil, c.wrongState("exec in", "its process was lost; remove it")
	}
	raw, err := os.ReadFile(filepath.Join(c.proc.Bundle(), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("exec in %s: read its configuration: %w", c, err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("exec in %s: read its configuration: %w", c, err)
	}
	if s.Process == nil {
		return nil, fmt.Errorf("exec in %s: its configuration has no process: %w", c, errdef.Unavailable)
	}
	c.template.Store(s.Process)
	return s.Process, nil
}

// ReopenLog makes the monitor write to a new log file at the container's log path: WrongState unless it runs.
// An error leaves no new file.
func (c *Container) ReopenLog(ctx context.Context) error {
	if state := c.Status().State; state != Running {
		return c.wrongState("reopen the log of", "it is "+string(state))
	}
	if c.proc == nil {
		return c.wrongState("reopen the log of", "its process was lost; remove it")
	}
	if c.plan.LogPath == "" {
		return c.wrongState("reopen the log of", "it has no log")
	}
	if err := c.proc.ReopenLog(ctx); err != nil {
		return fmt.Errorf("reopen the log of %s: %w", c, err)
	}
	return nil
}

// runtime is the runtime that the container was made with.
func (c *Container) runtime() (Runtime, error) {
	h, ok := c.m.deps.Handlers[c.plan.Handler]
	if !ok {
		return nil, fmt.Errorf("%s: runtime handler %q is no longer configured: %w", c, c.plan.Handler, errdef.Unavailable)
	}
	return h.Runtime, nil
}
