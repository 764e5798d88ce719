// Package integration tests crid as its clients see it: a real daemon, real runtimes, monitor, plugins and
// registry, in namespaces of their own. It does not know crid's inside.
package integration

import (
	"testing"

	"github.com/crid/crid/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// runtimes are the handlers that every runtime-dependent test is run with.
var runtimes = []string{"crun", "runc"}

// eachRuntime runs test once for every handler as the default.
func eachRuntime(t *testing.T, test func(t *testing.T, c *harness.Crid), options ...harness.Option) {
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			test(t, harness.Start(t, append(options, harness.Runtime(name))...))
		})
	}
}
