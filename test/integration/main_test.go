// Package integration tests crid as its clients see it: a real daemon, real runtimes, monitor, plugins and
// registry, in namespaces of their own. It does not know crid's inside.
package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/stuck"
)

// TestMain plays a CNI plugin, a runtime, an old kernel or a container around crid when it is started by the name of one,
// else runs the tests.
func TestMain(m *testing.M) {
	stuck.Play()
	switch filepath.Base(os.Args[0]) {
	case faulty:
		os.Exit(playFaulty())
	case collector:
		os.Exit(playCollector())
	case oldKernel:
		fmt.Fprintln(os.Stderr, "play an old kernel:", playOldKernel()) // it returns only to say why not
		os.Exit(1)
	case inRoot:
		fmt.Fprintln(os.Stderr, "play crid in the root of its cgroups:", playInRoot())
		os.Exit(1)
	}
	harness.Main(m)
}

// ownProgram is this test binary by the name of a program that it plays.
func ownProgram(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	program := filepath.Join(t.TempDir(), name)
	if err == nil {
		err = os.Symlink(self, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	return program
}

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
