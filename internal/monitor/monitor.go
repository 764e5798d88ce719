// Package monitor starts and finds again the process that outlives crid: conmon, which holds a container's
// stdio, writes its log, serves its attach socket and records its exit. It does not know pods, images or
// the CRI; it is handed a Spec and tells what became of the process.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
	"github.com/crid/crid/internal/turn"
)

// Files of a monitor directory, which is the container's bundle and the monitor's working directory.
const (
	configFile  = "config.json" // what the runtime creates the container from
	pidFile     = "pid"         // of the container's main process, by the runtime
	monitorFile = "monitor.pid" // by the monitor
	runtimeLog  = "runtime.log" // of the runtime's `create`, JSON lines
	controlFile = "ctl"         // FIFO to the monitor
	oomFile     = "oom"         // exists once the monitor has seen the OOM killer
)

// Config says where the monitor's binary is, and where files go. Dir and ExitDir are functions of crid's runroot:
// another crid on it finds the same.
type Config struct {
	Path    string                      // conmon, absolute
	Dir     string                      // one directory for each container
	ExitDir string                      // one file for each container that has ended
	Explain func(written string) string // makes one sentence of what a runtime wrote when it failed; nil = as it is
	Steps   step.Watch                  // told of creations under a monitor; nil = nobody
}

// Cgroups makes cgroups for processes and tells who is in them.
type Cgroups interface {
	Cradle(path string) (*os.File, error) // to be born in; nil where a process has to enter, once it lives
	Enter(ctx context.Context, path string, pid int) error
	Pids(path string) ([]int, error)
}

// Launcher starts monitors and finds them again. It may be used concurrently, but for one id one call at a time.
type Launcher struct {
	cfg        Config
	cg         Cgroups
	reopenWait time.Duration // the constant of that name
	turns      *turn.Stage   // of creations
	stopped    atomic.Pointer[[]StoppedLog]

	mu    sync.Mutex // guards procs; never held across a wait or the disk
	procs map[string]*Process
}

// Spec is one container to create under a monitor of its own. The monitor directory is a function of ID.
type Spec struct {
	ID            string
	Name          string // for the monitor's command line, where ps shows it
	Runtime       string // the runtime's binary, absolute
	RuntimeRoot   string // --root of the runtime
	Config        []byte // config.json; written only once the monitor sits in its cgroup
	LogPath       string // the CRI log file, absolute, in a directory that exists; empty = no log
	Cgroup        string // the monitor's own cgroup (crid-mon-<id>)
	Terminal      bool
	Stdin         bool
	StdinOnce     bool
	SystemdCgroup bool     // the runtime has systemd make the container's cgroup
	Env           []string // the monitor's and the runtime's whole environment
}

// Ref is what a record keeps of a monitored container so that it can be found again and a recycled pid is
// never taken for it: a pid counts only with its start time (field 22 of /proc/PID/stat, clock ticks).
type Ref struct {
	PID          int    `json:"pid"`
	Start        uint64 `json:"start"`
	MonitorPID   int    `json:"monitorPid"`
	MonitorStart uint64 `json:"monitorStart"`
}

// Exit is how a container's main process ended.
type Exit struct {
	Code    int       // 128+n when signal n ended it
	At      time.Time // of the exit record, or of the moment that its absence was noticed
	OOM     bool      // the monitor saw the kernel's OOM killer in the container's cgroup
	Lost    bool      // nobody recorded the exit: Message says why; Code is the kernel's word, else 255
	Message string
}

// createsAtOnce is how many containers are created at the same time for each processor: a runtime's `create` is work for
// one, and hardly waits.
const createsAtOnce = 4

// New returns a Launcher. It does no I/O: Start makes the directories.
func New(cfg Config, cg Cgroups) *Launcher {
	if cfg.Explain == nil {
		cfg.Explain = strings.TrimSpace
	}
	return &Launcher{cfg: cfg, cg: cg, reopenWait: reopenWait, turns: turn.New(createsAtOnce), procs: map[string]*Process{}}
}

// Disarm takes away what a container is created from, so that a monitor that nobody knows of and that now reads
// the end of its start pipe fails at `create`. Repeatable.
func (l *Launcher) Disarm(id string) error {
	err := os.Remove(l.path(id, configFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("disarm monitor of container %s: %w", id, err)
	}
	failpoint.Hit("monitor/disarm/removed")
	return nil
}

// Close lets go of all processes: what Wait waits for is not noticed any more. The processes live on. Repeatable.
func (l *Launcher) Close() error {
	l.mu.Lock()
	procs := l.procs
	l.procs = map[string]*Process{}
	l.mu.Unlock()
	var failed error
	for _, p := range procs {
		failed = errors.Join(failed, p.release())
	}
	return failed
}

func (l *Launcher) path(id, file string) string { return filepath.Join(l.cfg.Dir, id, file) }

func (l *Launcher) exitFile(id string) string { return filepath.Join(l.cfg.ExitDir, id) }

// adopt makes p the process of its id; the one before it, of an earlier Open, is let go.
func (l *Launcher) adopt(p *Process) error {
	l.mu.Lock()
	before := l.procs[p.id]
	l.procs[p.id] = p
	l.mu.Unlock()
	if before != nil {
		return before.release()
	}
	return nil
}

// forget undoes adopt. Whoever still waits for the process hears that it is over.
func (l *Launcher) forget(id string) error {
	l.mu.Lock()
	p := l.procs[id]
	delete(l.procs, id)
	l.mu.Unlock()
	if p == nil {
		return nil
	}
	if !p.look() {
		p.lost("its monitor was removed", nil)
	}
	return p.release()
}
