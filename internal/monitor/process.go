package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

const (
	// recordWait is how long a living monitor may take to record an exit: it first drains the log. An exit is told ten
	// seconds after it at the latest.
	recordWait = 8 * time.Second
	// deathWait is how long a container that lost its monitor may take to die of SIGKILL before its exit is published.
	deathWait = 90 * time.Millisecond
	// codeUnknown is the exit code when nobody knows it.
	codeUnknown = 255
)

// Process is a container's main process and its monitor. Its methods may be used concurrently.
type Process struct {
	id       string
	launcher *Launcher
	ref      Ref

	container, monitor         *pidfd        // nil = was gone when opened
	containerGone, monitorGone chan struct{} // closed when the process has ended
	reopening                  chan struct{} // holds one token while a log is reopened
	commanding                 chan struct{} // holds one token while a command is written to the monitor
	hub                        hub           // of those who are attached

	settle sync.Once     // writes exit
	exit   Exit          // valid once done is closed
	done   chan struct{} // closed when the exit is known

	letGo    sync.Once
	released chan struct{} // closed when nobody watches any more
}

// Open finds the container id again after a restart of crid. Processes that have ended meanwhile are fine: Wait
// then tells the same as it would have told before.
func (l *Launcher) Open(id string, ref Ref) (*Process, error) {
	monitor, err := openPid(ref.MonitorPID, startedAt(ref.MonitorStart))
	if err != nil {
		return nil, fmt.Errorf("find monitor of container %s: %w", id, err)
	}
	container, err := openPid(ref.PID, startedAt(ref.Start))
	if err != nil {
		return nil, fmt.Errorf("find process of container %s: %w", id, errors.Join(err, monitor.close()))
	}
	p := &Process{id: id, ref: ref, monitor: monitor, container: container}
	if err := l.watch(p); err != nil {
		return nil, fmt.Errorf("watch container %s: %w", id, err)
	}
	return p, nil
}

// watch begins to watch p, whose pidfds are open, and looks whether it has ended already.
func (l *Launcher) watch(p *Process) error {
	p.launcher = l
	p.containerGone, p.monitorGone, p.done = make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.reopening, p.commanding, p.released = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	if err := l.adopt(p); err != nil {
		return err
	}
	p.look()
	go p.await(p.container, p.containerGone, p.unrecorded) // ends with the container, or at release
	go p.await(p.monitor, p.monitorGone, p.orphaned)       // ends with the monitor, or at release
	return nil
}

// await waits for the end of one of the two processes and then calls then.
func (p *Process) await(proc *pidfd, gone chan struct{}, then func()) {
	if proc != nil && proc.wait() != nil {
		return // released
	}
	close(gone)
	then()
}

// orphaned is called when the monitor has ended, which it does once it has recorded the container's exit. If it
// has not, the container has lost its log and stdio and is about to choke on them: it is ended.
func (p *Process) orphaned() {
	if p.look() {
		return
	}
	var why error
	if p.container != nil {
		why = p.container.signal(syscall.SIGKILL)
		select {
		case <-p.containerGone:
		case <-p.released:
		case <-time.After(deathWait):
		}
	}
	p.lost("its monitor ended without recording the exit", why)
}

// unrecorded is called when the container has ended.
func (p *Process) unrecorded() {
	timer := time.NewTimer(recordWait)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-p.released:
	case <-p.monitorGone: // orphaned does the rest
	case <-timer.C:
		if !p.look() {
			p.lost(fmt.Sprintf("its monitor did not record the exit in %v", recordWait), nil)
		}
	}
}

// look publishes the recorded exit, if there is one.
func (p *Process) look() bool {
	exit, found := p.launcher.recorded(p.id)
	if found {
		p.publish(exit)
	}
	return found
}

// recorded reads the exit record of container id. One that cannot be read is one that the monitor could not write.
func (l *Launcher) recorded(id string) (Exit, bool) {
	path := l.exitFile(id)
	text, err := os.ReadFile(path)
	if err != nil {
		return Exit{}, false
	}
	info, err := os.Stat(path)
	if err != nil {
		return Exit{}, false
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || code < 0 || code > 255 { // conmon writes -1 when it did not learn the code
		return Exit{}, false
	}
	_, err = os.Stat(l.path(id, oomFile))
	return Exit{Code: code, At: info.ModTime(), OOM: err == nil}, true
}

// lost publishes an exit that nobody recorded.
func (p *Process) lost(message string, more error) {
	exit := Exit{Code: codeUnknown, At: time.Now(), Lost: true, Message: "container lost: " + message}
	if p.container != nil && p.container.ended() {
		if code, known := p.container.exitCode(); known {
			exit.Code = code
		}
	}
	if more != nil {
		exit.Message += ": " + more.Error()
	}
	if record := p.launcher.exitFile(p.id); isFull(record) {
		exit.Message += ": there is no space for " + record
	}
	_, err := os.Stat(p.launcher.path(p.id, oomFile))
	exit.OOM = err == nil
	p.publish(exit)
}

func (p *Process) publish(exit Exit) {
	p.settle.Do(func() {
		p.exit = exit
		close(p.done)
	})
}

// Ref returns what a record keeps of the process.
func (p *Process) Ref() Ref { return p.ref }

// Bundle returns the container's bundle, which is its monitor directory.
func (p *Process) Bundle() string { return filepath.Dir(p.launcher.path(p.id, configFile)) }

// Wait returns how the main process ended once it has: when the monitor has recorded it, and so the log is
// complete; within 100 ms when the monitor died, in which case the main process is killed; or 8 s after the main
// process ended while its monitor lives and records nothing.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for container %s: %w", p.id, ctx.Err())
	}
}

// Signal sends sig to the main process. One that has ended is fine.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.container == nil {
		return nil
	}
	if err := p.container.signal(sig); err != nil {
		return fmt.Errorf("send %v to container %s: %w", sig, p.id, err)
	}
	return nil
}

// Alive tells whether the main process lives.
func (p *Process) Alive() bool { return p.container != nil && !p.container.ended() }

// arguments returns the monitor's command line: WrongState when it has ended, be it while it was read.
func (p *Process) arguments() ([]string, error) {
	if p.monitor == nil {
		return nil, errNotRunning
	}
	args, err := commandLine(p.monitor.pid)
	if p.monitor.ended() {
		return nil, errNotRunning // what was read is nobody's, or another's
	}
	if err != nil {
		return nil, fmt.Errorf("read command line of the monitor: %w", err)
	}
	return args, nil
}

var errNotRunning = fmt.Errorf("the container is not running: %w", errdef.WrongState)

// release closes the pidfds, which ends the goroutines. Repeatable.
func (p *Process) release() error {
	p.letGo.Do(func() { close(p.released) })
	return errors.Join(p.hub.close(), p.container.close(), p.monitor.close())
}

// Remove ends the monitor of container id if it lives, and removes its directory and exit files; the id alone
// suffices, and it may be repeated. The caller has killed the container and its cgroups before, or the runtime's
// `create` dies with the monitor.
func (l *Launcher) Remove(ctx context.Context, id string) error {
	monitor, err := l.findMonitor(id)
	if err != nil {
		return fmt.Errorf("find monitor of container %s: %w", id, err)
	}
	if monitor != nil {
		err = errors.Join(monitor.signal(syscall.SIGKILL), monitor.waitFor(ctx), monitor.close())
	}
	if err != nil {
		return fmt.Errorf("end monitor of container %s: %w", id, err)
	}
	failpoint.Hit("monitor/remove/killed")
	if path := l.interrupted(id); path != "" {
		// What cannot be put in order is not worth a container that cannot be removed: whoever removes its log has no use for it.
		_, _ = (&Process{id: id, launcher: l}).reconcile(path)
	}
	if err := l.forget(id); err != nil { // after which the exit record may go
		return fmt.Errorf("let go of container %s: %w", id, err)
	}
	// A monitor that was killed while it wrote the record left a temporary file.
	files, err := filepath.Glob(l.exitFile(id) + ".*")
	if err != nil {
		return fmt.Errorf("find exit files of container %s: %w", id, err)
	}
	err = os.RemoveAll(filepath.Join(l.cfg.Dir, id))
	failpoint.Hit("monitor/remove/dir-removed")
	for _, f := range append(files, l.exitFile(id)) {
		if failed := os.Remove(f); !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
		failpoint.Hit("monitor/remove/exit-removed")
	}
	if err != nil {
		return fmt.Errorf("remove monitor files of container %s: %w", id, err)
	}
	return nil
}

// waitFor is wait bounded by ctx. The pidfd must not be in use elsewhere.
func (p *pidfd) waitFor(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Now()) }) // a pidfd takes deadlines
	defer stop()
	err := p.wait()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("process %d survived SIGKILL: %w", p.pid, ctx.Err())
	}
	return err
}

// Find returns what container id was created from, nil when that is gone, and whether its monitor lives. The id alone
// suffices, for containers that no record tells of.
func (l *Launcher) Find(id string) (config []byte, about bool) {
	config, err := os.ReadFile(l.path(id, configFile))
	if err != nil {
		config = nil
	}
	monitor, err := l.findMonitor(id)
	if err != nil || monitor == nil {
		return config, false
	}
	about = !monitor.ended()
	_ = monitor.close() // nothing was written
	return config, about
}

// findMonitor opens the monitor of container id by its pid file; nil when it is gone.
func (l *Launcher) findMonitor(id string) (*pidfd, error) {
	pid, err := readPid(l.path(id, monitorFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return openPid(pid, l.isMonitor(id, pid))
}

// isMonitor knows the monitor of container id by its command line: its start time is in no file.
func (l *Launcher) isMonitor(id string, pid int) func(stat) bool {
	return func(s stat) bool {
		args, err := commandLine(pid)
		if err != nil || s.zombie {
			return false
		}
		for _, arg := range args {
			if arg == "--cid="+id {
				return true
			}
		}
		return false
	}
}

func readPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read pid from %s: %w", path, err)
	}
	return pid, nil
}
