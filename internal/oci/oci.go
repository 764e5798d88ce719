// Package oci runs an OCI runtime's binary (crun, runc, runsc): one method for each of its verbs. It does
// not know pods or images, keeps no state of containers, and never decides when a verb is due.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
	"github.com/crid/crid/internal/turn"
)

// How long a verb may take before its process is killed, whatever the caller's context allows. Hooks run
// inside start and delete.
const (
	slowVerb  = 2 * time.Minute
	quickVerb = 30 * time.Second
)

// Config is one [runtimes.NAME] table: which binary, and where it keeps its state.
type Config struct {
	Name    string     // the handler's name
	Path    string     // the binary, absolute
	Root    string     // --root of the binary: stable across restarts of crid
	Cgroups Cgroups    // where Exec looks for what a timed out command has started
	Steps   step.Watch // told of verbs and commands; nil = nobody
}

// Cgroups reads control groups.
type Cgroups interface {
	Pids(path string) ([]int, error) // of the cgroup and those below it; absent = none
}

// Runtime runs the verbs of one runtime binary. It may be used concurrently.
type Runtime struct {
	cfg    Config
	way    atomic.Int32 // how it gives commands terminals
	turns  *turn.Stage  // of verbs, but exec
	starts *turn.Stage  // of exec's commands
}

// verbsAtOnce is how many verbs run at the same time for each processor.
const verbsAtOnce = 4

// New returns the driver of the binary that cfg names.
func New(cfg Config) *Runtime {
	return &Runtime{cfg: cfg, turns: turn.New(verbsAtOnce), starts: turn.New(verbsAtOnce)}
}

// Config returns what the Runtime was made with.
func (r *Runtime) Config() Config { return r.cfg }

// Start runs the user's program in the created container id.
func (r *Runtime) Start(ctx context.Context, id string) error {
	_, err := r.run(ctx, call{verb: "start", args: []string{id}, limit: slowVerb})
	return err
}

// Delete removes what the runtime holds of container id, killing it first when force is set. An absent
// container is fine.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	args := []string{id}
	if force {
		args = []string{"--force", id}
	}
	_, err := r.run(ctx, call{verb: "delete", args: args, limit: slowVerb})
	if err == nil {
		return r.sweep(id)
	}
	if r.absent(id) {
		return nil
	}
	return err
}

// sweep removes what the runtime left of the deleted container id: runc before 1.2 cannot remove a directory in
// which it left a copy of itself mounted when it was killed, and yet says that it has.
func (r *Runtime) sweep(id string) error {
	if id == "" || filepath.Base(id) != id {
		return nil // names no directory of ours
	}
	dir := filepath.Join(r.cfg.Root, id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, detach(filepath.Join(dir, e.Name())))
	}
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("%s delete of container %s: clear its state: %w", r.cfg.Name, id, err)
	}
	return nil
}

// detach unmounts path if something is mounted there.
func detach(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// clonePrefix begins the names of crun's copies of itself.
const clonePrefix = "crun."

// Tidy removes what runtimes and a crid that were killed left in the runtime's root: console sockets in the moment that they
// have a name, and crun's copies of itself. A crun that loses its own has another way.
func (r *Runtime) Tidy() error {
	entries, err := os.ReadDir(r.cfg.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(r.cfg.Root, e.Name())
		if strings.HasPrefix(e.Name(), clonePrefix) && !e.IsDir() {
			err = errors.Join(err, detach(path))
			failpoint.Hit("oci/tidy/unmounted")
		} else if !strings.HasPrefix(e.Name(), consolePrefix) {
			continue
		}
		err = errors.Join(err, os.Remove(path))
		failpoint.Hit("oci/tidy/removed")
	}
	if err != nil {
		return fmt.Errorf("tidy the root of %s: %w", r.cfg.Name, err)
	}
	return nil
}

// State asks the runtime what it knows of container id; errdef.NotFound when it knows nothing.
func (r *Runtime) State(ctx context.Context, id string) (specs.State, error) {
	out, err := r.run(ctx, call{verb: "state", args: []string{id}, limit: quickVerb})
	if err != nil && r.absent(id) {
		return specs.State{}, fmt.Errorf("%w: %w", err, errdef.NotFound)
	}
	if err != nil {
		return specs.State{}, err
	}
	var state specs.State
	if err := json.Unmarshal(out, &state); err != nil {
		return specs.State{}, fmt.Errorf("read state of container %s from %s: %w", id, r.cfg.Name, err)
	}
	return state, nil
}

// Update changes the limits of the running container id. Fields of res that are nil stay as they are.
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	body, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("write resources of container %s: %w", id, err)
	}
	_, err = r.run(ctx, call{verb: "update", args: []string{"--resources", "-", id}, stdin: body, limit: quickVerb})
	return err
}

// absent tells whether the runtime keeps nothing of container id. Asked only after a verb failed: messages
// differ between runtimes and versions, the layout of --root (names that start with the id) does not.
func (r *Runtime) absent(id string) bool {
	entries, err := os.ReadDir(r.cfg.Root)
	if err != nil {
		return os.IsNotExist(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), id) {
			return false
		}
	}
	return true
}
