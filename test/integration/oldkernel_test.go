package integration

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
)

// oldKernel is the name by which this test binary becomes crid on a kernel without PIDFD_GET_INFO, as those before 6.13 are.
const oldKernel = "old-kernel"

// playOldKernel lets that ioctl fail as it does where it is not known, here and in all that comes of it, and becomes crid.
func playOldKernel() error {
	const number, request = 0, 24 // in struct seccomp_data: the call, and its second argument
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IOCTL, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: request},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xffff}, // type and number, whatever the size
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PIDFD_GET_INFO & 0xffff, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTTY)},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // the filter is this thread's, which becomes crid
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	return syscall.Exec(harness.Binary("crid"), os.Args, os.Environ())
}

// TestAnExitOnAnOldKernel kills monitors where the kernel does not tell how a process ended that was reaped: then nobody
// knows, and that is what is said, as soon as ever. What a monitor has recorded is known all the same.
func TestAnExitOnAnOldKernel(t *testing.T) {
	program := ownProgram(t, oldKernel)
	c := harness.Start(t, harness.Program(program))
	pod := c.RunPod()
	if s := pod.Run("exit 3").Wait(); s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("an exit that is on record: code %d, %s", s.ExitCode, s.Reason)
	}
	var codes []int32
	inTime(t, "from the monitor's death to EXITED", func() time.Duration {
		ctr := pod.Run("sleep 1000")
		kill(t, monitorOf(t, c, ctr), syscall.SIGKILL)
		took, s := untilExited(t, ctr)
		if s.Reason != "ExitUnrecorded" || !strings.Contains(s.Message, "its monitor ended without recording the exit") {
			t.Errorf("the container: code %d, %s %q", s.ExitCode, s.Reason, s.Message)
		}
		codes = append(codes, s.ExitCode)
		return took
	})
	if !slices.Contains(codes, 255) || slices.ContainsFunc(codes, func(code int32) bool { return code != 255 && code != 137 }) {
		t.Errorf("exit codes %v; want 255, or 137 of one that nobody has reaped yet", codes)
	}
}
