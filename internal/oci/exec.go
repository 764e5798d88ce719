package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

// startTime is what a command has its turn for at most: it takes a runtime 10 to 50 ms to start one, and nobody knows how
// long that runs.
const startTime = 500 * time.Millisecond

// drain is how long output is awaited once a command's main process has ended: what it left running may keep
// the pipes for ever.
const drain = time.Second

// Exec is one process to run inside a running container.
type Exec struct {
	Process *specs.Process // complete: nothing is inherited from crid
	Timeout time.Duration  // 0 = none; at its end the whole tree of the process is killed
	Limit   int            // bytes kept of stdout and of stderr each; the rest is read and dropped
	Cgroup  string         // the container's cgroup, to find what the process started
}

// ExecResult is how an Exec ended.
type ExecResult struct {
	ExitCode       int // 128+n when signal n ended it
	Stdout, Stderr []byte
}

// Exec runs e in the running container id, with /dev/null as its stdin, and returns when its main process has
// ended, at most a second later. An exit code other than 0 is a result; an error says that the command could
// not be run, in the runtime's words (a command that does not exist is such), or wraps context.DeadlineExceeded or
// context.Canceled. Then nothing of the command lives any more, whatever it did to detach itself.
//
// What a command leaves running lives on, save what holds its output when the runtime (runc) copies it and so
// does not end: that is killed a second after the main process ended.
func (r *Runtime) Exec(ctx context.Context, id string, e Exec) (ExecResult, error) {
	stdout, stderr := &capture{limit: e.Limit}, &capture{limit: e.Limit}
	code, err := r.Stream(ctx, id, e, Streams{Stdout: stdout, Stderr: stderr})
	if err != nil {
		return ExecResult{}, err
	}
	return ExecResult{ExitCode: code, Stdout: stdout.kept, Stderr: stderr.kept}, nil
}

// Stream runs e as Exec does, but hands input and output on as they come. It returns when the main process has
// ended and what it wrote has been passed on, however slow the readers are; what the command left running may
// write for a second more. Stdin that is still open does not hold it. The end of ctx kills all of the command.
//
// The start of a command waits for its turn, which its timeout does not count.
func (r *Runtime) Stream(ctx context.Context, id string, e Exec, s Streams) (exitCode int, err error) {
	done, err := r.starts.Take(ctx)
	if err != nil {
		return 0, fmt.Errorf("%s exec in container %s: %w", r.cfg.Name, id, err)
	}
	started := time.AfterFunc(startTime, done)
	ctx, end := r.cfg.Steps.Begin(ctx, step.Step{Kind: step.Exec, Verb: "exec", Part: r.cfg.Name, ID: id})
	defer func() { started.Stop(); done(); end(err) }()
	if e.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, e.Timeout)
		defer cancel()
	}
	if e.Process != nil && e.Process.Terminal {
		return r.streamTerminal(ctx, id, e, s)
	}
	return r.stream(ctx, id, e, s, connectPipes)
}

// stream is Stream with the stdio that connect makes.
func (r *Runtime) stream(ctx context.Context, id string, e Exec, s Streams, connect connector) (exitCode int, err error) {
	x, err := r.startExec(id, e, s, connect)
	if err != nil {
		return 0, fmt.Errorf("%s exec in container %s: %w", r.cfg.Name, id, err)
	}
	code, err := x.result(x.wait(ctx))
	failpoint.Hit("oci/exec/ended")
	if err = errors.Join(err, x.close()); err != nil {
		return 0, fmt.Errorf("%s exec in container %s: %w", r.cfg.Name, id, err)
	}
	return code, nil
}

// execution is a runtime's exec under way.
type execution struct {
	cgroups Cgroups
	cgroup  string
	mark    uint64 // found in the limits of all that the command starts
	cmd     *exec.Cmd
	log     *os.File   // what the runtime has to say; a memfd
	ended   chan error // cmd.Wait's answer
	stdio   *stdio
}

// startExec starts the runtime. The process template and the log are memfds: no file is left behind by a crash.
func (r *Runtime) startExec(id string, e Exec, s Streams, connect connector) (x *execution, err error) {
	mark, err := newMark()
	if err != nil {
		return nil, err
	}
	process, err := processFile(e.Process, mark)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, process.Close()) }()
	log, err := memfd("log")
	if err != nil {
		return nil, err
	}
	x = &execution{cgroups: r.cfg.Cgroups, cgroup: e.Cgroup, mark: mark, log: log, ended: make(chan error, 1)}
	theirs, ours, err := connect(r, s)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	x.stdio = ours
	// ExtraFiles begin at 3: the template, the log, the console socket.
	args := []string{"--root", r.cfg.Root, "--log", "/proc/self/fd/4", "--log-format", "json", "exec", "--process", "/proc/self/fd/3"}
	extra := []*os.File{process, log}
	if ours.socket != nil {
		args, extra = append(args, "--console-socket", "/proc/self/fd/5"), append(extra, ours.socket.file)
	}
	x.cmd = exec.Command(r.cfg.Path, append(args, id)...)
	x.cmd.Env, x.cmd.ExtraFiles = r.cfg.Environment(), extra
	if err := x.start(theirs, s); err != nil {
		return nil, errors.Join(r.reason(context.Background(), err, nil), x.close())
	}
	return x, nil
}

// start runs x.cmd with its stdio connected to s.
func (x *execution) start(theirs ends, s Streams) error {
	terminal := x.stdio.console != nil // of the runtime's own
	x.cmd.SysProcAttr = withCrid(&syscall.SysProcAttr{Setpgid: !terminal, Setsid: terminal, Setctty: terminal})
	// A nil *os.File in an interface is not nil.
	if theirs.stdin != nil {
		x.cmd.Stdin = theirs.stdin
	}
	if theirs.stdout != nil {
		x.cmd.Stdout, x.cmd.Stderr = theirs.stdout, theirs.stderr
	}
	started := make(chan error)
	go func() { // ends with the runtime
		runtime.LockOSThread() // see withCrid
		defer runtime.UnlockOSThread()
		err := x.cmd.Start()
		failpoint.Hit("oci/exec/started")
		started <- err
		if err == nil {
			x.ended <- x.cmd.Wait()
		}
	}()
	if err := errors.Join(<-started, theirs.close()); err != nil {
		return err
	}
	x.stdio.run(s)
	return nil
}

// wait waits for the runtime to end and returns how, or for ctx, and then kills all that the command started.
func (x *execution) wait(ctx context.Context) error {
	check := time.NewTimer(drain)
	defer check.Stop()
	var main *process // once it has been found
	defer func() { main.close() }()
	var gone <-chan struct{}
	for {
		select {
		case err := <-x.ended:
			return err
		case <-ctx.Done():
			return errors.Join(ctx.Err(), x.kill())
		case <-gone:
			gone = nil
			check.Reset(drain)
		case <-check.C:
			var err error
			if main, gone, err = x.look(main); err != nil {
				return errors.Join(err, x.kill())
			}
			if gone == nil {
				check.Reset(drain)
			}
		}
	}
}

// look finds the main process of a command that has lasted a while and returns a channel that is closed when
// it ends. Once it has ended, it kills what keeps the runtime from ending.
func (x *execution) look(known *process) (main *process, gone <-chan struct{}, err error) {
	all, err := x.marked()
	if err != nil {
		return known, nil, err
	}
	defer closeAll(all)
	for i, p := range all {
		if parent(p.pid) == x.cmd.Process.Pid {
			all[i] = nil
			return p, p.gone(), nil
		}
	}
	return known, nil, strike(slices.DeleteFunc(slices.Clone(all), func(p *process) bool { return !keeps(p.pid, x.cmd.Process.Pid) }))
}

// result makes the answer of how the runtime ended. The runtime's exit code is the command's, unless it logged
// an error: then the command did not run.
func (x *execution) result(ended error) (exitCode int, err error) {
	var exit *exec.ExitError
	switch {
	case ended == nil:
	case !errors.As(ended, &exit):
		return 0, ended
	case !exit.Exited():
		return 0, fmt.Errorf("the runtime was killed: %w", ended)
	}
	code := x.cmd.ProcessState.ExitCode()
	came := x.stdio.settle()
	if code != 0 {
		said, err := io.ReadAll(io.NewSectionReader(x.log, 0, tailSize))
		if err != nil {
			return 0, fmt.Errorf("read the runtime's log: %w", err)
		}
		why := Explain(string(said))
		switch {
		case !came:
			return 0, noConsole{errors.New(cmp.Or(why, "the runtime sent no terminal"))}
		case why != "":
			return 0, errors.New(why)
		}
	}
	x.stdio.finish(time.Now().Add(drain))
	return code, nil
}

// close lets go of the stdio and the log. The runtime has ended, or been killed.
func (x *execution) close() error {
	return errors.Join(x.stdio.close(), x.log.Close())
}

// processFile returns a memfd with p, marked, as JSON.
func processFile(p *specs.Process, mark uint64) (*os.File, error) {
	if p == nil {
		return nil, fmt.Errorf("no process to run: %w", errdef.Invalid)
	}
	body, err := json.Marshal(marked(*p, mark))
	if err != nil {
		return nil, fmt.Errorf("write process: %w", err)
	}
	f, err := memfd("process")
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(body); err != nil {
		return nil, errors.Join(fmt.Errorf("write process: %w", err), f.Close())
	}
	return f, nil
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// capture keeps the beginning of what is written to it.
type capture struct {
	limit int
	kept  []byte
}

func (c *capture) Write(p []byte) (int, error) {
	c.kept = append(c.kept, p[:min(len(p), c.limit-len(c.kept))]...)
	return len(p), nil
}
