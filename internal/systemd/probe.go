package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

const (
	runningDir    = "/run/systemd/system"  // sd_booted(3)
	privateSocket = "/run/systemd/private" // PID 1 itself listens there
	dialWait      = 5 * time.Second
)

// Running tells whether systemd runs the host.
func Running() bool {
	info, err := os.Lstat(runningDir)
	return err == nil && info.IsDir()
}

// Probe returns what systemd is that runs the host, such as "systemd 257", if scopes can be made with it for processes of
// this one's PID namespace, where Names of cgroups expect them. The error says why not.
func (m *Manager) Probe() (version string, err error) {
	if !Running() {
		return "", fmt.Errorf("systemd does not run here: %s is no directory: %w", runningDir, errdef.Unavailable)
	}
	if err := sameNamespace(); err != nil {
		return "", err
	}
	return m.ask()
}

// ask returns what systemd says that it is.
func (m *Manager) ask() (version string, err error) {
	err = m.call(func(b bus) error {
		root, err := b.GetManagerProperty("ControlGroup")
		if err == nil {
			version, err = b.GetManagerProperty("Version")
		}
		if err == nil && strings.Trim(root, `"/`) != "" {
			err = fmt.Errorf("its units are below the cgroup %s, not at the root of the hierarchy: %w", root, errdef.Unsupported)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask systemd what it is: %w", err)
	}
	if text, err := strconv.Unquote(version); err == nil {
		version = text
	}
	return "systemd " + version, nil
}

// sameNamespace returns an error when systemd means other processes by the pids that this one knows.
func sameNamespace() error {
	conn, err := net.DialTimeout("unix", privateSocket, dialWait)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("systemd does not answer: %w: %w", err, errdef.Unavailable)
	}
	if err != nil {
		return fmt.Errorf("connect to systemd: %w: %w", err, errdef.Unavailable)
	}
	defer func() { _ = conn.Close() }() // nothing was written
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return fmt.Errorf("look who systemd is: %w", err)
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, peerErr); err != nil {
		return fmt.Errorf("look who systemd is: %w", err)
	}
	if peer.Pid != 1 {
		return fmt.Errorf("systemd is in another PID namespace: it would take other processes for those of crid: %w", errdef.Unsupported)
	}
	return nil
}
