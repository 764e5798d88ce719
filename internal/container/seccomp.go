package container

import (
	"fmt"
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
	if asked == nil {
		return nil, nil
	}
	typ, ref := asked.GetProfileType(), asked.GetLocalhostRef()
	var profile *specs.LinuxSeccomp
	var err error
	switch {
	case typ == runtime.SecurityProfile_Localhost:
		profile, err = m.localProfile(ref, caps)
	case ref != "":
		err = fmt.Errorf("localhost_ref %q: only for profile_type Localhost: %w", ref, errdef.Invalid)
	case typ == runtime.SecurityProfile_RuntimeDefault && m.deps.Host.Seccomp:
		profile, err = m.profiles.standard(caps)
	case typ != runtime.SecurityProfile_RuntimeDefault && typ != runtime.SecurityProfile_Unconfined:
		err = fmt.Errorf("profile_type: unknown %v: %w", typ, errdef.Invalid)
	}
	if err != nil {
		return nil, fmt.Errorf("linux.security_context.seccomp: %w", err)
	}
	return profile, nil
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

// localProfile reads a profile of the node each time: the file may have changed. The kubelet names it by an absolute
// path; a relative one is looked for below the directory that the operator chose.
func (m *Manager) localProfile(name string, caps []string) (*specs.LinuxSeccomp, error) {
	if name == "" {
		return nil, fmt.Errorf("localhost_ref is empty: %w", errdef.Invalid)
	}
	if !m.deps.Host.Seccomp {
		return nil, fmt.Errorf("localhost_ref %q: this kernel has no seccomp filters: %w", name, errdef.Invalid)
	}
	file := filepath.Clean(name)
	if !filepath.IsAbs(name) {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("localhost_ref %q: leads out of %s: %w", name, m.deps.Options.SeccompDir, errdef.Invalid)
		}
		file = filepath.Join(m.deps.Options.SeccompDir, name)
	}
	profile, err := readProfile(file, caps)
	if err != nil {
		return nil, fmt.Errorf("localhost_ref: profile %s: %w", file, err)
	}
	return profile, nil
}

// bounded is as much of a configuration as the making of a profile looks at.
func bounded(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
}
