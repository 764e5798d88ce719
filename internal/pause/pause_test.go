package pause

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/isolate"
)

func TestMain(m *testing.M) { isolate.Tests(m.Run) }

func needRoot(t *testing.T) {
	t.Helper()
	isolate.NeedRoot(t, "it makes a PID namespace")
}

func install(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pause")
	if err := Install(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// held is a pause that holds a PID namespace of its own, started from its root.
type held struct {
	cmd   *exec.Cmd
	pidfd int
}

func start(t *testing.T) held {
	t.Helper()
	h := held{cmd: exec.Command(Name), pidfd: -1}
	h.cmd.Dir = "/"
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: install(t), Cloneflags: syscall.CLONE_NEWPID, PidFD: &h.pidfd}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			_ = h.cmd.Process.Kill() // it ended meanwhile
			_ = h.cmd.Wait()         // killed is what it should be
		}
		if err := unix.Close(h.pidfd); err != nil {
			t.Error(err)
		}
	})
	return h
}

// ended waits for the end of the process for at most d.
func ended(t *testing.T, pidfd int, d time.Duration) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(d.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

func TestEndsWithZeroOnSIGTERM(t *testing.T) {
	needRoot(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			h := start(t)
			for sent := 0; ; sent++ { // until it waits for the signal, the kernel keeps it from process 1
				if err := h.cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				if ended(t, h.pidfd, 10*time.Millisecond) {
					break
				}
				if sent == 1000 {
					t.Fatal("it does not end")
				}
			}
			if err := h.cmd.Wait(); err != nil {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestReapsOrphansAndStaysSmall(t *testing.T) {
	needRoot(t)
	h := start(t)
	pid := h.cmd.Process.Pid

	// A shell in the namespace leaves a child behind, which lives as long as its input is open.
	cmd := exec.Command("nsenter", "--pid="+fmt.Sprintf("/proc/%d/ns/pid", pid), "sh", "-c", "cat <&3 >&3 2>&3 & echo left")
	orphanEnd, ours, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	cmd.ExtraFiles = []*os.File{orphanEnd}
	if out, err := cmd.Output(); err != nil || string(out) != "left\n" {
		t.Fatalf("%q, %v", out, err)
	}
	if err := orphanEnd.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(ours, "alive?"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("alive?"))
	if _, err := io.ReadFull(ours, answer); err != nil || string(answer) != "alive?" {
		t.Fatalf("the orphan says %q, %v", answer, err)
	}
	orphan := onlyChild(t, pid)
	pidfd, err := unix.PidfdOpen(orphan, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)

	stays(t, pid)

	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	if !ended(t, pidfd, 10*time.Second) {
		t.Fatal("the orphan does not end")
	}
	// It is dead; that it is also reaped follows at once, and older kernels have no event for it.
	for try := 0; unix.PidfdSendSignal(pidfd, 0, nil, 0) != unix.ESRCH; try++ {
		if try == 1000 {
			t.Fatalf("process %d stays a zombie", orphan)
		}
		ended(t, h.pidfd, time.Millisecond)
	}
	if ended(t, h.pidfd, 0) {
		t.Error("pause ended with the orphan")
	}
}

// pair returns two ends of a connection.
func pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b"), nil
}

func onlyChild(t *testing.T, pid int) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatalf("the orphan is not pause's child: %q", raw)
	}
	return child
}

// stays checks that a pause costs next to nothing.
func stays(t *testing.T, pid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rss, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.Atoi(strings.Fields(rss)[0])
			if err != nil || kib > 64 {
				t.Errorf("pause uses %s", strings.TrimSpace(rss))
			}
			return
		}
	}
	t.Errorf("no VmRSS in\n%s", status)
}

func TestBinaryIsACopy(t *testing.T) {
	Binary()[0] = 0
	if !bytes.HasPrefix(Binary(), []byte("\x7fELF")) {
		t.Error("the program can be changed")
	}
}

func TestInstallMendsAndLeavesNothingBehind(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"nothing":       func(string) error { return nil },
		"other program": func(dir string) error { return replaceFile(filepath.Join(dir, Name), "old") },
		"cut short":     func(dir string) error { return replaceFile(filepath.Join(dir, Name), "") },
		"no mount point": func(dir string) error {
			return os.Remove(filepath.Join(dir, "proc"))
		},
		"a link as mount point": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "sys")), os.Symlink("/etc", filepath.Join(dir, "sys")))
		},
		"all gone":    os.RemoveAll,
		"interrupted": func(dir string) error { return os.MkdirAll(dir+".new/proc/x", 0o700) },
		"not executable": func(dir string) error {
			return os.Chmod(filepath.Join(dir, Name), 0o444)
		},
	} {
		t.Run(name, func(t *testing.T) {
			old := syscall.Umask(0o077)
			defer syscall.Umask(old)
			dir := install(t)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			if err := Install(dir); err != nil {
				t.Fatal(err)
			}
			if !intact(dir) {
				t.Error("it is not what it should be")
			}
			var got []string
			err := filepath.WalkDir(filepath.Dir(dir), func(path string, d fs.DirEntry, err error) error {
				got = append(got, strings.TrimPrefix(path, filepath.Dir(dir)))
				return err
			})
			want := " /pause /pause/dev /pause/etc /pause/pause /pause/proc /pause/sys"
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func replaceFile(path, content string) error {
	return errors.Join(os.Remove(path), os.WriteFile(path, []byte(content), 0o555))
}

func TestInstallDoesNotDisturbARunningPause(t *testing.T) {
	needRoot(t)
	h := start(t)
	dir := h.cmd.SysProcAttr.Chroot
	if err := replaceFile(filepath.Join(dir, Name), "old"); err != nil {
		t.Fatal(err)
	}
	if err := Install(dir); err != nil {
		t.Fatal(err)
	}
	if ended(t, h.pidfd, 0) {
		t.Error("it ended")
	}
}

func TestInstallRefusesNoexec(t *testing.T) {
	needRoot(t)
	fd := noexecTmpfs(t)
	defer unix.Close(fd)
	if err := Install(fmt.Sprintf("/proc/self/fd/%d/pause", fd)); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// noexecTmpfs returns a descriptor of a tmpfs that is mounted nowhere: nobody else sees it.
func noexecTmpfs(t *testing.T) int {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
