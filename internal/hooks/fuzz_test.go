package hooks

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzParse reads any bytes as a file that describes a hook: what is understood can be decided and added.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"version":"1.0.0","hook":{"path":"/bin/sh","args":["a"],"env":["A=b"],"timeout":1},"when":{"always":true},"stages":["prestart","poststop"]}`,
		`{"version":"1.0.0","hook":{"path":"/x"},"when":{"annotations":{"^a$":"b+"},"commands":[".*"],"hasBindMounts":false},"stages":["startContainer"]}`,
		`{"version":"1.0.0","hook":{"path":"/x"},"when":{"commands":["("]},"stages":["startContainer","startContainer"]}`,
		`{"version":"0.1.0"}`, "null", "", "{} {}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := parse(raw)
		if err != nil {
			return
		}
		s := &specs.Spec{Process: &specs.Process{Args: []string{"/bin/sh"}}}
		for _, s := range []*specs.Spec{s, {}, {Process: &specs.Process{}}} {
			h.when.holds(s, map[string]string{"a": "b"}, true)
			h.when.holds(s, nil, false)
		}
		h.add(s)
		n := 0
		for _, stage := range [][]specs.Hook{s.Hooks.Prestart, s.Hooks.CreateRuntime, s.Hooks.CreateContainer,
			s.Hooks.StartContainer, s.Hooks.Poststart, s.Hooks.Poststop} {
			n += len(stage)
		}
		if n == 0 || n != len(h.stages) {
			t.Errorf("%d hooks for the stages %v", n, h.stages)
		}
	})
}
