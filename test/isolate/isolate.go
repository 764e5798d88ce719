// Package isolate runs a program of ours in namespaces of its own, so that a crid, its pods, bridges, NAT
// rules, mounts and cgroups never touch the host's, and nothing outlives the program whatever happens to it.
// It does not know crid.
package isolate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The environment tells a re-executed program which stage it is in and where its scratch directory is.
const (
	stageVar   = "CRID_ISOLATE_STAGE"
	scratchVar = "CRID_ISOLATE_SCRATCH"
)

// The stages, besides that of a program that is not yet isolated.
const (
	initStage    = "init"
	programStage = "program"
)

// Scratch is the directory of the isolated program: on a real disk, removed with everything in it when the
// program ends.
func Scratch() string { return os.Getenv(scratchVar) }

// CgroupParent is the cgroup, in every hierarchy, that the program may make cgroups below. It is removed,
// with what is left in it, when the program ends.
func CgroupParent() string { return "/crid-" + strings.TrimPrefix(filepath.Base(Scratch()), "crid-") }

// Run calls program in mount, network, PID, IPC and UTS namespaces of its own and ends with its exit code: it
// must be the first thing that main or TestMain does. The loopback is up; /run is an empty tmpfs; /etc and
// /var/lib are the host's with every change kept in the scratch directory, without /etc/containers, in which the
// host's tools for images have their policy; the empty v2 hierarchy of a hybrid host is unmounted, because crun
// before 1.9 refuses it. Signals that ask the program to end are passed on.
func Run(program func() int) {
	var code int
	var err error
	switch os.Getenv(stageVar) {
	case "":
		code, err = outer()
	case initStage:
		code, err = initProcess()
	default:
		code = program()
	}
	exit(code, err)
}

// outer stays on the host: it makes the scratch directory and takes away what the program leaves.
func outer() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("root is needed for namespaces of its own")
	}
	return inScratch(func() (code int, err error) {
		defer func() { err = errors.Join(err, removeCgroups(CgroupParent())) }()
		return again(initStage, &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			Pdeathsig:  syscall.SIGKILL,
		})
	})
}

// initProcess is PID 1 of the new namespaces: it prepares them, starts the program and reaps orphans (a
// monitor's parent is gone on purpose) until the program has ended. The kernel then kills all that is left.
func initProcess() (int, error) {
	if err := errors.Join(mounts(Scratch()), loopbackUp()); err != nil {
		return 1, err
	}
	return again(programStage, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL})
}

// again starts this program anew for the next stage and waits for it, reaping whatever else is a child.
func again(stage string, attr *syscall.SysProcAttr) (int, error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start stage %s: %w", stage, err)
	}
	go func() { // ends with the process
		for s := range signals {
			if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
				fmt.Fprintln(os.Stderr, "isolate: pass on signal:", err)
			}
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for stage %s: %w", stage, err)
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == cmd.Process.Pid:
			return status.ExitStatus(), nil
		}
	}
}

func mounts(scratch string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	for _, dir := range []string{"/etc", "/var/lib"} {
		if err := cover(dir, filepath.Join(scratch, "cover", dir)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll("/etc/containers"); err != nil {
		return fmt.Errorf("hide /etc/containers: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := hideUnified(); err != nil {
		return err
	}
	// Shared, as a host's mounts are, so that propagation into containers can be tested.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// hideUnified takes the v2 hierarchy of a hybrid host out of sight. A tmpfs of its own lies in its place then:
// runtimes make directories there, which would land in the host's tmpfs beneath.
func hideUnified() error {
	const dir = "/sys/fs/cgroup/unified"
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // not a hybrid host
	}
	if err == nil {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755")
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return nil
}

// cover lays an overlay over dir, so that writes land in scratch.
func cover(dir, scratch string) error {
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
