package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/isolate"
)

const (
	// killer makes the test binary a process that kills the cgroup of this name as soon as it reads a line.
	killer     = "CRID_CGROUP_TEST_KILL"
	killerMode = "CRID_CGROUP_TEST_KILL_MODE" // v2, or nothing for v1
	// threader makes it a process with a thread in the threaded cgroup of this directory; only its first is elsewhere.
	threader = "CRID_CGROUP_TEST_THREADS"
)

// TestMain plays a killer, or runs the tests in namespaces of their own.
func TestMain(m *testing.M) {
	if os.Getenv(killer) != "" {
		playKiller()
		return
	}
	if dir := os.Getenv(threader); dir != "" {
		playThreader(dir)
		return
	}
	isolate.Tests(m.Run)
}

// playKiller says what Kill answers to a process in its own place.
func playKiller() {
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	ctx, cancel := context.WithTimeout(context.Background(), isolate.Patient(20*time.Second))
	defer cancel()
	host := fact.Host{Cgroup: fact.CgroupV1, Controllers: controllers}
	if os.Getenv(killerMode) == "v2" {
		host = fact.Host{Cgroup: fact.CgroupV2}
	}
	var tree *Tree
	if err == nil {
		tree, err = Open(host)
	}
	if err == nil {
		err = tree.Kill(ctx, os.Getenv(killer))
	}
	fmt.Println(err)
}

// playThreader says "ready" once a thread of its own, not the first, is in the threaded cgroup dir.
func playThreader(dir string) {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		fmt.Println(err)
		return
	}
	moved := make(chan error)
	for range 2 { // one of them is not the first thread
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				select {} // holds the first thread, for the other to get another
			}
			moved <- os.WriteFile(filepath.Join(dir, "cgroup.threads"), []byte(strconv.Itoa(unix.Gettid())), 0)
			select {} // holds the thread until the process is killed
		}()
	}
	if err := <-moved; err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

// controllers are all that a test may meet.
var controllers = []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"}

// modes runs a test once for each way of mounting cgroups that this machine can show.
func modes(t *testing.T, test func(t *testing.T, tree *Tree)) {
	t.Helper()
	for _, mode := range []fact.CgroupMode{fact.CgroupV1, fact.CgroupHybrid, fact.CgroupV2} {
		t.Run(mode.String(), func(t *testing.T) { test(t, open(t, mode)) })
	}
}

// open returns the tree of the machine as a host of that mode sees it. It has no controllers on v2: handing those
// down would change the root cgroup of the machine.
func open(t *testing.T, mode fact.CgroupMode) *Tree {
	t.Helper()
	isolate.NeedRoot(t, "it makes cgroups")
	var root unix.Statfs_t
	if err := unix.Statfs(mountRoot, &root); err != nil {
		t.Fatal(err)
	}
	host := fact.Host{Cgroup: mode, Controllers: controllers}
	switch {
	case mode != fact.CgroupV2 && root.Type == unix.CGROUP2_SUPER_MAGIC:
		t.Skip("this machine has no cgroup v1")
	case mode == fact.CgroupHybrid:
		if _, err := os.Stat(mountRoot + "/unified"); err != nil {
			t.Skip("this machine does not mount v2 beside v1")
		}
		mountV2(t, mountRoot+"/unified") // isolate hides it
	case mode == fact.CgroupV2 && root.Type != unix.CGROUP2_SUPER_MAGIC:
		mountV2(t, mountRoot)
		host.Controllers = nil
	case mode == fact.CgroupV2:
		host.Controllers = nil
	}
	tree, err := Open(host)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// mountV2 mounts the v2 hierarchy at dir for the time of the test.
func mountV2(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// parent makes a cgroup for the test and checks at its end that nothing is left in or of it.
func parent(t *testing.T, tree *Tree) string {
	t.Helper()
	path := isolate.CgroupParent() + "/crid-" + strings.NewReplacer("/", "-", " ", "_").Replace(t.Name())
	if err := tree.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pids, err := tree.Pids(path)
		if err != nil || len(pids) > 0 {
			t.Errorf("left behind: processes %v, %v", pids, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tree.Remove(ctx, path); err != nil {
			t.Error(err)
		}
		for _, h := range tree.hierarchies {
			if _, err := os.Stat(h.dir + path); !os.IsNotExist(err) {
				t.Errorf("left behind: %s: %v", h.dir+path, err)
			}
		}
	})
	return path
}

func create(t *testing.T, tree *Tree, path ...string) string {
	t.Helper()
	joined := filepath.Join(path...)
	if err := tree.Create(joined); err != nil {
		t.Fatal(err)
	}
	return joined
}

// child is a foreign process that waits for a line before it does anything.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// begin starts cmd. It is killed when the test ends, if it lives.
func begin(t *testing.T, cmd *exec.Cmd) child {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // how, the test has looked at if it cares
	})
	return child{cmd, in, bufio.NewReader(out)}
}

// shell starts a script that says "ready" when it has come to its point, in the cgroup at path, and waits for that.
func shell(t *testing.T, tree *Tree, path, script string) child {
	t.Helper()
	c := begin(t, exec.Command("sh", "-c", "read go\n"+script))
	if err := tree.Join(path, c.pid()); err != nil {
		t.Fatal(err)
	}
	if said := c.ask(t); said != "ready" {
		t.Fatalf("the script says %q", said)
	}
	return c
}

func (c child) pid() int { return c.cmd.Process.Pid }

// ask gives the line that the child waits for and returns the line that it answers.
func (c child) ask(t *testing.T) string {
	t.Helper()
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		t.Fatal(err)
	}
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// killed waits for the child's end and checks that SIGKILL was its cause.
func (c child) killed(t *testing.T) {
	t.Helper()
	err := c.cmd.Wait()
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("process %d ended with %v", c.pid(), err)
	}
}
