package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/ns"
)

// Run makes a pod and returns it once it is ready, or finds the one that this request asked for before: one
// being created is waited for and its outcome shared; a ready one is returned, whatever the configuration
// says now; one being removed is waited for, then a new one is made; one that is not ready is errdef.Exists.
// ctx bounds the waiting: the work goes on when it ends. handler is the runtime handler's name, resolved.
func (m *Manager) Run(ctx context.Context, key Key, cfg *runtime.PodSandboxConfig, handler string) (*Pod, error) {
	for {
		p, op, err := m.claim(ctx, Record{
			Key: key, State: Creating, CreatedAt: time.Now(), BootID: m.deps.Config.BootID,
			Handler: handler, Config: CRIConfig{cfg},
		})
		if err != nil {
			return nil, err
		}
		if op == nil {
			return p, nil
		}
		err = op.wait(ctx)
		switch {
		case op.kind == opRun && err == nil:
			return p, nil
		case op.kind == opRun || ctx.Err() != nil:
			return nil, err
		}
	}
}

// claim finds the pod of the record's key or makes it. The operation is what to wait for: the creation, or
// the removal of the pod before; nil when the pod is ready.
func (m *Manager) claim(ctx context.Context, rec Record) (*Pod, *operation, error) {
	id := newID()
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.keys[rec.Key]
	switch {
	case m.closed:
		return nil, nil, errClosing
	case p == nil:
		p = newPod(m, id, rec)
		m.pods[id], m.keys[rec.Key] = p, p
		return p, m.begin(ctx, p, opRun, m.create), nil
	case p.ops[opRemove] != nil:
		return p, p.ops[opRemove], nil
	case p.ops[opRun] != nil:
		return p, p.ops[opRun], nil
	case p.rec.Load().State == Ready:
		return p, nil, nil
	default:
		return nil, nil, fmt.Errorf("pod %s: %w as %s, which is not ready (%s): remove that with RemovePodSandbox or `crictl rmp %s`",
			rec.Key, errdef.Exists, p.id, p.rec.Load().Reason, p.id)
	}
}

// newID makes an id as other runtimes do: crictl shows its first 13 digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return hex.EncodeToString(b[:])
}

// create is the work of Run.
func (m *Manager) create(ctx context.Context, op *operation) error {
	p := op.pod
	op.at("plan")
	rec, w, err := m.plan(p.id, *p.rec.Load())
	if err != nil {
		m.drop(p)
		return fmt.Errorf("run pod %s: %w", p.key, err)
	}
	p.rec.Store(&rec)
	if err := m.build(ctx, op, w); err != nil {
		return m.undo(ctx, op, fmt.Errorf("run pod %s: %w", p.key, err))
	}
	return nil
}

// build makes what the record says, the record first.
func (m *Manager) build(ctx context.Context, op *operation, w ns.Want) error {
	p, rec := op.pod, op.pod.rec.Load()
	op.at("record")
	if err := m.deps.Records.Put(p.id, *rec); err != nil {
		return err
	}
	op.at("namespaces")
	if _, err := m.deps.Namespaces.Pin(ctx, p.id, w); err != nil {
		return err
	}
	op.at("network and files")
	var ips []string
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		if rec.Network == nil {
			return nil
		}
		att, err := m.deps.Network.Add(ctx, *rec.Network)
		ips = att.IPs
		return err
	})
	both.Go(func() error {
		if err := m.makeParent(rec.CgroupParent); err != nil {
			return err
		}
		return m.deps.Files.Make(ctx, p.id, filesWant(rec))
	})
	if err := both.Wait(); err != nil {
		return err
	}
	op.at("hosts file")
	if err := m.deps.Files.Hosts(p.id, rec.Hostname, ips); err != nil {
		return err
	}
	op.at("commit")
	return m.move(p, Ready, func(r *Record) { r.IPs = ips })
}

// makeParent makes the default cgroup parent if that is what the pod uses and if it is crid's to make. The
// kubelet makes those that it names.
func (m *Manager) makeParent(parent string) error {
	if c := m.deps.Config; !c.OwnParent || parent != c.CgroupParent {
		return nil
	}
	return m.deps.Cgroups.Create(parent)
}

// undo takes away what a failed Run has made and returns why it failed. The pod is not ready from now on, so
// that it is listed and can be removed if the undo fails too.
func (m *Manager) undo(ctx context.Context, op *operation, cause error) error {
	p := op.pod
	op.at("undo")
	moved := m.move(p, NotReady, func(r *Record) {
		r.Erasing = true
		because("CreateFailed", cause.Error())(r)
	})
	if moved != nil {
		m.deps.Log.Warn("pod's failure is not recorded", "pod", p.id, "err", moved)
	}
	if err := m.do(context.WithoutCancel(ctx), p, opRemove, m.erase); err != nil {
		return fmt.Errorf("%w (the undo failed too, pod %s is left not ready: remove it with RemovePodSandbox: %v)", cause, p.id, err)
	}
	return cause
}

// drop takes a pod off the maps.
func (m *Manager) drop(p *Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, p.id)
	if m.keys[p.key] == p {
		delete(m.keys, p.key)
	}
}

// Stop ends what runs in the pod, takes its network and namespaces away, and leaves it not ready. A network
// that cannot be detached is recorded as a tombstone and tried again later: that is no error. Repeating it is
// fine; a Stop in progress is joined. ctx bounds the waiting only.
func (m *Manager) Stop(ctx context.Context, p *Pod) error {
	if p.ended.Load() {
		return nil
	}
	return m.do(ctx, p, opStop, m.stop)
}

// stop is the work of Stop and the first part of every removal.
func (m *Manager) stop(ctx context.Context, op *operation) error {
	p := op.pod
	if p.ended.Load() {
		return nil
	}
	empty, busy := p.life.close()
	var errs failures
	errs.add(m.move(p, NotReady, because("Stopped", "the pod was stopped")))
	op.at("containers")
	errs.add(m.deps.Containers.StopPod(ctx, p.id))
	if busy {
		op.at("containers being created")
		select {
		case <-empty:
		case <-ctx.Done():
			errs.add(fmt.Errorf("containers are still being created: %w", context.Cause(ctx)))
		}
		errs.add(m.deps.Containers.StopPod(ctx, p.id))
	}
	op.at("network")
	errs.add(m.detach(ctx, p))
	op.at("namespaces")
	unpin, cancel := m.undoing(ctx)
	defer cancel()
	errs.add(m.deps.Namespaces.Unpin(unpin, p.id))
	if err := errs.err(); err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	p.ended.Store(true)
	return nil
}

// undoing is a context for steps that must be tried also when the steps before took all the time.
func (m *Manager) undoing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), m.deps.Config.UndoTimeout)
}

// detach takes the pod off its network, once. It is tried for a bounded time while the network namespace is
// still there; on failure a tombstone takes over.
func (m *Manager) detach(ctx context.Context, p *Pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.deps.Config.DelTimeout)
	defer cancel()
	if p.broken != nil {
		if err := m.deps.Network.Del(ctx, p.blind()); err != nil {
			m.deps.Log.Warn("network of a pod without a readable record is left to garbage collection", "pod", p.id, "err", err)
		}
		return nil
	}
	rec := p.rec.Load()
	if rec.Network == nil || rec.Detached {
		return nil
	}
	if err := m.deps.Network.Del(ctx, *rec.Network); err != nil {
		m.deps.Log.Warn("network was not detached, it is tried again later", "pod", p.id, "err", err)
		if err := m.entomb(p, *rec.Network, err); err != nil {
			return fmt.Errorf("keep the detachment for later: %w", err)
		}
	}
	return m.move(p, NotReady, func(r *Record) { r.Detached = true })
}

// Remove stops the pod, removes its containers and then all that is left of it. Repeating it is fine; one in
// progress is joined. ctx bounds the waiting only.
func (m *Manager) Remove(ctx context.Context, p *Pod) error {
	return m.do(ctx, p, opRemove, m.erase)
}

// erase takes away all that a pod has, the record last. It is the one undo: of a failed Run, of Remove and
// of what Load finds unfinished. It may be repeated, and a step that fails keeps no other from being tried.
func (m *Manager) erase(ctx context.Context, op *operation) error {
	p := op.pod
	if p.gone.Load() {
		return nil
	}
	var errs failures
	errs.add(m.move(p, NotReady, func(r *Record) {
		r.Erasing = true
		because("Removing", "the pod is being removed")(r)
	}))
	op.at("stop")
	errs.add(m.Stop(ctx, p))
	op.at("containers")
	errs.add(m.deps.Containers.RemovePod(ctx, p.id))
	op.at("files")
	rest, cancel := m.undoing(ctx)
	defer cancel()
	errs.add(m.deps.Files.Remove(rest, p.id))
	if err := errs.err(); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	op.at("record")
	return m.forget(p)
}

// forget deletes the record and the pod's places in the maps.
func (m *Manager) forget(p *Pod) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	if err := m.deps.Records.Delete(p.id); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	p.gone.Store(true)
	m.drop(p)
	m.announce(event.Deleted, p.id)
	return nil
}

// PauseExited tells that the pause of a pod has ended: the pod is not ready any more and its containers are
// killed. It does not wait, and may be told of pods that are stopped, removed or unknown.
func (m *Manager) PauseExited(podID string) {
	m.mu.Lock()
	p := m.pods[podID]
	m.mu.Unlock()
	if p == nil || p.rec.Load().State != Ready {
		return
	}
	m.join(context.Background(), p, opReap, m.reap)
}

// reap ends the containers of a pod that lost its PID namespace.
func (m *Manager) reap(ctx context.Context, op *operation) error {
	p := op.pod
	p.life.close()
	if err := m.move(p, NotReady, because("PauseExited", "the process that held the pod's PID namespace has ended")); err != nil {
		m.deps.Log.Warn("pod's end is not recorded", "pod", p.id, "err", err)
	}
	if err := m.deps.Containers.StopPod(ctx, p.id); err != nil {
		m.deps.Log.Warn("containers outlive their pod's PID namespace until StopPodSandbox", "pod", p.id, "err", err)
	}
	return nil
}
