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
	op.at(ctx, "plan")
	rec, w, err := m.plan(p.id, *p.rec.Load())
	if err == nil {
		rec.SELinux, err = m.deps.Labels.Reserve(rec.Config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	}
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
	op.at(ctx, "record")
	if err := m.deps.Records.Put(p.id, *rec); err != nil {
		return err
	}
	if _, err := m.deps.Namespaces.Pin(op.at(ctx, "namespaces"), p.id, w); err != nil {
		return sysctlField(err, rec.Config.PodSandboxConfig)
	}
	var ips []string
	both, within := errgroup.WithContext(op.at(ctx, "network and files"))
	both.Go(func() error {
		if rec.Network == nil {
			return nil
		}
		att, err := m.deps.Network.Add(within, *rec.Network)
		ips = att.IPs
		return err
	})
	both.Go(func() error {
		return m.deps.Files.Make(within, p.id, filesWant(rec))
	})
	if err := both.Wait(); err != nil {
		return err
	}
	op.at(ctx, "hosts file")
	if err := m.deps.Files.Hosts(p.id, rec.Hostname, ips); err != nil {
		return err
	}
	op.at(ctx, "commit")
	return m.move(p, Ready, func(r *Record) { r.IPs = ips })
}

// undo takes away what a failed Run has made and returns why it failed. The pod is not ready from now on, so
// that it is listed and can be removed if the undo fails too.
func (m *Manager) undo(ctx context.Context, op *operation, cause error) error {
	p := op.pod
	op.left(cause)
	ctx = op.at(ctx, "undo")
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
