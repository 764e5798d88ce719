// Package sandbox keeps pods: what the containers of a pod share (namespaces, network, files, cgroup parent,
// perhaps a PID namespace), from the first record to the last. It does not know how containers are made or
// how a request arrived: it hands a pod's environment out as a value, and tells the container room by pod id
// when the containers must go.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/state"
	"github.com/crid/crid/internal/step"
)

// Store keeps records of one type durably; *state.Dir is one. Open the one for pods with RecordVersion and
// the one for tombstones with TombstoneVersion.
type Store[T any] interface {
	Put(id string, rec T) error  // whole or not at all
	Keep(id string, rec T) error // an error is no more than a warning: it is stored once the disk takes it
	Delete(id string) error      // absent is fine
	All() iter.Seq2[state.Entry[T], error]
}

// Namespaces pins namespaces under an id and unpins them; *ns.Pinner is one.
type Namespaces interface {
	Pin(ctx context.Context, id string, w ns.Want) (ns.Set, error) // all or nothing
	Unpin(ctx context.Context, id string) error                    // repeatable, from the id alone
	Paths(id string, w ns.Want) ns.Set                             // pure
}

// Network attaches pods to the host's networks; *network.CNI is one.
type Network interface {
	Prepare(r network.Request) (network.Request, error) // errdef.Unavailable when there is no network; no I/O
	Add(ctx context.Context, r network.Request) (network.Attachment, error)
	Del(ctx context.Context, r network.Request) error // safe after an Add that failed or never was
	Recall(id string) ([]network.Request, error)      // what was added for id, for pods without a readable record
}

// Cgroups makes the default parent and takes it away; *cgroup.Tree is one.
type Cgroups interface {
	Create(path string) error      // existing is fine
	RemoveEmpty(path string) error // not empty is fine
}

// Containers runs and ends what is in a pod; *container.Manager is one. The pause is one of a pod's containers,
// recorded with intent like any; its end is told to Manager.PauseExited.
type Containers interface {
	StopPod(ctx context.Context, podID string) error   // kills at once, in parallel; repeatable, no containers is fine
	RemovePod(ctx context.Context, podID string) error // the same for what is left of them

	// StartPause returns the path of the pod's shared PID namespace once its pause runs.
	StartPause(ctx context.Context, env spec.PodEnv) (pidns string, err error)
	// FindPause tells what became of the pause during a restart of crid.
	FindPause(podID string) (pidns string, started, dead bool)
}

// Labels gives pods SELinux labels that keep them apart; without SELinux they are empty. Each label that is reserved or
// taken again is released once.
type Labels interface {
	Reserve(options *runtime.SELinuxOption) (fact.Labels, error)
	Retake(l fact.Labels) error // of a pod that was there before crid started
	Release(l fact.Labels)
}

// Events hears what happens to pods; *event.Bus[event.Event] is one. Publish never blocks.
type Events interface {
	Publish(e event.Event)
}

// Config is what an operator decides, and what the host is. Zero durations mean the defaults of New.
type Config struct {
	BootID       string            // of the running kernel: records of another one describe what is gone
	Sysctls      map[string]string // default sysctls; a pod's own win; not for host-network pods
	CgroupParent string            // for pods that name none; absolute within the hierarchy
	Cgroups      cgroup.Names      // what clients may name
	OwnParent    bool              // CgroupParent is crid's own: Load makes it, Close removes it when empty

	CreateTimeout time.Duration // RunPodSandbox, its undo not counted; 4 min
	StopTimeout   time.Duration // killing a pod's containers; 1 min
	DelTimeout    time.Duration // one CNI DEL; 30 s
	UndoTimeout   time.Duration // taking away all that a pod has; 3 min

	Hostname func() (string, error) // the host's; os.Hostname
}

// Deps is what pods are made of.
type Deps struct {
	Config     Config
	Records    Store[Record]
	Tombstones Store[Tombstone]
	Namespaces Namespaces
	Network    Network
	Cgroups    Cgroups
	Containers Containers
	Files      Files
	Labels     Labels
	Events     Events
	Steps      step.Watch   // told of operations and their stages; nil = nobody
	Log        *slog.Logger // slog.Default()
}

// Manager knows every pod.
type Manager struct {
	deps Deps

	mu     sync.Mutex // guards the maps, blind, closed, and Pod.ops: for map access only, nothing waits under it
	pods   map[string]*Pod
	keys   map[Key]*Pod
	ops    map[*operation]struct{}
	graves map[string]Tombstone
	blind  []error // why Load may not have seen all pods and tombstones; does not change afterwards
	closed bool

	closing chan struct{}  // closed by Close
	digging chan struct{}  // a token for each tombstone that is retried at once
	work    sync.WaitGroup // operations and tombstones; Close waits for it
}

// New makes a manager without pods; it does no I/O. Load must be called before anything else.
func New(deps Deps) *Manager {
	c := &deps.Config
	c.CreateTimeout = orDefault(c.CreateTimeout, 4*time.Minute)
	c.StopTimeout = orDefault(c.StopTimeout, time.Minute)
	c.DelTimeout = orDefault(c.DelTimeout, 30*time.Second)
	c.UndoTimeout = orDefault(c.UndoTimeout, 3*time.Minute)
	if c.Hostname == nil {
		c.Hostname = os.Hostname
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	return &Manager{
		deps:    deps,
		pods:    map[string]*Pod{},
		keys:    map[Key]*Pod{},
		ops:     map[*operation]struct{}{},
		graves:  map[string]Tombstone{},
		closing: make(chan struct{}),
		digging: make(chan struct{}, diggers),
	}
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// List returns the pods that are ready or not ready, in no order. Pods being created are in InFlight, those
// whose record cannot be read in Unreadable.
func (m *Manager) List() []*Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Pod, 0, len(m.pods))
	for _, p := range m.pods {
		if p.broken == nil && p.rec.Load().State != Creating {
			all = append(all, p)
		}
	}
	return all
}

// Get returns the pod with this id, or the only one whose id begins so: errdef.NotFound when there is none,
// errdef.Invalid when there are several. It finds pods whose record cannot be read, so that Remove can be
// called on them, but not pods being created, which nobody has been told of.
func (m *Manager) Get(id string) (*Pod, error) {
	if id == "" {
		return nil, fmt.Errorf("pod without id: %w", errdef.NotFound)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.pods[id]; ok && p.known() {
		return p, nil
	}
	var found *Pod
	for _, p := range m.pods {
		if !strings.HasPrefix(p.id, id) || !p.known() {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("pod %s: %w: several ids begin so, among them %s and %s", id, errdef.Invalid, found.id, p.id)
		}
		found = p
	}
	if found == nil {
		return nil, fmt.Errorf("pod %s: %w", id, errdef.NotFound)
	}
	return found, nil
}

// Unreadable tells which records cannot be read, and what to do about each, for Status verbose, in no order. Their
// pods are not listed; Remove takes away what the id alone can find. It never waits.
func (m *Manager) Unreadable() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Clone(m.blind)
	for _, p := range m.pods {
		if p.broken != nil {
			all = append(all, fmt.Errorf("pod %s: remove it with RemovePodSandbox or `crictl rmp %s`: %w", p.id, p.id, p.broken))
		}
	}
	return all
}

// Close cancels pods being created, waits for what is going on until ctx ends, and removes the default
// cgroup parent if crid made it and nothing is in it. What did not end in time is taken up by the next Load.
// Pods and their containers stay. Close may be repeated.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		close(m.closing)
	}
	for op := range m.ops {
		if op.kind == opRun || op.kind == opPause {
			op.cancel(errClosing)
		}
	}
	m.mu.Unlock()
	idle := make(chan struct{})
	go func() { // ends with the last operation, each of which has a deadline
		m.work.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		return fmt.Errorf("end the work on pods: %d operations go on: %w", len(m.InFlight()), context.Cause(ctx))
	}
	if !m.deps.Config.OwnParent {
		return nil
	}
	if err := m.deps.Cgroups.RemoveEmpty(m.deps.Config.CgroupParent); err != nil {
		return fmt.Errorf("remove the default cgroup parent: %w", err)
	}
	return nil
}

var errClosing = fmt.Errorf("crid is shutting down: %w", errdef.Unavailable)

// Attachments returns the network attachments that must not be collected as garbage: those of pods that have not
// been detached, and those that tombstones care for. It never waits.
func (m *Manager) Attachments() []network.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []network.Request
	for _, p := range m.pods {
		switch rec := p.rec.Load(); {
		case p.broken != nil:
			all = append(all, network.Request{ID: p.id, IfName: "eth0"}) // as Prepare names it
		case rec.Network != nil && !rec.Detached:
			all = append(all, *rec.Network)
		}
	}
	for _, t := range m.graves {
		all = append(all, t.Request)
	}
	return all
}

// open tells whether new work may begin.
func (m *Manager) open() error {
	select {
	case <-m.closing:
		return errClosing
	default:
		return nil
	}
}

// announce publishes what happened to a pod.
func (m *Manager) announce(kind event.Kind, id string) {
	m.deps.Events.Publish(event.Event{Kind: kind, PodID: id, ContainerID: id, At: time.Now()})
}

// hostNetwork tells whether the pod uses the host's network namespace.
func hostNetwork(cfg *runtime.PodSandboxConfig) bool {
	return namespaces(cfg).GetNetwork() == runtime.NamespaceMode_NODE
}

func namespaces(cfg *runtime.PodSandboxConfig) *runtime.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// failures collects what went wrong in steps that are all tried.
type failures []error

func (f *failures) add(err error) {
	if err != nil {
		*f = append(*f, err)
	}
}

// err is the first failure, whose kind counts, with the others in its text.
func (f failures) err() error {
	switch len(f) {
	case 0:
		return nil
	case 1:
		return f[0]
	default:
		return fmt.Errorf("%w (besides: %v)", f[0], errors.Join(f[1:]...))
	}
}
