package monitor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

const (
	// createWait bounds the runtime's `create`, hooks included, whatever the caller's context allows.
	createWait = 4 * time.Minute
	// pipesWait is how long the output of a monitor that was killed is waited for.
	pipesWait = 2 * time.Second
	// maxSocketPath is what a socket's name holds.
	maxSocketPath = 107
)

// The descriptors that a monitor inherits: ExtraFiles begin at 3.
const (
	syncVar  = "_OCI_SYNCPIPE=3"
	startVar = "_OCI_STARTPIPE=4"
)

// Start creates a container under a monitor of its own and returns once the runtime has created it. The error of
// a failed `create` carries the runtime's own message. Whatever the error, also of ctx, Remove(s.ID) undoes what was
// begun, after the caller has killed the cgroups.
//
// The order matters when crid dies in between: a monitor that reads the end of its start pipe goes on, so it finds
// nothing to create unless it is in its cgroup, where it can be found by the id.
//
// Exhausted: the runtime, conmon or crid itself found no space for what it had to write.
func (l *Launcher) Start(ctx context.Context, s Spec) (*Process, error) {
	p, err := l.begin(ctx, s)
	return p, errdef.Told(err)
}

func (l *Launcher) begin(ctx context.Context, s Spec) (_ *Process, err error) {
	if err := l.prepare(s); err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, err)
	}
	done, err := l.turns.Take(ctx)
	if err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, err)
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, createWait)
	defer cancel()
	ctx, end := l.cfg.Steps.Begin(ctx, step.Step{Kind: step.Program, Verb: "create", Part: "conmon", ID: s.ID})
	defer func() { end(err) }()
	failpoint.Hit("monitor/start/dir-made")
	birth, err := l.spawn(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, err)
	}
	failpoint.Hit("monitor/start/forked")
	if err := l.arm(ctx, birth, s); err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, errors.Join(err, birth.abort()))
	}
	failpoint.Hit("monitor/start/armed")
	if err := birth.release(ctx); err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, errors.Join(err, birth.close()))
	}
	failpoint.Hit("monitor/start/in-background")
	pid, err := l.created(ctx, birth, s)
	if err = errors.Join(l.explain(s.ID, err), birth.close()); err != nil {
		return nil, fmt.Errorf("create container %s: %w", s.ID, err)
	}
	failpoint.Hit("monitor/start/created")
	p, err := l.admit(s.ID, pid)
	if err != nil {
		return nil, fmt.Errorf("start monitor of container %s: %w", s.ID, err)
	}
	return p, nil
}

// prepare makes the directories. An existing one belongs to a container that was not removed.
func (l *Launcher) prepare(s Spec) error {
	if strings.Contains(s.LogPath, ":") {
		return fmt.Errorf("log path %q: conmon cannot take a colon: %w", s.LogPath, errdef.Invalid)
	}
	for _, dir := range []string{l.cfg.Dir, l.cfg.ExitDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		failpoint.Hit("monitor/start/parent-made")
	}
	err := os.Mkdir(l.path(s.ID, ""), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", err, errdef.Exists)
	}
	return err
}

// birth is a monitor that waits for its start byte, then for the runtime's `create`.
type birth struct {
	cmd    *exec.Cmd // conmon before it forks into the background
	inside bool      // it was born in its cgroup
	start  *os.File  // ours to write
	sync   *os.File  // ours to read
	output bytes.Buffer
}

// spawn starts a monitor that waits at its start pipe.
func (l *Launcher) spawn(ctx context.Context, s Spec) (*birth, error) {
	syncR, syncW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	startR, startW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, syncR.Close(), syncW.Close())
	}
	b := &birth{start: startW, sync: syncR}
	b.cmd = exec.CommandContext(ctx, l.cfg.Path, l.arguments(s)...)
	b.cmd.Dir = l.path(s.ID, "") // where conmon 2.1.6 leaves its oom file
	b.cmd.Env = append(l.environment(s), syncVar, startVar)
	b.cmd.ExtraFiles = []*os.File{syncW, startR}
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	b.cmd.WaitDelay = pipesWait
	err = errors.Join(l.bear(b, s), syncW.Close(), startR.Close())
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w: install the package conmon, or set its path in crid.toml", err, errdef.Unavailable)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// bear starts the monitor, in its cgroup where that can be.
func (l *Launcher) bear(b *birth, s Spec) error {
	cradle, err := l.cg.Cradle(s.Cgroup)
	if err != nil {
		return err
	}
	if cradle == nil {
		return b.cmd.Start()
	}
	b.inside = true
	b.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cradle.Fd())}
	return errors.Join(b.cmd.Start(), cradle.Close())
}

func (l *Launcher) arguments(s Spec) []string {
	args := []string{
		"--api-version", "1",
		"--cid=" + s.ID, "--cuuid=" + s.ID, "--name=" + s.Name,
		"--runtime=" + s.Runtime,
		"--runtime-arg=--root=" + s.RuntimeRoot,
		"--runtime-arg=--log=" + l.path(s.ID, runtimeLog),
		"--runtime-arg=--log-format=json",
		"--bundle=" + l.path(s.ID, ""),
		"--container-pidfile=" + l.path(s.ID, pidFile),
		"--conmon-pidfile=" + l.path(s.ID, monitorFile),
		"--exit-dir=" + l.cfg.ExitDir,
		"--log-path=" + logArgument(s.LogPath),
		"--no-sync-log", // the kernel writes logs back; fsync stalls exits
		"--full-attach", // the socket lies in the bundle, however long its path
	}
	for flag, wanted := range map[string]bool{
		flagTerminal:       s.Terminal,
		flagStdin:          s.Stdin,
		flagLeaveOpen:      s.Stdin && (!s.StdinOnce || s.Terminal), // a terminal has no end, and clients come back
		"--systemd-cgroup": s.SystemdCgroup,
	} {
		if wanted {
			args = append(args, flag)
		}
	}
	return args
}

// The flags that say how stdin is treated, which Attach finds again.
const (
	flagTerminal  = "--terminal"
	flagStdin     = "--stdin"
	flagLeaveOpen = "--leave-stdin-open"
)

const (
	logDriver = "k8s-file:"
	noLog     = "none"
)

func logArgument(path string) string {
	if path == "" {
		return noLog
	}
	return logDriver + path
}

// environment adds what conmon itself needs to s.Env. Its option parser refuses bytes that the locale does not
// know; the socket that a terminal comes through goes to TMPDIR, hence away with the directory, if its path fits.
func (l *Launcher) environment(s Spec) []string {
	env := append([]string{}, s.Env...)
	env = append(env, "LC_CTYPE=C.UTF-8")
	if dir := l.path(s.ID, ""); len(dir)+len("/conmon-term.XXXXXX") <= maxSocketPath {
		env = append(env, "TMPDIR="+dir)
	}
	return env
}

// arm sees to it that the waiting monitor is in its cgroup and only then gives it something to create.
func (l *Launcher) arm(ctx context.Context, b *birth, s Spec) error {
	if !b.inside {
		if err := l.cg.Enter(ctx, s.Cgroup, b.cmd.Process.Pid); err != nil {
			return err
		}
	}
	return os.WriteFile(l.path(s.ID, configFile), s.Config, 0o600)
}

// release writes the start byte and waits until conmon has gone to the background, its pid file written.
func (b *birth) release(ctx context.Context) error {
	_, err := b.start.Write([]byte{0})
	failpoint.Hit("monitor/start/released")
	err = errors.Join(err, b.cmd.Wait())
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // conmon took long to let go of its stderr
	case err != nil && b.said() != "":
		return errors.New(b.said())
	case err != nil:
		return fmt.Errorf("the monitor, %s, ended before it had begun: %w", b.cmd.Path, err)
	}
	return nil
}

// created waits for the runtime's `create` and returns the pid of the container's main process. A runtime that was
// killed when the container stood already is noticed: conmon waits for the container's output to end then, which it
// does not.
func (l *Launcher) created(ctx context.Context, b *birth, s Spec) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with the wait
		tick := time.NewTicker(aloneCheck)
		defer tick.Stop()
		for alone := 0; alone < aloneChecks; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			alone++
			if !l.alone(s) {
				alone = 0
			}
		}
		cancel(errAlone)
	}()
	pid, err := b.created(ctx)
	if err != nil && context.Cause(ctx) == errAlone {
		err = errAlone
	}
	return pid, err
}

// errAlone is why a creation has failed whose runtime is gone and whose monitor says nothing.
var errAlone = fmt.Errorf("the runtime ended without an answer; was it killed? %w", errdef.Unavailable)

// How often it is looked whether a monitor that gives no answer still has a runtime, and how often it must be alone.
const (
	aloneCheck  = time.Second
	aloneChecks = 3
)

// alone tells whether nobody but the monitor is in its cgroup: the runtime is while it creates, and what it runs.
func (l *Launcher) alone(s Spec) bool {
	monitor, err := readPid(l.path(s.ID, monitorFile))
	if err != nil {
		return false
	}
	pids, err := l.cg.Pids(s.Cgroup)
	return err == nil && slices.Equal(pids, []int{monitor})
}

// created waits for the monitor's answer.
func (b *birth) created(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = b.sync.SetReadDeadline(time.Now()) }) // a pipe takes deadlines
	defer stop()
	var answer struct {
		Data    int    `json:"data"`
		Message string `json:"message"`
	}
	// The message, up to 8 KiB, is the runtime's stderr. Conmon may leave the pipe open: the answer is one line.
	text, err := readLine(b.sync)
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, fmt.Errorf("read from monitor: %w", err)
	case len(text) == 0:
		return 0, errors.New(cmp.Or(b.said(), "the runtime or its monitor failed without a word; was one of them killed?"))
	case json.Unmarshal(text, &answer) != nil:
		return 0, errors.New(string(text))
	case answer.Data <= 0:
		return 0, errors.New(cmp.Or(answer.Message, b.said(), "the runtime failed without a word; was it killed?"))
	}
	return answer.Data, nil
}

// maxAnswer bounds what is read of a monitor's answer: every byte of the 8 KiB may be escaped.
const maxAnswer = 64 << 10

// readLine reads to the end of the line or of the input.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	buf := make([]byte, 4096)
	for len(line) < maxAnswer {
		n, err := r.Read(buf)
		line = append(line, buf[:n]...)
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return line[:end], nil
		}
		if errors.Is(err, io.EOF) {
			return line, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return line, nil
}

// abort ends a monitor that has not been given its start byte: the end of the pipe would start it.
func (b *birth) abort() error {
	_ = b.cmd.Process.Kill() // it may have ended by itself: Wait tells
	err := b.cmd.Wait()
	if errors.As(err, new(*exec.ExitError)) {
		err = nil
	}
	if said := b.said(); said != "" {
		err = errors.Join(errors.New(said), err)
	}
	return errors.Join(err, b.close())
}

func (b *birth) close() error {
	return errors.Join(b.start.Close(), b.sync.Close())
}

// said is what conmon had to say, without its marks of the level. Only after Wait.
func (b *birth) said() string {
	var lines []string
	for line := range strings.Lines(b.output.String()) {
		line = strings.TrimSpace(line)
		for _, mark := range []string{"[conmon:e]: ", "[conmon:e] ", "[conmon:w]: "} {
			line = strings.TrimPrefix(line, mark)
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// explain puts the runtime's own words, from its log, in place of what the monitor passed on.
func (l *Launcher) explain(id string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAlone) {
		return err
	}
	said := ""
	if text, failed := os.ReadFile(l.path(id, runtimeLog)); failed == nil {
		said = l.cfg.Explain(string(text))
	}
	return errors.New(cmp.Or(said, l.cfg.Explain(err.Error()), err.Error()))
}

// admit opens the processes of a container that has just been created, and watches them.
func (l *Launcher) admit(id string, pid int) (*Process, error) {
	p := &Process{id: id}
	monitorPid, err := readPid(l.path(id, monitorFile))
	if err != nil {
		return nil, err
	}
	known := func(start *uint64, same func(stat) bool) func(stat) bool {
		return func(s stat) bool {
			if !same(s) {
				return false
			}
			*start = s.start
			return true
		}
	}
	p.ref = Ref{PID: pid, MonitorPID: monitorPid}
	if p.monitor, err = openPid(monitorPid, known(&p.ref.MonitorStart, l.isMonitor(id, monitorPid))); err != nil {
		return nil, err
	}
	child := func(s stat) bool { return s.parent == monitorPid }
	if p.container, err = openPid(pid, known(&p.ref.Start, child)); err != nil {
		return nil, errors.Join(err, p.monitor.close())
	}
	return p, l.watch(p)
}
