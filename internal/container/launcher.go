package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/launch"
	"github.com/crid/crid/internal/oci/spec"
)

// equip puts a launcher into the root filesystem of a container whose environment is not all UTF-8, and goes with it.
// No runtime tells any more whether the container's command exists, so it is looked for here.
func equip(root string, s *specs.Spec, users fact.IDMap) error {
	l, err := spec.ViaLauncher(s)
	if err != nil || l == nil {
		return err
	}
	if err := findCommand(root, s, l.Path); err != nil {
		return err
	}
	raw, err := launch.Make(goruntime.GOARCH, launch.Plan{Env: l.Env, Path: l.Path})
	if err != nil {
		return fmt.Errorf("environment that is not UTF-8: %w", err)
	}
	uid, gid := users.Host(s.Process.User.UID, s.Process.User.GID)
	return installLauncher(filepath.Join(root, spec.LauncherPath), raw, uid, gid)
}

// installLauncher writes a launcher that only the container's user can read and execute: it holds what other users
// in the container need not know. What the image has at that place is replaced.
func installLauncher(name string, raw []byte, uid, gid int) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("install launcher: %w", err)
	}
	failpoint.Hit("container/launcher/cleared")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o500)
	if err != nil {
		return fmt.Errorf("install launcher: %w", err)
	}
	failpoint.Hit("container/launcher/made")
	_, err = f.Write(raw)
	failpoint.Hit("container/launcher/written")
	if err = errors.Join(err, f.Chown(uid, gid), f.Close()); err != nil {
		return fmt.Errorf("install launcher: %w", err)
	}
	failpoint.Hit("container/launcher/installed")
	return nil
}

// maxLinks is how many symbolic links are followed, as the kernel does.
const maxLinks = 40

// command is the look for a container's command.
type command struct {
	root   string   // host path of the root filesystem, which nobody changes meanwhile
	mounts []string // what is below one of these cannot be seen from here
}

// sight is what has become of a look.
type sight int

const (
	absent sight = iota
	present
	unclear // it may be there or not
)

// findCommand refuses a command that is certainly not there: Invalid. It asks neither for permissions nor for what
// is in volumes; then the launcher exits with 127 or 126.
func findCommand(root string, s *specs.Spec, searched string) error {
	look := command{root: root}
	for _, m := range s.Mounts {
		dest, err := securejoin.SecureJoin(root, m.Destination)
		if err != nil {
			return fmt.Errorf("find the mount point %s: %w", m.Destination, err)
		}
		look.mounts = append(look.mounts, path.Join("/", strings.TrimPrefix(dest, filepath.Clean(root))))
	}
	name := s.Process.Args[1] // behind the launcher
	if strings.Contains(name, "/") {
		if look.find(absolute(s.Process.Cwd, name)) == absent {
			return fmt.Errorf("command %q: no such file: %w", name, errdef.Invalid)
		}
		return nil
	}
	for _, dir := range filepath.SplitList(searched) {
		if dir != "" { // else it is the working directory
			dir += "/"
		}
		if look.find(absolute(s.Process.Cwd, dir+name)) != absent {
			return nil
		}
	}
	return fmt.Errorf("command %q: not found in the PATH %q: %w", name, searched, errdef.Invalid)
}

// absolute does not clean a command's path: what ".." means there depends on links.
func absolute(cwd, name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return cwd + "/" + name
}

// find looks for a path of the container, a step at a time.
func (c command) find(name string) sight {
	at, links := "/", 0
	for todo := strings.Split(name, "/"); len(todo) > 0; {
		next := path.Join(at, todo[0])
		todo = todo[1:]
		if slices.ContainsFunc(c.mounts, func(m string) bool { return within(next, m) }) {
			return unclear
		}
		info, err := os.Lstat(c.root + next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && slices.ContainsFunc(c.mounts, func(m string) bool { return within(m, next) }):
			at = next // the runtime makes the way to its mount points
			continue
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			return absent
		case err != nil:
			return unclear
		case info.Mode()&fs.ModeSymlink == 0:
			at = next
			continue
		}
		target, err := os.Readlink(c.root + next)
		if links++; err != nil || links > maxLinks {
			return unclear
		}
		if path.IsAbs(target) {
			at = "/"
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return present
}
