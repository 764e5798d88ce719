package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/test/isolate"
)

// TestMain plays a runtime when it is called by the name of one, else runs the tests: as root in namespaces of
// their own.
func TestMain(m *testing.M) {
	if part, played := strings.CutPrefix(filepath.Base(os.Args[0]), "fake-"); played {
		os.Exit(play(part))
	}
	isolate.Tests(m.Run)
}

// said is what the runtime that plays "tell" was called with.
type said struct {
	Args, Env []string
	Stdin     string
}

// play is a runtime that behaves in one way.
func play(part string) int {
	switch part {
	case "tell":
		stdin, err := io.ReadAll(os.Stdin)
		if err != nil {
			return 2
		}
		if err := json.NewEncoder(os.Stdout).Encode(said{os.Args[1:], os.Environ(), string(stdin)}); err != nil {
			return 2
		}
		return 0
	case "refuse":
		fmt.Fprintln(os.Stderr, `{"level":"warning","msg":"it is cold","time":"2026-01-01T00:00:00Z"}`)
		fmt.Fprintln(os.Stderr, `{"level":"error","msg":"exec failed: unable to start container process: no such luck","time":"2026-01-01T00:00:00Z"}`)
		return 1
	case "hang":
		return wait()
	case "linger":
		pid := filepath.Join(os.Args[2], "pid") // below --root
		if os.WriteFile(pid+".new", []byte(strconv.Itoa(os.Getpid())), 0o600) != nil || os.Rename(pid+".new", pid) != nil {
			return 2
		}
		return wait()
	case "crid":
		rt := New(Config{Name: "linger", Path: os.Args[1], Root: os.Args[2]})
		fmt.Fprintln(os.Stderr, rt.Update(context.Background(), "abc", &specs.LinuxResources{}))
		return 0
	case "die":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return 2
		}
		return wait()
	case "crun":
		return playOldCrun(os.Args[1])
	}
	return 2
}

// wait waits for a signal that ends the process.
func wait() int {
	if err := syscall.Pause(); err != nil {
		return 2
	}
	return 0
}

// playOldCrun is crun 1.8.1 in what it says of itself.
func playOldCrun(verb string) int {
	if verb != "--version" {
		fmt.Fprintln(os.Stderr, "unknown command "+verb)
		return 1
	}
	fmt.Print("crun version 1.8.1\ncommit: f8a096be\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD +SELINUX\n")
	return 0
}

// fake returns a Runtime whose binary is played by this one.
func fake(t *testing.T, part string) *Runtime {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "fake-"+part)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return New(Config{Name: part, Path: path, Root: "/no/root"})
}
