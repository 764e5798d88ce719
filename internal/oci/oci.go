// Package oci runs an OCI runtime's binary (crun, runc, runsc): one method for each of its verbs. It does
// not know pods or images, keeps no state of containers, and never decides when a verb is due.
package oci

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is one [runtimes.NAME] table: which binary, and where it keeps its state.
type Config struct {
	Name string // the handler's name
	Path string // the binary, absolute
	Root string // --root of the binary: stable across restarts of crid
	Dir  string // pid files of execs, under runroot
}

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
