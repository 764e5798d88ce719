package oci

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

func TestVerbsReachTheRuntime(t *testing.T) {
	out, err := fake(t, "tell").run(t.Context(), call{verb: "update", args: []string{"--resources", "-", "abc"}, stdin: []byte("{}"), limit: quickVerb})
	if err != nil {
		t.Fatal(err)
	}
	var got said
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if want := strings.Fields("--root /no/root --log-format json update --resources - abc"); !slices.Equal(got.Args, want) {
		t.Errorf("arguments %q, want %q", got.Args, want)
	}
	if len(got.Env) != 2 || !strings.HasPrefix(got.Env[0], "PATH=") || !strings.HasPrefix(got.Env[1], cloneVar+"=") {
		t.Errorf("environment %q: want nothing but PATH and %s", got.Env, cloneVar)
	}
	if got.Stdin != "{}" {
		t.Errorf("stdin %q", got.Stdin)
	}
}

func TestARefusalIsToldInTheRuntimesWords(t *testing.T) {
	err := fake(t, "refuse").Update(t.Context(), "abc", &specs.LinuxResources{})
	if err == nil || err.Error() != "refuse update of container abc: no such luck" {
		t.Errorf("got %v", err)
	}
}

func TestAHangingRuntimeIsLeft(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := fake(t, "hang").Start(ctx, "abc")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > afterKill+time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

// The next crid undoes an update that crid did not survive: a runtime that went on with it would have the last word.
func TestAnUpdateEndsWithCrid(t *testing.T) {
	root := t.TempDir()
	crid := exec.Command(fake(t, "crid").cfg.Path, fake(t, "linger").cfg.Path, root)
	if err := crid.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(crid.Process.Kill(), crid.Wait()); err == nil {
			t.Error("crid was not killed")
		}
	})
	var raw []byte
	for end := time.Now().Add(time.Minute); len(raw) == 0 && time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		raw, _ = os.ReadFile(filepath.Join(root, "pid")) // not there yet
	}
	pid, err := strconv.Atoi(string(raw))
	if err != nil {
		t.Fatal("the runtime was not started:", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := crid.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
	for errors.Is(err, unix.EINTR) { // the signal of a child's end, or of the scheduler
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
	}
	if n != 1 || err != nil {
		t.Errorf("the runtime goes on: %v, %v", err, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	}
}

func TestADyingRuntimeIsNoSuccess(t *testing.T) {
	if err := fake(t, "die").Start(t.Context(), "abc"); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("got %v", err)
	}
}

func TestAMissingRuntimeNamesItsPackage(t *testing.T) {
	r := New(Config{Name: "x", Path: "/no/such/crun"})
	for name, err := range map[string]error{"start": r.Start(t.Context(), "abc"), "probe": second(r.Probe(t.Context()))} {
		if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), "/no/such/crun") || !strings.Contains(err.Error(), "install the package crun") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ fact.Handler, err error) error { return err }

func TestExplain(t *testing.T) {
	for _, test := range []struct{ name, written, want string }{
		{"runc", `{"level":"error","msg":"runc create failed: unable to start container process: exec: \"foo\": executable file not found in $PATH","time":"2026-01-01T00:00:00Z"}`,
			`exec: "foo": executable file not found in $PATH`},
		{"crun", "{\"msg\":\"executable file `foo` not found in $PATH: No such file or directory\",\"level\":\"error\",\"time\":\"2026-01-01T00:00:00.5Z\"}\n",
			"executable file `foo` not found in $PATH: No such file or directory"},
		{"the last error counts", "{\"level\":\"error\",\"msg\":\"one\"}\n{\"level\":\"error\",\"msg\":\"two\"}\n{\"level\":\"warning\",\"msg\":\"three\"}\n", "two"},
		{"plain text", "flag provided but not defined\n\n  usage  \n", "flag provided but not defined; usage"},
		{"the end of much text", "1\n2\n3\n4\n5\n6\n", "3; 4; 5; 6"},
		{"plain text beside an error", "noise\n{\"level\":\"error\",\"msg\":\"why\"}\n", "why"},
		{"no error", `{"level":"warning","msg":"it is cold"}`, ""},
		{"nothing", "", ""},
	} {
		if got := Explain(test.written); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
