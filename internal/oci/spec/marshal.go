package spec

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Marshal is the text of config.json.
//
// JSON is UTF-8, and neither runtime lets other bytes through: crun refuses the whole file ("invalid bytes in
// UTF8 string"), runc's decoder replaces each such byte by U+FFFD before the process sees it. The CRI's
// environment values may be any bytes, though, so each byte that is not UTF-8 is written as U+FFFD here: the
// container starts with either runtime, sees the same value with both, and every other variable is exact.
func Marshal(s *specs.Spec) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}
