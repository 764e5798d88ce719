package storage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// insideEnv marks the test binary that runs in namespaces of its own.
const insideEnv = "CRID_STORAGE_TEST_INSIDE"

// TestMain runs everything in a mount and a network namespace of its own, so that no test touches the host's.
func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	if os.Getenv(toolEnv) != "" {
		os.Exit(playTool(os.Args[1:]))
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(insideEnv) == "" {
		os.Exit(runInside())
	}
	if err := settleIn(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare namespaces for tests:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// runInside runs this binary again in new namespaces and returns its exit code.
func runInside() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

// settleIn keeps mounts from the host, sets loopback up, and hides the host's configuration for images.
func settleIn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
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

// requireRoot skips the test without root, or fails it where CRID_TEST_ROOT asks for everything.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CRID_TEST_ROOT") == "1" {
		t.Fatal("needs root for overlay and mounts, and CRID_TEST_ROOT=1 asks for all tests")
	}
	t.Skip("needs root for overlay and mounts")
}
