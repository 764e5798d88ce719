package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/bundle"
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

// play is a runtime that fails to create in one way.
func play(part string) int {
	switch part {
	case "refuse":
		fmt.Fprintln(os.Stderr, `no such luck: "quoted"`, "\x01 \xff")
	case "shout": // more than conmon passes on
		fmt.Fprintln(os.Stderr, strings.Repeat("x", 20000))
	case "hang":
		if err := syscall.Pause(); err != nil {
			return 2
		}
	}
	return 1
}

// host is where a test's containers live.
type host struct {
	t       *testing.T
	dir     string
	cgroups cgroup.Driver
	*Launcher
	runtime string
	root    string // of the runtime
	rootfs  string
	made    []string // ids
}

func newHost(t *testing.T, runtimeName, dir string) *host {
	t.Helper()
	isolate.NeedRoot(t, "it makes containers")
	path, err := exec.LookPath(runtimeName)
	if err != nil {
		t.Fatalf("%v: install the package %s", err, runtimeName)
	}
	tree, err := cgroup.Open(fact.Host{})
	if err != nil {
		t.Fatal(err)
	}
	fds, goroutines := isolate.OpenFiles(t), runtime.NumGoroutine()
	h := &host{t: t, dir: dir, cgroups: cgroup.NewDriver(tree, nil), runtime: path, root: filepath.Join(dir, "rt"), rootfs: filepath.Join(dir, "rootfs")}
	if err := bundle.Rootfs(h.rootfs); err != nil {
		t.Fatal(err)
	}
	h.Launcher = h.launcher()
	t.Cleanup(func() {
		h.erase()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		h.checkLeftovers(fds, goroutines)
	})
	return h
}

// launcher returns another Launcher of the same host, as after a restart of crid.
func (h *host) launcher() *Launcher {
	conmon, err := exec.LookPath("conmon")
	if err != nil {
		h.t.Fatalf("%v: install the package conmon", err)
	}
	return New(Config{Path: conmon, Dir: filepath.Join(h.dir, "monitor"), ExitDir: filepath.Join(h.dir, "exits")}, h.cgroups)
}

// spec describes a container that runs a shell command and logs to <dir>/<id>.log.
func (h *host) spec(id, shell string) Spec {
	h.t.Helper()
	config, err := json.Marshal(bundle.Config(h.rootfs, cgroup.Names{}.Leaf(isolate.CgroupParent(), id), "sh", "-c", shell))
	if err != nil {
		h.t.Fatal(err)
	}
	h.made = append(h.made, id)
	return Spec{
		ID: id, Name: "name-" + id, Runtime: h.runtime, RuntimeRoot: h.root, Config: config,
		LogPath: h.logPath(id), Cgroup: cgroup.Names{}.MonitorLeaf(isolate.CgroupParent(), id),
		Env: []string{"PATH=" + os.Getenv("PATH")},
	}
}

func (h *host) logPath(id string) string { return filepath.Join(h.dir, id+".log") }

func (h *host) log(id string) string {
	h.t.Helper()
	text, err := os.ReadFile(h.logPath(id))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}

// run creates and starts a container.
func (h *host) run(s Spec) *Process {
	h.t.Helper()
	p, err := h.Start(h.t.Context(), s)
	if err != nil {
		h.t.Fatal(err)
	}
	h.start(s.ID)
	return p
}

func (h *host) start(id string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	start := exec.CommandContext(ctx, h.runtime, "--root", h.root, "start", id)
	start.Env = []string{"PATH=" + os.Getenv("PATH")}
	if out, err := start.CombinedOutput(); err != nil {
		h.t.Fatalf("start: %v: %s", err, out)
	}
}

// wait waits for the exit, but not for ever.
func (h *host) wait(p *Process) Exit {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 30*time.Second)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	return exit
}

// erase undoes all containers, in the order in which crid does it.
func (h *host) erase() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, id := range h.made {
		steps := []func() error{
			func() error { return h.Disarm(id) },
			func() error { return h.cgroups.Kill(ctx, cgroup.Names{}.Leaf(isolate.CgroupParent(), id)) },
			func() error { return h.cgroups.Kill(ctx, cgroup.Names{}.MonitorLeaf(isolate.CgroupParent(), id)) },
			func() error {
				return exec.CommandContext(ctx, h.runtime, "--root", h.root, "delete", "--force", id).Run()
			},
			func() error { return h.Remove(ctx, id) },
			func() error { return h.Remove(ctx, id) }, // repeatable
			func() error { return h.cgroups.Remove(ctx, cgroup.Names{}.Leaf(isolate.CgroupParent(), id)) },
			func() error { return h.cgroups.Remove(ctx, cgroup.Names{}.MonitorLeaf(isolate.CgroupParent(), id)) },
		}
		for i, step := range steps {
			if err := step(); err != nil {
				h.t.Errorf("erase %s, step %d: %v", id, i, err)
			}
		}
	}
}

func (h *host) checkLeftovers(fds, goroutines int) {
	h.t.Helper()
	for _, dir := range []string{h.cfg.Dir, h.cfg.ExitDir} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			h.t.Errorf("left in %s: %v", dir, entries)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "conmon-term*")); err != nil || len(left) > 0 {
		h.t.Errorf("left of consoles: %v, %v", left, err)
	}
	// Goroutines, and the runtime of a killed monitor, end by themselves, without telling.
	deadline := time.Now().Add(3 * time.Second)
	for isolate.OpenFiles(h.t) > fds || runtime.NumGoroutine() > goroutines || isolate.Running(h.t, h.dir) > 0 {
		if time.Now().After(deadline) {
			h.t.Errorf("left behind: %d fds, were %d; %d goroutines, were %d; %d processes",
				isolate.OpenFiles(h.t), fds, runtime.NumGoroutine(), goroutines, isolate.Running(h.t, h.dir))
			return
		}
		runtime.Gosched()
	}
}

// each runs test with each runtime.
func each(t *testing.T, test func(t *testing.T, h *host)) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { test(t, newHost(t, name, t.TempDir())) })
	}
}

// waitForLog waits until the log of id contains words.
func (h *host) waitForLog(id, words string) {
	h.t.Helper()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		h.t.Fatal(err)
	}
	defer watcher.Close()
	if err := watcher.Add(h.dir); err != nil {
		h.t.Fatal(err)
	}
	timeout := time.After(10 * time.Second)
	for {
		text, err := os.ReadFile(h.logPath(id))
		if err == nil && strings.Contains(string(text), words) {
			return
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			h.t.Fatal(err)
		case <-timeout:
			h.t.Fatalf("log of %s: %q, %v", id, text, err)
		}
	}
}
