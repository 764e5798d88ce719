// Package ns makes namespaces that live without a process, pinned by bind mounts, and takes them away again.
// It does not know pods, runtimes or networks: it is handed an id and what to make for it.
package ns

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
)

// Want says which namespaces to make for an id and what to write inside them before anybody enters.
type Want struct {
	Net, IPC, UTS bool
	Users         fact.IDMap        // of a user namespace, which owns the others; none: the host's owns them
	Hostname      string            // written into the new UTS namespace; ignored without UTS
	Sysctls       map[string]string // dotted name to value, written from inside the new namespaces; a slash is a dot in a word
}

// Set names the pins of an id as host paths; a namespace that was not made has the empty path.
type Set struct {
	Net  string `json:"net,omitempty"`
	IPC  string `json:"ipc,omitempty"`
	UTS  string `json:"uts,omitempty"`
	User string `json:"user,omitempty"`
}

// pins yields the namespaces of the set that have a path: their name in /proc/PID/ns and that path.
func (s Set) pins() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, pin := range [...][2]string{{"net", s.Net}, {"ipc", s.IPC}, {"uts", s.UTS}, {"user", s.User}} {
			if pin[1] != "" && !yield(pin[0], pin[1]) {
				return
			}
		}
	}
}

// netPrefix starts the names of our network namespaces, which share a directory with those of others.
const netPrefix = "crid-"

// Pinner makes and removes pins below two directories. It keeps no record of them: everything follows from the
// id and from what is found on disk. It may be used concurrently.
type Pinner struct {
	netDir string // the network namespaces: <netDir>/crid-<id>
	dir    string // the others: <dir>/ipc/<id>, <dir>/uts/<id>, <dir>/user/<id>

	// mounting is held while a directory is looked at and made a mount of itself, so that it does not become
	// two, one on the other. Nothing but those mount calls happens under it.
	mounting sync.Mutex
}

// New returns a Pinner that pins network namespaces below netDir, which it shares with the host's other tools
// as `ip netns` does, and all others below dir, which is its own. It does no I/O.
func New(netDir, dir string) *Pinner {
	return &Pinner{netDir: netDir, dir: dir}
}

// Paths returns where Pin puts the namespaces of id that w asks for. It does no I/O.
func (p *Pinner) Paths(id string, w Want) Set {
	set, all := Set{}, p.all(id)
	if w.Net {
		set.Net = all.Net
	}
	if w.IPC {
		set.IPC = all.IPC
	}
	if w.UTS {
		set.UTS = all.UTS
	}
	if !w.Users.None() {
		set.User = all.User
	}
	return set
}

// all is every pin that id may have.
func (p *Pinner) all(id string) Set {
	return Set{
		Net:  filepath.Join(p.netDir, netPrefix+id),
		IPC:  filepath.Join(p.dir, "ipc", id),
		UTS:  filepath.Join(p.dir, "uts", id),
		User: filepath.Join(p.dir, "user", id),
	}
}

// Pin makes the namespaces that w asks for, writes the sysctls and the hostname from inside them, and only then
// makes them known by their paths. When it fails, none of the paths is left.
//
// The context is looked at between the steps; Pin does not return while the kernel is still at work on one, since
// a pin that appears after the answer would be nobody's.
//
// The range of net.ipv4.ping_group_range is meant in the ids of the pod; what lies beyond the user namespace's map is
// cut off.
//
// Errors: Invalid for an id that is no file name, a hostname that is too long, a sysctl that belongs to none of
// the new namespaces, does not exist or refuses its value (the error names it), and a map that the kernel refuses;
// Exists when id is pinned already; Exhausted when the kernel gives no more namespaces.
func (p *Pinner) Pin(ctx context.Context, id string, w Want) (Set, error) {
	set, err := p.pin(ctx, id, w)
	if err != nil {
		return Set{}, fmt.Errorf("pin namespaces of %s: %w", id, err)
	}
	return set, nil
}

func (p *Pinner) pin(ctx context.Context, id string, w Want) (Set, error) {
	if err := checkID(id); err != nil {
		return Set{}, err
	}
	if err := checkSysctls(w); err != nil {
		return Set{}, err
	}
	set := p.Paths(id, w)
	if set == (Set{}) {
		return set, nil
	}
	if err := p.prepare(w); err != nil {
		return Set{}, err
	}
	if err := ctx.Err(); err != nil {
		return Set{}, err
	}
	if !w.Users.None() {
		return set, pinOwned(ctx, w, set)
	}
	return set, inNew(unsharing(w.flags()), func() error {
		if err := furnish(w); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return bindAll("/proc/thread-self/ns", set)
	})
}

// Unpin takes away every pin of id. The namespaces live on while a process is in them. Pins that are not there,
// for whatever reason, are no error, so it may be repeated.
func (p *Pinner) Unpin(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("unpin namespaces of %s: %w", id, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("unpin namespaces of %s: %w", id, err)
	}
	var failed []error
	for _, path := range p.all(id).pins() {
		failed = append(failed, unbind(path))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("unpin namespaces of %s: %w", id, err)
	}
	return nil
}

// checkID refuses ids that would lead out of the directories.
func checkID(id string) error {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("id %q is no file name: %w", id, errdef.Invalid)
	}
	return nil
}

// flags returns what w asks for as unshare(2) takes it.
func (w Want) flags() int {
	flags := 0
	if w.Net {
		flags |= unix.CLONE_NEWNET
	}
	if w.IPC {
		flags |= unix.CLONE_NEWIPC
	}
	if w.UTS {
		flags |= unix.CLONE_NEWUTS
	}
	return flags
}

// furnish writes what w says into the namespaces of the calling thread, which must be new.
func furnish(w Want) error {
	if w.UTS && w.Hostname != "" {
		if err := unix.Sethostname([]byte(w.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", w.Hostname, invalidIf(err, unix.EINVAL))
		}
	}
	err := writeSysctls(w)
	failpoint.Hit("ns/pin/furnished")
	return err
}

// invalidIf gives err the kind Invalid when it is one of those errors.
func invalidIf(err error, those ...error) error {
	for _, e := range those {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", errdef.Invalid, err)
		}
	}
	return err
}
