package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

const (
	pluginDeadline = 2 * time.Minute // of one run of one plugin, besides the caller's
	pluginDrain    = 2 * time.Second // for a killed plugin's children to let go of its pipes
	stdoutLimit    = 4 << 20         // bytes of a result; nothing that plugins answer comes near
	stderrLimit    = 4 << 10         // bytes kept of a plugin's last words
	defaultPath    = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// plugins runs plugin binaries for libcni.
type plugins struct {
	version.PluginDecoder
	steps step.Watch
}

var _ invoke.Exec = (*plugins)(nil)

// pluginError is the failure of one plugin, as it put it.
type pluginError struct {
	plugin  string // its type
	command string // ADD, DEL, ...
	code    uint   // of the CNI specification, 0 when it gave none
	message string
	cause   error // Unavailable, Exhausted, or the context's error
}

func (e *pluginError) Error() string {
	code := ""
	if e.code != 0 {
		code = fmt.Sprintf(" (CNI error %d)", e.code)
	}
	return fmt.Sprintf("plugin %s, %s: %s%s: %v", e.plugin, e.command, e.message, code, e.cause)
}

func (e *pluginError) Unwrap() error { return e.cause }

// pluginFailure strips libcni's wrapping from a plugin's own failure. What came from no plugin is kept.
func pluginFailure(err error) error {
	var p *pluginError
	if errors.As(err, &p) {
		return p
	}
	err = errdef.Told(err) // libcni's own files
	if errors.Is(err, errdef.Unavailable) || errors.Is(err, errdef.Invalid) || errors.Is(err, errdef.Exhausted) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdef.Unavailable)
}

// FindInPath finds the plugin's binary in dirs.
func (x *plugins) FindInPath(plugin string, dirs []string) (string, error) {
	return findPlugin(plugin, dirs)
}

// ExecPlugin runs one plugin to its end. When ctx or the deadline ends first, the plugin's process group is
// killed, so that nothing of it works on behind the error; when crid dies, the plugin does. The environment is environ's CNI_* of the protocol
// and PATH, nothing else.
func (x *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (result []byte, err error) {
	env := protocolEnv(environ)
	ctx, end := x.steps.Begin(ctx, step.Step{Kind: step.Program, Verb: value(env, "CNI_COMMAND"), Part: filepath.Base(path), ID: value(env, "CNI_CONTAINERID")})
	defer func() { end(err) }()
	run, cancel := context.WithTimeout(ctx, pluginDeadline)
	defer cancel()
	cmd := exec.CommandContext(run, path)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(stdin)
	stdout, stderr := &capped{limit: stdoutLimit}, &capped{limit: stderrLimit}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Without crid nobody hears its answer, and what it still does would come behind the next crid's DEL. The signal
	// comes when the thread ends that starts it, so that this goroutine keeps its own.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pluginDrain
	failpoint.Hit("network/plugin/called")
	err = cmd.Run()
	failpoint.Hit("network/plugin/answered")
	if errors.Is(err, exec.ErrWaitDelay) && run.Err() == nil {
		err = nil // it ended well and left a daemon behind that keeps its pipes
	}
	if err == nil && stdout.over {
		err = fmt.Errorf("its result is larger than %d bytes", stdoutLimit)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	failed := &pluginError{plugin: filepath.Base(path), command: value(cmd.Env, "CNI_COMMAND"), cause: errdef.Unavailable}
	switch {
	case ctx.Err() != nil:
		failed.message, failed.cause = "killed", ctx.Err()
	case run.Err() != nil:
		failed.message = fmt.Sprintf("no answer in %s, killed", pluginDeadline)
	default:
		failed.code, failed.message = lastWords(err, stdout.Bytes(), stderr.Bytes())
		if errors.Is(errdef.Told(failed), errdef.Exhausted) {
			failed.cause = errdef.Exhausted
		}
	}
	return nil, failed
}

// lastWords is what a failed plugin had to say: its error object on stdout, and what it wrote to stderr.
func lastWords(err error, stdout, stderr []byte) (code uint, message string) {
	var said types.Error
	switch {
	case json.Unmarshal(stdout, &said) == nil && said.Msg != "":
		message = said.Msg
		if said.Details != "" {
			message += ": " + said.Details
		}
	case len(bytes.TrimSpace(stdout)) > 0:
		message = fmt.Sprintf("%v, answered %q", err, clip(stdout))
	default:
		message = err.Error()
	}
	if note := bytes.TrimSpace(stderr); len(note) > 0 {
		message += fmt.Sprintf(" (stderr: %s)", clip(note))
	}
	return said.Code, message
}

func clip(b []byte) []byte { return b[:min(len(b), stderrLimit)] }

// protocolEnv keeps of environ what a plugin is promised. libcni hands over crid's whole environment.
func protocolEnv(environ []string) []string {
	keep := []string{"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_ARGS", "CNI_IFNAME", "CNI_PATH", "PATH"}
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if slices.Contains(keep, name) {
			env = append(env, kv)
		}
	}
	if value(env, "PATH") == "" {
		env = append(env, "PATH="+defaultPath)
	}
	return env
}

func value(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// capped keeps the first limit bytes written to it and swallows the rest, so that the writer never blocks.
type capped struct {
	bytes.Buffer
	limit int
	over  bool // more was written than kept
}

func (c *capped) Write(p []byte) (int, error) {
	room := max(c.limit-c.Len(), 0)
	if len(p) > room {
		c.over = true
		c.Buffer.Write(p[:room])
		return len(p), nil
	}
	return c.Buffer.Write(p)
}
