package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// prepareLog makes the log's directory: Invalid when the log cannot be a file below the pod's log directory. The way to
// that directory is the host's, links included; what lies below it may be of a container that has the directory
// mounted, and the monitor opens it as root: neither a link nor a pipe or device is taken there.
func (c *Container) prepareLog() error {
	if c.plan.LogPath == "" {
		return nil
	}
	name := c.config.GetLogPath()
	base := strings.TrimSuffix(c.plan.LogPath, name)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return logFault(name, err)
	}
	failpoint.Hit("container/create/log-base-made")
	at, err := os.OpenFile(base, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return logFault(name, err)
	}
	defer func() { at.Close() }()
	for _, part := range strings.Split(path.Dir(name), "/") {
		below, err := intoDir(at, part)
		if err != nil {
			return logFault(name, err)
		}
		at.Close() // only looked at
		at = below
		failpoint.Hit("container/create/log-dir-made")
	}
	return checkLog(at, name)
}

// intoDir opens a directory of dir, made if it is not there, and no link to one.
func intoDir(dir *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// checkLog looks at the log itself, in its directory.
func checkLog(dir *os.File, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return logFault(name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return nil
	}
	kind := "special file"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		kind = "directory"
	case unix.S_IFLNK:
		kind = "symbolic link"
	}
	return fmt.Errorf("log_path %q is a %s: %w", name, kind, errdef.Invalid)
}

// logFault names the field, and gives a path that cannot be a log's its kind.
func logFault(name string, err error) error {
	for _, wrong := range []error{unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL} {
		if errors.Is(err, wrong) {
			return fmt.Errorf("log_path %q: not below a directory, or by a symbolic link: %w: %w", name, err, errdef.Invalid)
		}
	}
	return fmt.Errorf("make the directory of log_path %q: %w", name, err)
}
