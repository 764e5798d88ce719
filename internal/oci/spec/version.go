package spec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/fact"
)

// oldestVersion is written for a handler that does not say what it accepts: every runtime in use knows it.
const oldestVersion = "1.0.2"

// specVersion is the version of the OCI runtime specification to write: the newest that the handler accepts,
// but none newer than the types that this program is built with.
func specVersion(h fact.Handler) string {
	theirs, ok := parseVersion(h.SpecVersion)
	if !ok {
		return oldestVersion
	}
	ours, _ := parseVersion(specs.Version)
	for i := range ours {
		if theirs[i] != ours[i] {
			if theirs[i] > ours[i] {
				return specs.Version
			}
			break
		}
	}
	return h.SpecVersion
}

// parseVersion reads major, minor and patch; what follows them ("-dev") is left aside.
func parseVersion(s string) (v [3]uint, ok bool) {
	n, _ := fmt.Sscanf(s, "%d.%d.%d", &v[0], &v[1], &v[2])
	return v, n == len(v)
}
