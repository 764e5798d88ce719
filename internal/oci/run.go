package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

// afterKill is how long a killed runtime's pipes are waited for: a hook may have inherited them.
const afterKill = 2 * time.Second

// Environment is a runtime's whole environment: nothing of crid's may reach it, or its containers (runc would
// hand them NOTIFY_SOCKET). Hooks find their programs by PATH.
func (c Config) Environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", cloneVar + "=" + c.Root}
}

// cloneVar tells crun where it mounts the copy of itself that it runs from (its cloned_binary.c). Of its own accord that is
// /tmp, where one that is killed in that moment leaves a mount for good; in the root Tidy finds it.
const cloneVar = "_LIBCONTAINER_STATEDIR"

// call is one run of the binary.
type call struct {
	verb  string
	args  []string
	stdin []byte // nil = /dev/null
	limit time.Duration
}

// run runs the binary for c and returns its stdout. The error carries the runtime's own message.
func (r *Runtime) run(ctx context.Context, c call) ([]byte, error) {
	done, err := r.turns.Take(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s %s of container %s: %w", r.cfg.Name, c.verb, c.args[len(c.args)-1], err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	args := append([]string{"--root", r.cfg.Root, "--log-format", "json", c.verb}, c.args...)
	cmd := exec.CommandContext(ctx, r.cfg.Path, args...)
	cmd.Env = r.cfg.Environment()
	cmd.WaitDelay = afterKill
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if c.stdin != nil {
		cmd.Stdin = bytes.NewReader(c.stdin)
	}
	failpoint.Hit("oci/run/called")
	_, end := r.cfg.Steps.Begin(ctx, step.Step{Kind: step.Program, Verb: c.verb, Part: r.cfg.Name, ID: c.args[len(c.args)-1]})
	runtime.LockOSThread() // see withCrid
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = withCrid(&syscall.SysProcAttr{})
	err = cmd.Run()
	failpoint.Hit("oci/run/answered")
	// A hook that keeps the pipes says nothing about the verb, which has succeeded.
	if err == nil || (errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil) {
		end(nil)
		return stdout.bytes(), nil
	}
	err = r.reason(ctx, err, stderr.bytes())
	end(err)
	return nil, fmt.Errorf("%s %s of container %s: %w", r.cfg.Name, c.verb, c.args[len(c.args)-1], err)
}

// withCrid lets a runtime die with crid: nobody would hear from it, and what it still did would come behind what the next
// crid finds out and undoes. The signal comes when the thread ends that started it: the caller keeps its own until the
// runtime has ended.
func withCrid(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	attr.Pdeathsig = syscall.SIGKILL
	return attr
}

// reason makes one error of how a run of the binary ended: ctx is the run's.
func (r *Runtime) reason(ctx context.Context, err error, stderr []byte) error {
	said := Explain(string(stderr))
	switch {
	case ctx.Err() != nil && said != "":
		return fmt.Errorf("%w: %s", ctx.Err(), said)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrPermission):
		return missing(r.cfg.Path, err)
	case said != "":
		return errdef.Told(errors.New(said))
	}
	return err
}

// missing says which package brings the binary at path.
func missing(path string, err error) error {
	hint := "install it, or check the handler's path in crid.toml"
	if name := filepath.Base(path); name == "crun" || name == "runc" {
		hint = "install the package " + name + ", or check the handler's path in crid.toml"
	}
	// Only the cause: the path has been named.
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		err = cause.Err
	}
	return fmt.Errorf("runtime %s: %w: %w: %s", path, err, errdef.Unavailable, hint)
}

// preambles are what runc puts before a message; they say nothing that the call does not.
var preambles = [...]string{"runc create failed: ", "runc run failed: ", "exec failed: ", "unable to start container process: ", "OCI runtime error: "}

// Explain makes one sentence of what a runtime wrote to its log or its stderr when it failed: the last error
// among the JSON lines of --log-format json, without the runtime's preamble, else the last lines as they are.
func Explain(written string) string {
	var said string
	var plain []string
	for line := range strings.Lines(written) {
		var entry struct{ Level, Msg string }
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case json.Unmarshal([]byte(line), &entry) != nil:
			plain = append(plain, line)
		case entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic":
			said = entry.Msg
		}
	}
	if said == "" {
		said = strings.Join(plain[max(0, len(plain)-4):], "; ")
	}
	for _, p := range preambles {
		said = strings.TrimPrefix(said, p)
	}
	return strings.TrimSpace(said)
}

// tail keeps the last tailSize bytes written to it.
type tail struct{ kept []byte }

const tailSize = 1 << 20

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte { return t.kept }

// signaled tells which signal ended a process, 0 for none.
func signaled(err error) syscall.Signal {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return status.Signal()
		}
	}
	return 0
}
