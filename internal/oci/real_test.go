package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/bundle"
	"github.com/crid/crid/test/isolate"
)

// box is a container that runs under a real runtime.
type box struct {
	t      testing.TB
	r      *Runtime
	id     string
	cgroup string
}

// each runs test with each runtime, in a container that sleeps.
func each(t *testing.T, test func(t *testing.T, b box)) {
	isolate.NeedRoot(t, "it makes containers")
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			fds, goroutines := isolate.OpenFiles(t), runtime.NumGoroutine()
			b := sleeper(t, name)
			test(t, b)
			settled(t, func() bool { return isolate.OpenFiles(t) <= fds && runtime.NumGoroutine() <= goroutines }, func() string {
				return fmt.Sprintf("left behind: %d fds, were %d; %d goroutines, were %d", isolate.OpenFiles(t), fds, runtime.NumGoroutine(), goroutines)
			})
		})
	}
}

// sleeper creates and starts a container.
func sleeper(t testing.TB, name string) box {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: install the package %s", err, name)
	}
	tree, err := cgroup.Open(fact.Host{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := box{t: t, id: "c-" + name, cgroup: cgroup.Names{}.Leaf(isolate.CgroupParent(), "c-"+name)}
	b.r = New(Config{Name: name, Path: path, Root: filepath.Join(dir, "root"), Cgroups: tree})
	rootfs := filepath.Join(dir, "rootfs")
	if err := bundle.Rootfs(rootfs); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(bundle.Config(rootfs, b.cgroup, "sleep", "100000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	errors, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errors.Close()
	create := exec.Command(path, "--root", b.r.cfg.Root, "create", "--bundle", dir, b.id)
	create.Stdout, create.Stderr = errors, errors // the container's too: not pipes
	if err := create.Run(); err != nil {
		text, _ := os.ReadFile(errors.Name())
		t.Fatalf("create: %v: %s", err, text)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := b.r.Delete(ctx, b.id, true); err != nil {
			t.Error(err)
		}
		if err := tree.Remove(ctx, b.cgroup); err != nil {
			t.Error(err)
		}
	})
	if err := b.r.Start(t.Context(), b.id); err != nil {
		t.Fatal(err)
	}
	return b
}

// exec runs a shell command in the container.
func (b box) exec(ctx context.Context, timeout time.Duration, shell string) (ExecResult, error) {
	return b.r.Exec(ctx, b.id, Exec{Process: bundle.Process("sh", "-c", shell), Timeout: timeout, Limit: 1 << 20, Cgroup: b.cgroup})
}

// settled waits until done, for what ends by itself without telling: goroutines.
func settled(t testing.TB, done func() bool, otherwise func() string) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Error(otherwise())
			return
		}
	}
}

func TestAContainersLife(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		ctx := t.Context()
		state, err := b.r.State(ctx, b.id)
		if err != nil || state.Status != specs.StateRunning || state.Pid == 0 {
			t.Fatalf("state %+v, %v", state, err)
		}
		if err := b.r.Start(ctx, b.id); err == nil {
			t.Error("started twice")
		}
		limit := int64(64 << 20)
		if err := b.r.Update(ctx, b.id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
			t.Error(err)
		}
		if err := b.r.Delete(ctx, b.id, false); err == nil {
			t.Error("a running container was deleted without force")
		}
		for range 2 { // repeatable
			if err := b.r.Delete(ctx, b.id, true); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAMountOfTheRuntimesIsSwept(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		dir := filepath.Join(b.r.cfg.Root, b.id)
		left := filepath.Join(dir, "runc.ABCDEF")
		if err := os.WriteFile(left, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(b.r.cfg.Path, left, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		err := b.r.Delete(t.Context(), b.id, true)
		if b.r.cfg.Name == "crun" && err != nil { // which never mounts there, and says so
			err = errors.Join(unix.Unmount(left, unix.MNT_DETACH), b.r.Delete(t.Context(), b.id, true))
		}
		if err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	})
}

func TestCrunClonesItselfInItsRoot(t *testing.T) {
	isolate.NeedRoot(t, "it makes containers")
	b := sleeper(t, "crun")
	root := b.r.cfg.Root
	w, err := fsnotify.NewWatcher()
	if err == nil {
		err = w.Add(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := b.r.State(t.Context(), b.id); err != nil {
		t.Fatal(err)
	}
	for limit := time.After(10 * time.Second); ; {
		select {
		case e := <-w.Events:
			if e.Has(fsnotify.Create) && strings.HasPrefix(filepath.Base(e.Name), clonePrefix) {
				return
			}
		case <-limit:
			t.Fatal("nothing was made there")
		}
	}
}

func TestTidyTakesAwayWhatTheKilledLeft(t *testing.T) {
	isolate.NeedRoot(t, "it mounts")
	r := New(Config{Name: "crun", Root: t.TempDir()})
	path := func(name string) string { return filepath.Join(r.cfg.Root, name) }
	for _, name := range []string{clonePrefix + "mounted", clonePrefix + "plain", consolePrefix + "old"} {
		if err := os.WriteFile(path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Mkdir(path("container"), 0o700), unix.Mount("/bin/sh", path(clonePrefix+"mounted"), "", unix.MS_BIND, ""))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // repeatable
		if err := r.Tidy(); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(r.cfg.Root)
	if err != nil || len(left) != 1 || left[0].Name() != "container" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAnUnknownContainer(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		ctx := t.Context()
		for _, force := range []bool{false, true} {
			if err := b.r.Delete(ctx, "nobody", force); err != nil {
				t.Errorf("delete, force %v: %v", force, err)
			}
		}
		if _, err := b.r.State(ctx, "nobody"); !errors.Is(err, errdef.NotFound) {
			t.Errorf("state: %v", err)
		}
		if err := b.r.Start(ctx, "nobody"); err == nil {
			t.Error("started")
		}
	})
}

func TestExec(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, test := range []struct {
			shell    string
			code     int
			out, err string
		}{
			{"echo out; echo err >&2; exit 9", 9, "out\n", "err\n"},
			{"exit 255", 255, "", ""},
			{"kill -9 $$", 137, "", ""},
			{"kill -15 $$", 143, "", ""},
			{"wc -c", 0, "0\n", ""},
			{"ls /proc/self/fd | wc -l", 0, "4\n", ""}, // three and the directory's own
			{"(sleep 4311 >/dev/null 2>&1 &) ; exit 3", 3, "", ""},
		} {
			res, err := b.exec(t.Context(), 10*time.Second, test.shell)
			if err != nil || res.ExitCode != test.code || string(res.Stdout) != test.out || string(res.Stderr) != test.err {
				t.Errorf("%s: %d, %q, %q, %v", test.shell, res.ExitCode, res.Stdout, res.Stderr, err)
			}
		}
		if isolate.Running(t, "sleep 4311") != 1 {
			t.Error("what a command left running on purpose is gone")
		}
	})
}

func TestACommandThatDoesNotExist(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, command := range []string{"nonesuch", "/no/such"} {
			res, err := b.r.Exec(t.Context(), b.id, Exec{Process: bundle.Process(command), Limit: 100, Cgroup: b.cgroup})
			if err == nil || !strings.Contains(err.Error(), command) || strings.Contains(err.Error(), "unable to start") {
				t.Errorf("%+v, %v", res, err)
			}
		}
		if _, err := b.r.Exec(t.Context(), "nobody", Exec{Process: bundle.Process("true"), Cgroup: b.cgroup}); err == nil {
			t.Error("exec in a container that does not exist")
		}
	})
}

func TestMuchOutputIsCut(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		res, err := b.exec(t.Context(), 30*time.Second, "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 4")
		if err != nil || res.ExitCode != 4 || len(res.Stdout) != 1<<20 || len(res.Stderr) != 1<<20 {
			t.Errorf("%d, %d and %d bytes, %v", res.ExitCode, len(res.Stdout), len(res.Stderr), err)
		}
	})
}

func TestAChildThatKeepsThePipeDelaysNobody(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, test := range []struct{ shell, out string }{
			{"sleep 4321 & echo done; exit 5", "done\n"},
			{"setsid sleep 4322 & sleep 1.5; echo done; exit 5", "done\n"},
		} {
			began := time.Now()
			res, err := b.exec(t.Context(), 20*time.Second, test.shell)
			if err != nil || res.ExitCode != 5 || string(res.Stdout) != test.out || time.Since(began) > 4*time.Second {
				t.Errorf("%s: %+v, %v after %v", test.shell, res, err, time.Since(began))
			}
		}
	})
}

func TestNothingOfATimedOutCommandLives(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, shell := range []string{
			"sleep 4331",
			"trap '' TERM HUP INT; sleep 4331; sleep 4331",
			"(setsid sleep 4331 &) ; sleep 4331",
			"setsid sh -c 'setsid sleep 4331 & setsid sleep 4331 & exit' & sleep 4331",
			"(setsid sleep 4331 >/dev/null 2>&1 </dev/null &) ; (setsid sleep 4331 &) ; sleep 4331",
			"f() { f & f & sleep 4331; }; f & exec sleep 4331", // as many as the container's limit of pids allows
		} {
			began := time.Now()
			_, err := b.exec(t.Context(), 500*time.Millisecond, shell)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
				t.Errorf("%s: %v after %v", shell, err, time.Since(began))
			}
			if n := isolate.Running(t, "sleep 4331"); n > 0 {
				t.Errorf("%s: %d live on", shell, n)
			}
		}
		if res, err := b.exec(t.Context(), 10*time.Second, "echo fine"); err != nil || string(res.Stdout) != "fine\n" {
			t.Errorf("after the timeouts: %+v, %v", res, err)
		}
	})
}

func TestACancelledCommandIsKilled(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		ctx, cancel := context.WithCancel(t.Context())
		out, stop := make(chan error, 1), time.AfterFunc(300*time.Millisecond, cancel)
		defer stop.Stop()
		go func() { // ends with the command
			_, err := b.exec(ctx, 0, "(setsid sleep 4341 &) ; sleep 4341")
			out <- err
		}()
		if err := <-out; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if n := isolate.Running(t, "sleep 4341"); n > 0 {
			t.Errorf("%d live on", n)
		}
	})
}

func TestACancelledStartOfACommandLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for i := range 30 { // hits the runtime at every stage of its work
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
			_, err := b.exec(ctx, 0, "(setsid sleep 4351 &) ; sleep 4351")
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %d ms: %v", i, err)
			}
			if n := isolate.Running(t, "sleep 4351"); n > 0 {
				t.Errorf("after %d ms: %d live on", i, n)
			}
		}
		if n := isolate.Running(t, "exec --process"); n > 0 {
			t.Errorf("%d runtimes live on", n)
		}
	})
}

func BenchmarkExec(b *testing.B) {
	isolate.NeedRoot(b, "it makes containers")
	for _, name := range []string{"crun", "runc"} {
		b.Run(name, func(b *testing.B) {
			box := sleeper(b, name)
			for b.Loop() {
				if _, err := box.r.Exec(b.Context(), box.id, Exec{Process: bundle.Process("true"), Limit: 100, Cgroup: box.cgroup}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
