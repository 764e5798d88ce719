package sandbox

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/state"
)

// loaders is how many pods are looked at together at start-up.
const loaders = 16

// Load reads what an earlier crid left, after the containers were loaded: afterwards every pod is listed as
// it is. Pods that were being created or removed are erased in the background, stops are finished there, tombstones
// retried. Each error is about one pod, in Unreadable if its record cannot be read, or about a store that cannot be
// read at all; none keeps crid from serving.
func (m *Manager) Load(ctx context.Context) []error {
	var (
		mu   sync.Mutex // guards errs
		errs []error
	)
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	if m.deps.Config.OwnParent {
		if err := m.deps.Cgroups.Create(m.deps.Config.CgroupParent); err != nil {
			fail(fmt.Errorf("make the default cgroup parent: %w", err))
		}
	}
	var group errgroup.Group
	group.SetLimit(loaders)
	for e, err := range m.deps.Records.All() {
		if e.ID == "" {
			fail(m.blinded("pods", err))
			break
		}
		if err == nil {
			err = e.Record.check()
		}
		if err != nil {
			fail(fmt.Errorf("load pod %s: %w", e.ID, err))
		}
		p := m.adopt(e, err)
		group.Go(func() error {
			if err := m.recover(ctx, p); err != nil {
				fail(fmt.Errorf("load pod %s: %w", p.id, err))
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nil
	for e, err := range m.deps.Tombstones.All() {
		if err != nil {
			fail(m.blinded("tombstones: the network of a stopped pod may stay attached until garbage collection", err))
			continue
		}
		m.bury(e.Record, 0)
	}
	return errs
}

// blinded remembers that Load could not see something.
func (m *Manager) blinded(what string, err error) error {
	err = fmt.Errorf("load %s: %w", what, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blind = append(m.blind, err)
	return err
}

// adopt puts a stored pod on the maps. One whose record cannot be read has nothing but its id.
func (m *Manager) adopt(e state.Entry[Record], err error) *Pod {
	rec := e.Record
	if err != nil {
		rec = Record{
			State: NotReady, Reason: "RecordUnreadable", Message: err.Error(),
			Config: CRIConfig{&runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{}}},
		}
	}
	if fault := m.deps.Labels.Retake(rec.SELinux); fault != nil {
		m.deps.Log.Warn("another pod may get the same SELinux label", "pod", e.ID, "err", fault)
	}
	p := newPod(m, e.ID, rec)
	p.broken = err
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[p.id] = p
	if other := m.keys[p.key]; p.broken == nil && (other == nil || other.rec.Load().State != Ready) {
		m.keys[p.key] = p
	}
	return p
}

// recover brings a pod that was read to what is true now.
func (m *Manager) recover(ctx context.Context, p *Pod) error {
	rec := p.rec.Load()
	switch {
	case p.broken != nil:
		p.life.close()
		return nil
	case rec.State == Creating || rec.Erasing:
		p.life.close()
		err := m.move(p, NotReady, func(r *Record) {
			r.Erasing = true
			because("CreateInterrupted", "crid ended while it made the pod")(r)
		})
		m.eraseLater(ctx, p)
		return err
	case rec.State == NotReady:
		p.life.close()
		if rec.Reason == reasonStopped {
			m.stopLater(ctx, p)
		}
		return nil
	}
	reason, message := m.lost(p, rec)
	if reason == "" {
		return nil
	}
	p.life.close()
	return m.move(p, NotReady, because(reason, message))
}

// Collect removes what is left of pods that have no record: somebody took it away while crid was not running. list
// finds the ids. Each error is about one of them, which is in Unreadable from then on. It may run beside everything
// else, after Load.
func (m *Manager) Collect(ctx context.Context, list func() ([]string, error)) []error {
	ids, err := list() // before the look at the map: a pod is in it before it has anything
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, id := range ids {
		m.mu.Lock()
		_, known := m.pods[id]
		m.mu.Unlock()
		if known {
			continue
		}
		m.deps.Log.Info("removing what is left of a pod that has no record", "pod", id)
		p := m.adopt(state.Entry[Record]{ID: id}, fmt.Errorf("record of pod %s: %w", id, errdef.NotFound))
		p.life.close()
		if err := m.Remove(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("remove what is left of pod %s: %w", id, err))
		}
	}
	return errs
}

// eraseLater erases behind Load. A failure leaves the pod listed as not ready, for the client to remove.
func (m *Manager) eraseLater(ctx context.Context, p *Pod) {
	m.join(ctx, p, opRemove, func(ctx context.Context, op *operation) error {
		err := m.erase(ctx, op)
		if err != nil {
			m.deps.Log.Warn("unfinished pod is left not ready: remove it with RemovePodSandbox", "pod", p.id, "err", err)
		}
		return err
	})
}

// stopLater does behind Load what a Stop may not have come to before crid ended. After one that was complete there is
// nothing to do, which takes no process and writes nothing.
func (m *Manager) stopLater(ctx context.Context, p *Pod) {
	m.join(ctx, p, opStop, func(ctx context.Context, op *operation) error {
		err := m.stop(ctx, op)
		if err != nil {
			m.deps.Log.Warn("pod is not stopped entirely: stop it with StopPodSandbox, or remove it", "pod", p.id, "err", err)
		}
		return err
	})
}

// lost says why a pod that was ready when crid ended is not any more; empty when it is. It remembers the PID
// namespace of a pause that runs.
func (m *Manager) lost(p *Pod, rec *Record) (reason, message string) {
	if rec.BootID != m.deps.Config.BootID {
		return "Rebooted", "the host was restarted"
	}
	set := m.deps.Namespaces.Paths(p.id, want(rec.Config.PodSandboxConfig))
	for _, path := range pins(set) {
		if err := m.deps.Files.Pinned(path); err != nil {
			return "NamespaceLost", err.Error()
		}
	}
	pidns, started, dead := m.deps.Containers.FindPause(p.id)
	switch {
	case dead:
		return "PauseExited", "the process that held the pod's PID namespace ended while crid was away, or its record cannot be read"
	case started:
		p.pidns.Store(&pidns)
	}
	return "", ""
}

// pins lists the paths of a set.
func pins(set ns.Set) []string {
	var all []string
	for _, path := range []string{set.Net, set.IPC, set.UTS, set.User} {
		if path != "" {
			all = append(all, path)
		}
	}
	return all
}
