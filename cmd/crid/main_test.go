package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/oci"
)

// The test binary plays the holder of a lock, and runtimes.
const playVar = "CRID_TEST_PLAY"

func TestMain(m *testing.M) {
	switch os.Getenv(playVar) {
	case "holder":
		os.Exit(playHolder(os.Args[1]))
	default:
		os.Exit(m.Run())
	}
}

// playHolder locks dir, says so, and holds on until its child ends.
func playHolder(dir string) int {
	l, err := lock(dir, serving)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer l.Close()
	// It has what a forked process has before it executes its program, and ends with the test's input.
	child := exec.Command("cat")
	child.Stdin, child.ExtraFiles = os.Stdin, []*os.File{l}
	if err := child.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("locked")
	if err := child.Wait(); err != nil {
		return 1
	}
	return 0
}

func crid(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.Execute()
	return out.String(), err
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheCommandsAboutConfiguration(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "c.toml"), "log_level = \"warn\"\n", 0o600)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"config", "default"}, `#cgroup_parent = ""`},
		{[]string{"config", "dump", "--config", file}, `log_level = "warn"`},
		{[]string{"config", "dump", "--config", file, "--root", "/other", "--socket", "/s"}, "root = \"/other\""},
		{[]string{"config", "check", "--config", file}, "is valid"},
		{[]string{"version"}, "crid "},
	} {
		out, err := crid(t, c.args...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("crid %v: got %v and\n%s", c.args, err, out)
		}
	}
	bad := write(t, filepath.Join(t.TempDir(), "bad.toml"), "log_level = \"loud\"\n", 0o600)
	foreign := write(t, filepath.Join(t.TempDir(), "foreign.toml"), "default_sysctls = [\"vm.swappiness=1\"]\n", 0o600)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"config", "check", "--config", bad}, bad + ":1: log_level"},
		{[]string{"--config", bad}, bad + ":1: log_level"},
		{[]string{"--config", "/nonexistent.toml"}, "/nonexistent.toml"},
		{[]string{"config", "check", "--config", foreign}, `default_sysctls: "vm.swappiness": belongs to no namespace of a pod`},
		{[]string{"config", "check", "--config", file, "--root", "here"}, `root: "here" must be an absolute path`},
	} {
		if _, err := crid(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("crid %v: got %v, want %s", c.args, err, c.want)
		}
	}
}

func TestASecondCridIsToldWhoHoldsTheRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "root")
	holder, in := startHolder(t, dir)
	if _, err := lock(dir, serving); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("lock %s: in use by another crid, pid %d", dir, holder.Process.Pid)) {
		t.Errorf("got %v", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Fatal(err)
	}
	l, err := lock(dir, serving)
	if err != nil {
		t.Fatalf("the holder is gone, yet: %v", err)
	}
	if pid := holderOf(t, dir); pid != os.Getpid() {
		t.Errorf("the lock is signed by %d", pid)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// startHolder starts a process that holds the lock of dir; it ends when its input does.
func startHolder(t *testing.T, dir string) (holder *exec.Cmd, in io.Closer) {
	t.Helper()
	holder = exec.CommandContext(t.Context(), os.Args[0], dir)
	holder.Env = append(os.Environ(), playVar+"=holder")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := readLine(out); err != nil || said != "locked" {
		t.Fatalf("the holder says %q, %v", said, err)
	}
	return holder, in
}

func TestACridThatStartsWaitsForAChildOfAKilledOne(t *testing.T) {
	base := t.TempDir()
	p := places{config.Config{Root: filepath.Join(base, "root"), Runroot: filepath.Join(base, "run")}}
	holder, in := startHolder(t, p.Root)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { // ends when it has the locks
		held, err := lockToServe(t.Context(), p, slog.New(slog.DiscardHandler))
		got <- errors.Join(err, held.Close())
	}()
	select {
	case err := <-got:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := in.Close(); err != nil { // the child ends
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func readLine(r interface{ Read([]byte) (int, error) }) (string, error) {
	raw := make([]byte, 100)
	n, err := r.Read(raw)
	return strings.TrimSpace(string(raw[:n])), err
}

func holderOf(t *testing.T, dir string) (pid int) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestSockets(t *testing.T) {
	ctx, path := t.Context(), filepath.Join(t.TempDir(), "sub", "crid.sock")
	for _, mask := range []int{0, 0o077} {
		old := syscall.Umask(mask)
		l, err := listen(ctx, path, 0o660)
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("umask %o: %v, %v", mask, info.Mode(), err)
		}
		if _, err := listen(ctx, path, 0o660); err == nil || !strings.Contains(err.Error(), "is served by another program") {
			t.Errorf("a socket in use: %v", err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := l.Close(); err != nil { // as if crid were killed: the next turn finds a stale socket
			t.Error(err)
		}
	}
	file := write(t, filepath.Join(t.TempDir(), "file"), "precious", 0o600)
	if _, err := listen(ctx, file, 0o660); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if kept, err := os.ReadFile(file); err != nil || string(kept) != "precious" {
		t.Errorf("the file in the way: %q, %v", kept, err)
	}
}

func TestTheLibrariesLogIntoOurs(t *testing.T) {
	var out bytes.Buffer
	cfg := config.Default()
	cfg.LogLevel, cfg.LogFormat = "debug", "json"
	log, err := newLog(cfg, &out)
	if err != nil {
		t.Fatal(err)
	}
	library := logrus.New()
	library.SetOutput(&bytes.Buffer{})
	library.AddHook(bridge{log})
	library.WithField("layer", "x").Warn("cannot unmount")
	library.Info("progress")
	first, second, _ := strings.Cut(out.String(), "\n")
	var line struct{ Level, Msg, Layer string }
	if err := json.Unmarshal([]byte(first), &line); err != nil {
		t.Fatal(err)
	}
	if line.Level != "WARN" || line.Msg != "cannot unmount" || line.Layer != "x" {
		t.Errorf("got %+v", line)
	}
	if !strings.Contains(second, `"DEBUG"`) {
		t.Errorf("what is information to a library is detail to crid: %s", second)
	}
}

func TestTheDebugSocketCountsAndProfiles(t *testing.T) {
	l, err := listen(t.Context(), filepath.Join(t.TempDir(), "debug.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s := debugServer(func() (counts, error) {
		now, err := ownCounts()
		now.Pods = 3
		return now, err
	})
	done := make(chan struct{})
	go func() { // ends by Close
		serveDebug(s, l, func(err error) { t.Error(err) })
		close(done)
	}()
	client := &http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) {
		return net.Dial("unix", l.Addr().String())
	}}}
	resp, err := client.Get("http://crid/counts")
	if err != nil {
		t.Fatal(err)
	}
	var got counts
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Pods != 3 || got.Goroutines == 0 || got.FDs == 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	dump, err := client.Get("http://crid/debug/pprof/goroutine?debug=1")
	if err != nil || dump.StatusCode != http.StatusOK {
		t.Errorf("goroutines: %v, %v", dump, err)
	}
	for _, r := range []*http.Response{resp, dump} {
		if err := r.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	client.CloseIdleConnections()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

// played makes a runtime of a script in a directory that is the whole PATH.
func played(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, script := range scripts {
		write(t, filepath.Join(dir, name), "#!/bin/sh\n"+script, 0o700)
	}
}

const (
	works  = "[ \"$1\" = --version ] && echo runc version 1.0.3 && echo spec: 1.0.2-dev && exit 0\nexit 1\n"
	mute   = "[ \"$1\" = --version ] && echo runc version 1.1.5 && echo spec: 1.0.2-dev && exit 0\nexit 1\n"
	broken = "exit 1\n"
)

// onlyThese is a configuration whose handlers have names that no machine has.
func onlyThese(t *testing.T, defaultRuntime string, names ...string) config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Runroot, cfg.DefaultRuntime, cfg.Conmon = t.TempDir(), defaultRuntime, "sh"
	cfg.Runtimes = map[string]config.Runtime{}
	for _, name := range names {
		cfg.Runtimes[name] = config.Runtime{Path: "crid-test-" + name}
	}
	return cfg
}

func TestHandlersAreFoundAndOrdered(t *testing.T) {
	played(t, map[string]string{"crid-test-a": works, "crid-test-crun": works, "crid-test-bad": broken, "crid-test-mute": mute})
	for _, c := range []struct {
		name, chosen string
		handlers     []string
		want         string // handlers in order
		warnings     int
	}{
		{"preferred first", "", []string{"a", "crun"}, "crun a", 0},
		{"chosen first", "a", []string{"a", "crun"}, "a crun", 0},
		{"absent is left out", "", []string{"a", "runc"}, "a", 0},
		{"broken is left out", "", []string{"a", "bad"}, "a", 1},
		{"one that does not tell", "", []string{"a", "mute"}, "a mute", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := findPrograms(t.Context(), onlyThese(t, c.chosen, c.handlers...), oci.Config{Cgroups: &cgroup.Tree{}})
			if err != nil {
				t.Fatal(err)
			}
			if got := names(p.facts); got != c.want || len(p.warnings) != c.warnings || len(p.handlers) != len(p.facts) {
				t.Errorf("got %s, warnings %q", got, p.warnings)
			}
			p.tell(slog.New(slog.DiscardHandler))
		})
	}
}

func TestHandlersKeepWhatTheyAreAllowed(t *testing.T) {
	played(t, map[string]string{"crid-test-a": works})
	cfg := onlyThese(t, "a")
	cfg.Runtimes["a"] = config.Runtime{Path: "crid-test-a", AllowedAnnotations: []string{"example.com/*"}}
	p, err := findPrograms(t.Context(), cfg, oci.Config{Cgroups: &cgroup.Tree{}})
	if err != nil || !slices.Equal(p.handlers["a"].AllowedAnnotations, []string{"example.com/*"}) {
		t.Errorf("got %+v, %v", p.handlers["a"], err)
	}
}

func names(handlers []fact.Handler) string {
	var all []string
	for _, h := range handlers {
		all = append(all, h.Name)
	}
	return strings.Join(all, " ")
}

func TestMissingProgramsAreToldAtOnceWithTheirPackage(t *testing.T) {
	played(t, map[string]string{"crid-test-bad": broken, "crid-test-mute": mute})
	for _, c := range []struct {
		name string
		cfg  func(*config.Config)
		want []string
	}{
		{"nothing there", func(c *config.Config) { c.Conmon = "crid-test-conmon" },
			[]string{"crid-test-conmon is not there", "install the package conmon", "install the package crun (or runc)"}},
		{"the default is absent", func(c *config.Config) { c.DefaultRuntime = "a" }, []string{"handler a", "crid-test-a is not there"}},
		{"the default is broken", func(c *config.Config) { c.DefaultRuntime = "bad" }, []string{"handler bad", "crid-test-bad"}},
		{"none works", func(*config.Config) {}, []string{"no OCI runtime was found", "crid-test-bad"}},
		{"a path is wrong", func(c *config.Config) { c.Runtimes["a"] = config.Runtime{Path: "/nonexistent/a"} },
			[]string{"/nonexistent/a is not there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := onlyThese(t, "", "a", "bad")
			c.cfg(&cfg)
			_, err := findPrograms(t.Context(), cfg, oci.Config{Cgroups: &cgroup.Tree{}})
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v\nwant %s", err, want)
				}
			}
		})
	}
}
