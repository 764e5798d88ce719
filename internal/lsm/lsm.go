// Package lsm turns what a security context says of AppArmor and SELinux into what the runtime is told: a profile's
// name, labels. On a host without these modules it asks for nothing. It does not know pods and containers, nor who
// applies what it answers.
package lsm

import (
	"context"
	"fmt"
	"sync"

	"github.com/crid/crid/internal/fact"
)

// Modules is the security modules of this host.
type Modules struct {
	armor    appArmor // nil where the kernel does not enforce AppArmor
	linux    seLinux  // nil where the kernel has no SELinux policy
	files    string   // see FileLabel
	warnings []string

	mu   sync.Mutex     // guards pods
	pods map[string]int // how many have a level
}

// Open loads the default AppArmor profile where AppArmor is enforced and it is not loaded yet. What cannot be done is
// a warning, and refused to those who ask for it by name.
func Open(ctx context.Context, host fact.Host) *Modules {
	m := &Modules{pods: map[string]int{}}
	if host.AppArmor {
		m.armor = parser{}
		if err := m.ensureDefault(ctx); err != nil {
			m.warnings = append(m.warnings, fmt.Sprintf("containers that name no AppArmor profile run without: %v", err))
		}
	}
	if host.SELinux {
		m.linux = policy{}
		m.tryPolicy()
	}
	return m
}

// tryPolicy does without SELinux where the policy has no labels for containers.
func (m *Modules) tryPolicy() {
	process, file, err := m.linux.Fresh()
	if err == nil && process != "" && file != "" {
		m.linux.Release(process)
		m.files, err = set(file, map[string]string{"level": "s0"})
	}
	if m.files != "" {
		return
	}
	m.linux = nil
	warning := "containers run without SELinux labels: the policy has none for them; install container-selinux"
	if err != nil {
		warning += fmt.Sprintf(" (%v)", err)
	}
	m.warnings = append(m.warnings, warning)
}

// FileLabel is the label of files that every container may read; empty without SELinux.
func (m *Modules) FileLabel() string { return m.files }

// Warnings is what an operator should know of the start.
func (m *Modules) Warnings() []string { return m.warnings }
