package storage

import (
	"fmt"
	"slices"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// The store's names of an image are crid's record of what was pulled: repository:tag for every tag, and
// repository@digest, with the digest of the manifest or list that the registry answered with, for every pull.

// references sorts the store's names into tags and digests. A tag of another tool's has no digest beside it:
// the image's manifest stands in.
func references(img *cstorage.Image) (tags, digests []string) {
	hasDigest := make(map[string]bool)
	var tagged []reference.Named
	for _, name := range img.Names {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue // another tool's, no reference
		}
		if d, ok := ref.(reference.Digested); ok {
			digests = append(digests, ref.Name()+"@"+d.Digest().String())
			hasDigest[ref.Name()] = true
			continue
		}
		ref = reference.TagNameOnly(ref)
		tags = append(tags, ref.String())
		tagged = append(tagged, ref)
	}
	for _, ref := range tagged {
		if !hasDigest[ref.Name()] && img.Digest != "" {
			digests = append(digests, ref.Name()+"@"+img.Digest.String())
		}
	}
	return sortedSet(tags), sortedSet(digests)
}

func sortedSet(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// repositories returns the repositories that the image was pulled from.
func repositories(img *Image) []string {
	var repos []string
	for _, name := range slices.Concat(img.RepoTags, img.RepoDigests) {
		if ref, err := reference.ParseNamed(name); err == nil {
			repos = append(repos, ref.Name())
		}
	}
	return sortedSet(repos)
}

// canonical gives a name the tag latest when it has neither tag nor digest, and drops the tag of one that has
// both, since the digest alone decides.
func canonical(ref reference.Named) reference.Named {
	digested, ok := ref.(reference.Digested)
	if !ok {
		return reference.TagNameOnly(ref)
	}
	named, err := reference.WithDigest(reference.TrimNamed(ref), digested.Digest())
	if err != nil {
		return ref // cannot be: ref was parsed with this digest
	}
	return named
}

// names returns the full names that ref stands for, in the order in which they are to be tried: one, unless ref
// is short and registries.conf lists several registries to search. Invalid when ref is no name.
func (s *Images) names(ref string) ([]reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", ref, err, errdef.Invalid)
	}
	if !isShort(ref) {
		return []reference.Named{canonical(named)}, nil
	}
	candidates, err := s.searchNames(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: read registries.conf: %w", ref, err)
	}
	if len(candidates) == 0 {
		candidates = []reference.Named{named}
	}
	for i := range candidates {
		candidates[i] = canonical(candidates[i])
	}
	return candidates, nil
}

// searchNames asks registries.conf for the short name ref: its alias, else one name for each registry to search.
func (s *Images) searchNames(ref string) ([]reference.Named, error) {
	sys := s.systemContext(Auth{})
	repo, suffix := splitSuffix(ref)
	alias, _, err := sysregistriesv2.ResolveShortNameAlias(sys, repo)
	if err != nil {
		return nil, err
	}
	if alias != nil {
		named, err := reference.ParseNormalizedNamed(alias.Name() + suffix)
		return []reference.Named{named}, err
	}
	registries, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
	if err != nil {
		return nil, err
	}
	var out []reference.Named
	for _, registry := range registries {
		named, err := reference.ParseNormalizedNamed(registry + "/" + ref)
		if err != nil {
			return nil, err
		}
		out = append(out, named)
	}
	return out, nil
}

// isShort tells whether ref, a valid reference, names no registry.
func isShort(ref string) bool {
	domain, _, found := strings.Cut(ref, "/")
	return !found || !strings.ContainsAny(domain, ".:") && domain != "localhost"
}

// splitSuffix cuts tag and digest off a short name.
func splitSuffix(ref string) (repo, suffix string) {
	if i := strings.IndexAny(ref, ":@"); i >= 0 {
		return ref[:i], ref[i:]
	}
	return ref, ""
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}
