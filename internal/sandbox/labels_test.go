package sandbox

import (
	"fmt"
	"sync"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// fakeLabels is one crid's memory of the labels that its pods have.
type fakeLabels struct {
	mu    sync.Mutex // guards all below
	next  int
	taken map[fact.Labels]int
}

func newLabels() *fakeLabels { return &fakeLabels{taken: map[fact.Labels]int{}} }

func (f *fakeLabels) Reserve(o *runtime.SELinuxOption) (fact.Labels, error) {
	if o.GetLevel() == "bad" {
		return fact.Labels{}, fmt.Errorf("level: %w", errdef.Invalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		f.next++
		l := fact.Labels{Process: fmt.Sprintf("u:r:t:s0:c%d", f.next), Mount: fmt.Sprintf("u:r:f:s0:c%d", f.next)}
		if f.taken[l] == 0 {
			f.taken[l]++
			return l, nil
		}
	}
}

func (f *fakeLabels) Retake(l fact.Labels) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l != (fact.Labels{}) {
		f.taken[l]++
	}
	return nil
}

func (f *fakeLabels) Release(l fact.Labels) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.taken[l]--; f.taken[l] <= 0 {
		delete(f.taken, l)
	}
}

// reserved are the labels that the crid of m holds.
func reserved(m *Manager) map[fact.Labels]int {
	f := m.deps.Labels.(*fakeLabels)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.taken
}

func TestPodsKeepTheirLabels(t *testing.T) {
	h := newHost(t)
	m, _ := h.start(t)
	one, two := run(t, m, "one"), run(t, m, "two")
	if one.env().SELinux == two.env().SELinux || one.env().SELinux.Process == "" || len(reserved(m)) != 2 {
		t.Errorf("labels %v and %v; reserved %v", one.env().SELinux, two.env().SELinux, reserved(m))
	}
	was := two.env().SELinux
	shutDown(t, m)
	m, _ = h.start(t)
	if p, err := m.Get(two.ID()); err != nil || p.env().SELinux != was || len(reserved(m)) != 2 || reserved(m)[was] != 1 {
		t.Errorf("after a restart: %v; reserved %v", err, reserved(m))
	}
	three := run(t, m, "three")
	if l := three.env().SELinux; l == was || l == one.env().SELinux {
		t.Errorf("a new pod has the labels %v of an older one", l)
	}
	cleanUp(t, m)
	if len(reserved(m)) != 0 {
		t.Errorf("still reserved: %v", reserved(m))
	}
	bad := config("bad")
	bad.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{SelinuxOptions: &runtime.SELinuxOption{Level: "bad"}}}
	if _, err := m.Run(t.Context(), keyOf("bad"), bad, "crun"); err == nil {
		t.Error("a pod with a bad level")
	}
	h.nothingLeft(t, m)
}
