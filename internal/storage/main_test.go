package storage

import (
	"fmt"
	"os"
	"testing"

	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/isolate"
)

// TestMain plays what containers/storage and the tests start, else runs the tests in namespaces of their own.
func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	if os.Getenv(toolEnv) != "" {
		os.Exit(playTool(os.Args[1:]))
	}
	isolate.Tests(func() int {
		if err := hideConfig(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare for tests:", err)
			return 1
		}
		return m.Run()
	})
}

// hideConfig hides the host's configuration for images, if the mounts are the tests' own.
func hideConfig() error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, dir := range configDirs() {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	return nil
}

func needRoot(t testing.TB) {
	t.Helper()
	isolate.NeedRoot(t, "it makes overlays and mounts")
}
