// Package vm boots virtual machines to run crid's tests on what the host is not: cgroup v2, systemd as PID 1, AppArmor
// and SELinux in the kernel. It makes the disks, starts qemu and passes on what the guest says. It does not know what the
// tests are.
package vm

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
	"strings"
	"syscall"
	"time"
)

// Machine says what is to boot.
type Machine struct {
	Image   Image
	Payload string   // a disk that the guest mounts at /crid-test and whose run.sh it runs
	Kernel  []string // parameters for the kernel, beside those that every guest has
	Dir     string   // for what the machine writes: its console, and what it changes on its disk
}

// bootLimit is how long a guest under KVM may take for its first sign of life. Nested ones may never give any.
const bootLimit = 20 * time.Second

// lastWord ends what a guest has to say; without it, it has crashed.
const lastWord = "crid-vm: end"

// errSilent is of a guest that said nothing in bootLimit, or could not start.
var errSilent = errors.New("the guest gave no sign of life")

// Run boots the machine and passes what it says to line, until it has powered off. It is accelerated by KVM where a guest
// really runs so, and emulated elsewhere. An error tells where its console was kept.
func (m Machine) Run(ctx context.Context, line func(string)) error {
	err := errSilent
	if _, absent := os.Stat("/dev/kvm"); absent == nil {
		err = m.run(ctx, []string{"-accel", "kvm", "-cpu", "host"}, bootLimit, line)
	}
	if errors.Is(err, errSilent) {
		// Threads of its own for the guest's processors; and of those, ones without what is slow to emulate.
		err = m.run(ctx, []string{"-accel", "tcg,thread=multi", "-cpu", "Nehalem"}, 0, line)
	}
	if err != nil {
		return fmt.Errorf("run a virtual machine (console: %s): %w", m.console(), err)
	}
	return nil
}

func (m Machine) console() string { return filepath.Join(m.Dir, "console.log") }

// args are qemu's. The first disk is NVMe, which the cloud kernel needs neither a module nor an initial RAM disk for; which
// of two would be the first is chance. The console is qemu's standard output, and the port for the tests' output its
// descriptor 3.
func (m Machine) args(accel []string) []string {
	kernel := append([]string{"root=/dev/nvme0n1", "rw", "console=ttyS0", "panic=-1", "systemd.show_status=0", "net.ifnames=0"}, m.Kernel...)
	return append(accel,
		"-M", "q35,sata=off,smbus=off", "-m", "3072", "-smp", "2", "-nodefaults", "-display", "none", "-nic", "none", "-no-reboot",
		"-kernel", m.Image.Kernel, "-append", strings.Join(kernel, " "),
		"-drive", "if=none,id=root,format=raw,cache=unsafe,snapshot=on,file="+m.Image.Disk, "-device", "nvme,drive=root,serial=root",
		"-drive", "if=virtio,format=raw,read-only=on,file="+m.Payload,
		"-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "file,id=port,path=/dev/fd/3", "-device", "virtserialport,chardev=port,name=crid")
}

// run boots once. A guest that says nothing within silence, unless that is 0, or that cannot be started at all, is
// errSilent.
func (m Machine) run(ctx context.Context, accel []string, silence time.Duration, line func(string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	console, err := os.Create(m.console())
	if err != nil {
		return err
	}
	defer console.Close()
	seen := &alarm{to: console}
	if silence > 0 {
		seen.clock = time.AfterFunc(silence, func() { cancel(errSilent) })
	}
	port, said, err := os.Pipe()
	if err != nil {
		return err
	}
	defer port.Close()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.args(accel)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+m.Dir)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = seen, console, []*os.File{said}
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	go func() { // ends with qemu
		runtime.LockOSThread() // the signal of Pdeathsig comes when the thread ends
		err := cmd.Start()
		said.Close()
		if err == nil {
			err = cmd.Wait()
		}
		ended <- err
	}()
	whole := listen(port, line)
	err = <-ended
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case silence > 0 && !seen.rung:
		return errSilent // qemu itself refused
	case err != nil:
		return err
	case !whole:
		return errors.New("the guest ended before it had said all")
	}
	return nil
}

// listen passes on lines until the last word or the end, and tells whether there was a last word.
func listen(port io.Reader, line func(string)) bool {
	whole := false
	for lines := bufio.NewReader(port); ; {
		text, err := lines.ReadString('\n')
		text = strings.TrimRight(text, "\r\n")
		switch {
		case text == lastWord:
			whole = true
		case text != "":
			line(text)
		}
		if err != nil {
			return whole
		}
	}
}

// alarm keeps what is written and stops its clock at the first of it.
type alarm struct {
	to    io.Writer
	clock *time.Timer // nil = none
	rung  bool
}

func (a *alarm) Write(b []byte) (int, error) {
	a.rung = true
	if a.clock != nil {
		a.clock.Stop()
	}
	return a.to.Write(b)
}
