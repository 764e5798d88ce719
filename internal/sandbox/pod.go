package sandbox

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/oci/spec"
)

// Pod is one pod. All its methods may be called at any time, also after it was removed.
type Pod struct {
	id     string
	key    Key // zero when broken
	broken error
	m      *Manager

	rec   atomic.Pointer[Record] // what readers see
	life  gate                   // creates of containers; closed for good before the pod stops being ready
	pidns atomic.Pointer[string] // of the pause, once it runs
	ended atomic.Bool            // a Stop has done all of its work
	memo  atomic.Value           // of who lists pods

	ops map[kind]*operation // guarded by Manager.mu

	writing sync.Mutex  // orders the writers of rec and of its file, held for that write; readers never take it
	gone    atomic.Bool // the record was deleted: nobody may write it back
}

// Status is what can be told of a pod at this moment.
type Status struct {
	State        State // ready or notready
	Reason       string
	Message      string
	CreatedAt    time.Time
	IPs          []string // empty for host-network pods; read-only
	NetNS        string   // host path; empty for host-network pods
	Hostname     string
	CgroupParent string
}

func newPod(m *Manager, id string, rec Record) *Pod {
	p := &Pod{id: id, key: rec.Key, m: m, ops: map[kind]*operation{}}
	p.rec.Store(&rec)
	return p
}

// known tells whether clients have been told of the pod.
func (p *Pod) known() bool { return p.broken != nil || p.rec.Load().State != Creating }

// ID returns the pod's id: 64 hexadecimal digits.
func (p *Pod) ID() string { return p.id }

// Key returns what the pod was asked for by; zero when its record cannot be read.
func (p *Pod) Key() Key { return p.key }

// Config returns the CRI configuration as it came. It is shared: do not edit it.
func (p *Pod) Config() *runtime.PodSandboxConfig { return p.rec.Load().Config.PodSandboxConfig }

// Handler returns the name of the pod's runtime handler.
func (p *Pod) Handler() string { return p.rec.Load().Handler }

// Memo is a place where who lists pods may keep what it has made of this one. It goes with the pod.
func (p *Pod) Memo() *atomic.Value { return &p.memo }

// Status never waits.
func (p *Pod) Status() Status {
	rec := p.rec.Load()
	s := Status{
		State: rec.State, Reason: rec.Reason, Message: rec.Message, CreatedAt: rec.CreatedAt, IPs: rec.IPs,
		Hostname: rec.Hostname, CgroupParent: rec.CgroupParent,
	}
	if rec.Network != nil {
		s.NetNS = rec.Network.NetNS
	}
	return s
}

// Enter admits the creation of one container: it returns what the container takes from its pod and a context
// that Stop cancels; leave must be called when the work is done, undo included, since Stop waits for it. When
// the container shares the pod's PID namespace the pause is started first, once for all. errdef.WrongState
// unless the pod is ready.
func (p *Pod) Enter(ctx context.Context, pid runtime.NamespaceMode) (context.Context, spec.PodEnv, func(), error) {
	inner, leave, ok := p.life.enter(ctx)
	if !ok {
		rec := p.rec.Load()
		return ctx, spec.PodEnv{}, nil, fmt.Errorf("pod %s is not ready (%s %s): %w", p.id, rec.Reason, rec.Message, errdef.WrongState)
	}
	env := p.env()
	if pid != runtime.NamespaceMode_POD {
		return inner, env, leave, nil
	}
	pidns, err := p.pause(inner)
	if err != nil {
		leave()
		return ctx, spec.PodEnv{}, nil, err
	}
	env.PIDNS = pidns
	return inner, env, leave, nil
}

// pause returns the PID namespace of the pod's pause, which is started when it does not run. The start has
// its own place in the gate: who asked for it first may give up and leave.
func (p *Pod) pause(ctx context.Context) (string, error) {
	if pidns := p.pidns.Load(); pidns != nil {
		return *pidns, nil
	}
	err := p.m.do(ctx, p, opPause, func(ctx context.Context, op *operation) error {
		if p.pidns.Load() != nil {
			return nil
		}
		ctx, leave, ok := p.life.enter(op.at(ctx, "pause"))
		if !ok {
			return fmt.Errorf("start the pause of pod %s: %w", p.id, errStopping)
		}
		defer leave()
		pidns, err := p.m.deps.Containers.StartPause(ctx, p.env())
		if err != nil {
			return fmt.Errorf("start the pause of pod %s: %w", p.id, err)
		}
		p.pidns.Store(&pidns)
		return nil
	})
	if err != nil {
		return "", err
	}
	return *p.pidns.Load(), nil
}

// env is what containers take from the pod, without a PID namespace.
func (p *Pod) env() spec.PodEnv {
	rec := p.rec.Load()
	set := p.m.deps.Namespaces.Paths(p.id, want(rec.Config.PodSandboxConfig))
	files := p.m.deps.Files.Paths(p.id)
	env := spec.PodEnv{
		ID: p.id, Config: rec.Config.PodSandboxConfig, Handler: rec.Handler,
		NetNS: set.Net, IPCNS: set.IPC, UTSNS: set.UTS, UserNS: set.User,
		Hostname: rec.Hostname, HostnameFile: files.Hostname, ResolvConf: files.ResolvConf, Hosts: files.Hosts,
		CgroupParent: rec.CgroupParent, SELinux: rec.SELinux,
	}
	if set.IPC != "" {
		env.Shm = files.Shm
	}
	return env
}

// want says which namespaces a pod has of its own.
func want(cfg *runtime.PodSandboxConfig) ns.Want {
	return ns.Want{
		Net: !hostNetwork(cfg),
		UTS: !hostNetwork(cfg),
		IPC: namespaces(cfg).GetIpc() != runtime.NamespaceMode_NODE,

		Users: spec.UserMap(cfg),
	}
}

// move is the only writer of a pod's record: check the table, store, publish, announce. A pod becomes ready
// only when that is stored; that it is not ready is published in any case, and stored once the disk takes it.
func (m *Manager) move(p *Pod, to State, edit func(*Record)) error {
	if p.broken != nil {
		return nil // there is no record to keep
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	old := p.rec.Load()
	switch {
	case p.gone.Load():
		return nil
	case !slices.Contains(moves[old.State], to):
		return fmt.Errorf("pod %s: from %s to %s: %w", p.id, old.State, to, errdef.WrongState)
	}
	rec := *old
	rec.State = to
	edit(&rec)
	if same(*old, rec) {
		return nil
	}
	if to == Ready {
		if err := m.deps.Records.Put(p.id, rec); err != nil {
			return fmt.Errorf("pod %s: %w", p.id, err)
		}
	} else if err := m.deps.Records.Keep(p.id, rec); err != nil {
		m.deps.Log.Warn("the pod's state is not on record", "pod", p.id, "state", to, "err", err)
	}
	p.rec.Store(&rec)
	m.announceMove(p.id, old.State, to)
	return nil
}

func (m *Manager) announceMove(id string, from, to State) {
	switch {
	case to == Ready:
		m.announce(event.Created, id)
		m.announce(event.Started, id)
	case from == Ready:
		m.announce(event.Stopped, id)
	}
}

// same compares what changes in a record after it is stored first.
func same(a, b Record) bool {
	return a.State == b.State && a.Reason == b.Reason && a.Message == b.Message &&
		a.Erasing == b.Erasing && a.Detached == b.Detached
}

// because edits a record's reason unless it has one: the first is the one that matters.
func because(reason, message string) func(*Record) {
	return func(r *Record) {
		if r.Reason == "" {
			r.Reason, r.Message = reason, message
		}
	}
}
