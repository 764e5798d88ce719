package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// maxProfiles bounds the cache of default profiles. A node uses a handful of capability sets.
const maxProfiles = 64

// profiles are the default seccomp profiles worked out so far, by the capabilities that they allow for. A
// profile is shared and never edited.
type profiles struct {
	mu     sync.Mutex // guards byCaps
	byCaps map[string]*specs.LinuxSeccomp
}

// seccomp is the profile that a security context asks for, with caps as the bounding set; nil = unconfined.
func (m *Manager) seccomp(asked *runtime.SecurityProfile, caps []string) (*specs.LinuxSeccomp, error) {
	switch asked.GetProfileType() {
	case runtime.SecurityProfile_RuntimeDefault:
		if asked == nil || !m.deps.Host.Seccomp {
			return nil, nil
		}
		return m.profiles.standard(caps)
	case runtime.SecurityProfile_Localhost:
		return m.localProfile(asked.GetLocalhostRef(), caps)
	}
	return nil, nil
}

func (p *profiles) standard(caps []string) (*specs.LinuxSeccomp, error) {
	key := strings.Join(slices.Sorted(slices.Values(caps)), " ")
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.byCaps[key]; ok {
		return known, nil
	}
	made, err := seccomp.GetDefaultProfile(bounded(caps))
	if err != nil {
		return nil, fmt.Errorf("make the default seccomp profile: %w", err)
	}
	if p.byCaps == nil || len(p.byCaps) >= maxProfiles {
		p.byCaps = map[string]*specs.LinuxSeccomp{}
	}
	p.byCaps[key] = made
	return made, nil
}

// localProfile reads a profile of the node each time: the file may have changed.
func (m *Manager) localProfile(name string, caps []string) (*specs.LinuxSeccomp, error) {
	if !m.deps.Host.Seccomp {
		return nil, fmt.Errorf("seccomp profile %s: this kernel has no seccomp filters: %w", name, errdef.Unsupported)
	}
	file := name
	if !filepath.IsAbs(name) {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("seccomp profile %q: localhost_ref leads out of %s: %w", name, m.deps.Options.SeccompDir, errdef.Invalid)
		}
		file = filepath.Join(m.deps.Options.SeccompDir, name)
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("seccomp profile %s: there is no such file: %w", file, errdef.Invalid)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	profile, err := seccomp.LoadProfile(string(raw), bounded(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w: %w", file, errdef.Invalid, err)
	}
	return profile, nil
}

// bounded is as much of a configuration as the making of a profile looks at.
func bounded(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
