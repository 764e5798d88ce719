// Package bundle makes small OCI bundles out of the distribution's busybox, for tests of the rooms that run
// them. It does not know crid.
package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// applets are the names under which busybox is in a root filesystem.
var applets = [...]string{"cat", "chmod", "dd", "echo", "env", "false", "grep", "head", "kill", "ls", "mkdir",
	"mount", "mv", "ps", "readlink", "seq", "setsid", "sh", "sleep", "touch", "tr", "true", "wc", "yes"}

// Rootfs makes a root filesystem at dir: busybox, the libraries it needs, and mount points.
func Rootfs(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: install the package busybox", err)
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	libraries, err := exec.Command("ldd", busybox).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", busybox, err)
	}
	for _, field := range strings.Fields(string(libraries)) {
		if filepath.IsAbs(field) {
			if err := copyFile(field, filepath.Join(dir, field)); err != nil {
				return err
			}
		}
	}
	program := filepath.Join(dir, "bin", "busybox")
	err = copyFile(busybox, program)
	for _, applet := range applets {
		err = errors.Join(err, os.Link(program, filepath.Join(dir, "bin", applet)))
	}
	return err
}

// maxPids keeps a test that forks without end from taking the machine with it.
const maxPids = 300

// Config returns the configuration of a container with namespaces of its own that runs args on rootfs.
func Config(rootfs, cgroup string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.0",
		Process: Process(args...),
		Root:    &specs.Root{Path: rootfs},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Resources:   &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(maxPids))}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
}

// Process returns a process of root that runs args.
func Process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(content))
	return errors.Join(err, f.Close())
}
