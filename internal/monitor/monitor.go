// Package monitor starts and finds again the process that outlives crid: conmon, which holds a container's
// stdio, writes its log, serves its attach socket and records its exit. It does not know pods, images or
// the CRI; it is handed a Spec and tells what became of the process.
package monitor

import "time"

// Spec is one container to create under a monitor of its own. The monitor directory is a function of ID.
type Spec struct {
	ID            string
	Name          string // for the monitor's command line, where ps shows it
	Runtime       string // the runtime's binary, absolute
	RuntimeRoot   string // --root of the runtime
	Config        []byte // config.json; written only once the monitor sits in its cgroup
	LogPath       string // the CRI log file, absolute; empty = no log
	Cgroup        string // the monitor's own cgroup (crid-mon-<id>)
	Terminal      bool
	Stdin         bool
	StdinOnce     bool
	SystemdCgroup bool
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
	Lost    bool      // nobody recorded the exit: Code is a guess and Message says why
	Message string
}
