package ns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
)

// pinOwned makes the namespaces of w in one clone(2), so that the user namespace owns the others, furnishes them from
// a thread of ours, and pins them at set.
func pinOwned(ctx context.Context, w Want, set Set) error {
	return withHolder(w, func(dir string) error {
		if flags := w.flags(); flags != 0 {
			if err := inNew(joining(dir, flags), func() error { return furnish(w) }); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return bindAll(dir, set)
	})
}

// withHolder calls work with the /proc/PID/ns of a process in new namespaces, which it ends afterwards. That process
// is stopped by ptrace before its first instruction and so never runs anything.
func withHolder(w Want, work func(dir string) error) error {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	holder, err := os.StartProcess("/proc/self/exe", []string{"crid-namespaces"}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{
			Cloneflags:                 uintptr(w.flags()) | unix.CLONE_NEWUSER,
			UidMappings:                sysMap(w.Users.UIDs),
			GidMappings:                sysMap(w.Users.GIDs),
			GidMappingsEnableSetgroups: true,
			Ptrace:                     true,
			Pdeathsig:                  unix.SIGKILL,
		},
	})
	if err != nil {
		scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope") // without Yama there is none
		return holderError(err, string(scope))
	}
	failpoint.Hit("ns/hold/started")
	err = work(filepath.Join("/proc", strconv.Itoa(holder.Pid), "ns"))
	err = errors.Join(err, end(holder))
	failpoint.Hit("ns/hold/ended")
	return err
}

// end kills the holder and waits for its end.
func end(holder *os.Process) error {
	if err := holder.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end the process that held new namespaces: %w", err)
	}
	for {
		// Its stop at exec comes first; os.Process.Wait takes that for the end.
		var status unix.WaitStatus
		_, err := unix.Wait4(holder.Pid, &status, 0, nil)
		if errors.Is(err, unix.EINTR) || err == nil && !status.Exited() && !status.Signaled() {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the process that held new namespaces: %w", err)
		}
		return holder.Release()
	}
}

// holderError tells a map that the kernel does not take from a host where crid may not trace, as withHolder does, or make
// user namespaces, and from a kernel that has no more namespaces. scope is what kernel.yama.ptrace_scope says. Forbidding
// is the host's doing: what a client can get wrong is refused before, or EINVAL.
func holderError(err error, scope string) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err
	}
	switch {
	case errors.Is(err, unix.EPERM) && strings.TrimSpace(scope) == "3":
		return fmt.Errorf("make a user namespace: kernel.yama.ptrace_scope is 3, and crid must trace the process that holds new namespaces: "+
			"set it to 2 or less and reboot: %w: %w", errdef.Unsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("make a user namespace: this host does not let crid (a security module, RestrictNamespaces= of crid's unit or a "+
			"chroot forbids it), or crid itself has not the host ids of userns_options: %w: %w", errdef.Unsupported, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fmt.Errorf("make a user namespace: the kernel refuses the id mappings of userns_options (are there ranges that overlap or are "+
			"empty?): %w: %w", errdef.Invalid, err)
	}
	return makingError(err)
}

func sysMap(ranges []fact.IDRange) []syscall.SysProcIDMap {
	var all []syscall.SysProcIDMap
	for _, r := range ranges {
		all = append(all, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Length)})
	}
	return all
}

// joining enters namespaces of a process; dir is its /proc/PID/ns. Their user namespace is not entered: no thread of a
// process that has several may, and the host's root need not.
func joining(dir string, flags int) entry {
	return entry{flags, func() error {
		for name, flag := range flagOf() {
			if flags&flag == 0 {
				continue
			}
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				return fmt.Errorf("open new namespace: %w", err)
			}
			err = unix.Setns(int(f.Fd()), flag)
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("enter new %s namespace: %w", name, err)
			}
		}
		return nil
	}}
}

// actingAs calls work with the effective user uid and no capabilities. The calling thread must be locked; no other is
// touched.
func actingAs(uid int, work func() error) error {
	if err := seteuid(uid); err != nil {
		return err
	}
	err := errors.Join(work(), seteuid(0))
	// A change of user makes the whole process undumpable, which would hide its stacks from a debugger. Before, it was
	// dumpable as every program that root executes; to ask would be to race with other threads that are here.
	return errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
}

// seteuid is the system call, for this thread; the libraries' functions change all threads.
func seteuid(uid int) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("act as user %d: %w", uid, errno)
	}
	return nil
}
