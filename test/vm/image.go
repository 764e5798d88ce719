package vm

import (
	"context"
	"crypto/sha256"
	_ "embed" // the files of the guest
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// mirror is where debootstrap gets Debian from; apt asks the same host.
const mirror = "http://deb.debian.org/debian"

// Distribution is what is on the disk that a guest boots from.
type Distribution struct {
	Suite    string   // of Debian
	Packages []string // beside those that every Debian has
}

// Debian is a node of today: systemd, cgroup v2, AppArmor, and what crid runs.
var Debian = Distribution{"trixie", []string{
	"linux-image-cloud-amd64", "systemd", "systemd-sysv", "dbus", "udev", "kmod", "apparmor",
	"crun", "runc", "conmon", "containernetworking-plugins", "iptables", "iproute2", "busybox", "e2fsprogs",
}}

// SELinux is Debian with the distribution's SELinux policy.
var SELinux = Distribution{Debian.Suite, append([]string{"selinux-policy-default", "selinux-utils", "policycoreutils"}, Debian.Packages...)}

//go:embed guest/setup.sh
var setup string

//go:embed guest/crid-test.service
var unit string

// Image is a disk with a distribution that nobody has booted yet, and the kernel in it.
type Image struct{ Disk, Kernel string }

// diskSize is sparse: a guest's containers, images and logs need the room.
const diskSize = "6G"

// buildLimit bounds debootstrap, which takes a minute on a quiet machine.
const buildLimit = 15 * time.Minute

// Image returns the distribution's image from the cache, where it makes it first unless somebody has.
func (d Distribution) Image(ctx context.Context, cache string) (Image, error) {
	dir := filepath.Join(cache, d.key())
	image := Image{filepath.Join(dir, "disk"), filepath.Join(dir, "kernel")}
	if _, err := os.Stat(image.Kernel); err == nil {
		return image, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Image{}, err
	}
	work, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(work) // what was made has another name by then
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	if err := d.build(ctx, work); err != nil {
		return Image{}, fmt.Errorf("make an image of Debian %s: %w", d.Suite, err)
	}
	if err := os.Rename(work, dir); err != nil && !errors.Is(err, os.ErrExist) { // somebody else was quicker
		return Image{}, err
	}
	return image, nil
}

// key names all that an image depends on.
func (d Distribution) key() string {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{d.Suite, diskSize, setup, unit}, d.Packages...), "\x00")))
	return fmt.Sprintf("%s-%x", d.Suite, sum[:8])
}

// build leaves disk and kernel in dir.
func (d Distribution) build(ctx context.Context, dir string) error {
	root := filepath.Join(dir, "root")
	err := inOwnMounts(ctx, "debootstrap", "--variant=minbase", "--include="+strings.Join(d.Packages, ","), d.Suite, root, mirror)
	if err != nil {
		return err
	}
	for path, content := range map[string]string{"setup.sh": setup, "etc/systemd/system/crid-test.service": unit} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := inOwnMounts(ctx, "chroot", root, "sh", "-eu", "/setup.sh"); err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(dir, "disk"), root, diskSize); err != nil {
		return err
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return fmt.Errorf("find the kernel among %q: %w", kernels, err)
	}
	// The last step: a cache directory with a kernel is whole.
	if err := os.Rename(kernels[0], filepath.Join(dir, "kernel")); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// makeDisk makes a filesystem in a file, with what is in root. There is no journal: no guest boots twice.
func makeDisk(ctx context.Context, file, root, size string) error {
	return inOwnMounts(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", root, file, size)
}

// inOwnMounts runs a program whose mounts end with it.
func inOwnMounts(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	var output tail
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w: %s", name, errors.Join(err, context.Cause(ctx)), output.String())
	}
	return nil
}

// tail keeps the last of what is written.
type tail struct{ text []byte }

const tailSize = 4 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-tailSize):]
	return len(b), nil
}

func (t *tail) String() string { return string(t.text) }

var _ io.Writer = (*tail)(nil)
