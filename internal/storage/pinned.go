package storage

import (
	"regexp"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"
)

// pins tell which images are pinned. The zero value pins none.
type pins struct {
	names    map[string]bool // ids, and full names with tag or digest
	patterns []*regexp.Regexp
}

// pins reads the configured names as a pull reads them, and those with * as patterns, in which it stands for any
// characters, / among them.
func (s *Images) pins() pins {
	p := pins{names: map[string]bool{}}
	for _, name := range s.cfg.Pinned {
		if strings.Contains(name, "*") {
			p.patterns = append(p.patterns, wildcard(name))
			continue
		}
		if id := strings.TrimPrefix(name, "sha256:"); len(id) == 64 && isHex(id) {
			p.names[id] = true
			continue
		}
		full, err := s.names(name)
		if err != nil { // registries.conf cannot be read, which Warnings tells, or the configuration was not checked
			continue
		}
		for _, ref := range full {
			p.names[ref.String()] = true
		}
	}
	return p
}

func wildcard(pattern string) *regexp.Regexp {
	parts := strings.Split(pattern, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$") // of quoted parts: it always compiles
}

func (p pins) have(img *Image) bool {
	if p.names[img.ID] {
		return true
	}
	return slices.ContainsFunc(slices.Concat(img.RepoTags, img.RepoDigests), func(name string) bool {
		return p.names[name] || slices.ContainsFunc(p.patterns, func(r *regexp.Regexp) bool {
			return r.MatchString(name) || r.MatchString(shortest(name))
		})
	})
}

// shortest is how people write the name: without docker.io/library/.
func shortest(name string) string {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(ref)
}
