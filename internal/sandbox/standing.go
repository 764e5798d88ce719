package sandbox

import (
	"context"
	"errors"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/ns"
)

// Standing is one pod for whoever compares what crid knows with the machine.
type Standing = fact.Standing[Record]

// Standings returns all pods, those being created, being removed and without a readable record too. A pod is among
// them before it has anything, and until it has nothing any more.
func (m *Manager) Standings() []Standing {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Standing, 0, len(m.pods))
	for id, p := range m.pods {
		s := Standing{ID: id, Broken: p.broken, Busy: len(p.ops) > 0}
		if p.broken == nil {
			s.Record = *p.rec.Load()
		}
		all = append(all, s)
	}
	return all
}

// Own says which namespaces a pod of this configuration has of its own.
func Own(cfg *runtime.PodSandboxConfig) ns.Want { return want(cfg) }

// Rewrite stores the record of the pod again, whose file somebody took away.
func (m *Manager) Rewrite(id string) error {
	m.mu.Lock()
	p := m.pods[id]
	m.mu.Unlock()
	if p == nil || p.broken != nil {
		return nil
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.gone.Load() {
		return nil
	}
	if err := m.deps.Records.Put(id, *p.rec.Load()); err != nil {
		return fmt.Errorf("write the record of pod %s again: %w", id, err)
	}
	return nil
}

// Finish removes the pod if that was begun and failed, or if its record cannot be read. One whose record another crid
// wrote stays: that may come back.
func (m *Manager) Finish(ctx context.Context, id string) error {
	m.mu.Lock()
	p := m.pods[id]
	m.mu.Unlock()
	if p == nil || errors.Is(p.broken, errdef.Unsupported) || p.broken == nil && !p.rec.Load().Erasing {
		return nil
	}
	return m.Remove(ctx, p)
}
