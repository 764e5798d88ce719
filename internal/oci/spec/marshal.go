package spec

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Marshal is the text of config.json. JSON is UTF-8: each other byte becomes U+FFFD. For the environment, whose
// values the CRI allows to be any bytes, ViaLauncher comes before it.
func Marshal(s *specs.Spec) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}
