package sandbox

import (
	"context"
	"fmt"

	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/network"
)

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
	errs.add(m.move(p, NotReady, because(reasonStopped, "the pod was stopped")))
	errs.add(m.deps.Containers.StopPod(op.at(ctx, "containers"), p.id))
	if busy {
		within := op.at(ctx, "containers being created")
		select {
		case <-empty:
		case <-ctx.Done():
			errs.add(fmt.Errorf("containers are still being created: %w", context.Cause(ctx)))
		}
		errs.add(m.deps.Containers.StopPod(within, p.id))
	}
	errs.add(m.detach(op.at(ctx, "network"), p))
	unpin, cancel := m.undoing(op.at(ctx, "namespaces"))
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
// still there; on failure a tombstone takes over. Without a readable record the plugins' own memory must do.
func (m *Manager) detach(ctx context.Context, p *Pod) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.deps.Config.DelTimeout)
	defer cancel()
	if p.broken != nil {
		m.detachRecalled(ctx, p)
		return nil
	}
	rec := p.rec.Load()
	if rec.Network == nil || rec.Detached {
		return nil
	}
	if !m.del(ctx, p, *rec.Network) {
		return nil
	}
	return m.move(p, NotReady, func(r *Record) { r.Detached = true })
}

func (m *Manager) detachRecalled(ctx context.Context, p *Pod) {
	reqs, err := m.deps.Network.Recall(p.id)
	if err != nil {
		m.deps.Log.Warn("network of a pod without a readable record is left to garbage collection", "pod", p.id, "err", err)
	}
	for _, req := range reqs {
		m.del(ctx, p, req)
	}
}

// del undoes the attachment now or by a tombstone. It tells whether the pod's record need not care for it any more.
func (m *Manager) del(ctx context.Context, p *Pod, req network.Request) bool {
	err := m.deps.Network.Del(ctx, req)
	if err == nil {
		return true
	}
	m.deps.Log.Warn("network was not detached, it is tried again later", "pod", p.id, "err", err)
	if err := m.entomb(p, req, err); err != nil {
		m.deps.Log.Warn("should crid end soon, the pod's record alone tells that its network is attached", "pod", p.id, "err", err)
		return false
	}
	return true
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
	errs.add(m.Stop(op.at(ctx, "stop"), p))
	errs.add(m.deps.Containers.RemovePod(op.at(ctx, "containers"), p.id))
	rest, cancel := m.undoing(op.at(ctx, "files"))
	defer cancel()
	errs.add(m.deps.Files.Remove(rest, p.id))
	if err := errs.err(); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	op.at(ctx, "record")
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
	m.deps.Labels.Release(p.rec.Load().SELinux)
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
