package container

import (
	"fmt"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// addDevices adds what the vendors of the request's CDI devices say that they need.
func (c *Container) addDevices(s *specs.Spec) error {
	var names []string
	for _, d := range c.config.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	if len(names) == 0 {
		return nil
	}
	if err := c.m.deps.Devices.Inject(s, names); err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	return nil
}

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
