package container

import (
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// addHooks adds the hooks of the host's administrator, whose conditions see the pod's annotations and, over them,
// the container's.
func (c *Container) addHooks(pod map[string]string) func(*specs.Spec) error {
	return func(s *specs.Spec) error {
		annotations := map[string]string{}
		maps.Copy(annotations, pod)
		maps.Copy(annotations, c.config.GetAnnotations())
		return c.m.deps.Hooks.Inject(s, annotations, len(c.config.GetMounts()) > 0)
	}
}
