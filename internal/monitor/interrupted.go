package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Who asks for a new log takes an error for a log that stays what it was: the kubelet renames the old one back. When crid
// died amid a reopening, or the client left, that takes the new log's only name while the monitor writes to it. So the
// new log gets a spare name before there is a way to it, and keeps that until the client must have heard or has asked again.
// Reconcile ends that, whatever became of the reopening.

const (
	// reopeningFile, in a monitor directory, is a link to the log while that is reopened.
	reopeningFile = "reopening"
	// answerTime is how long a client may take to hear of a reopening, and to rename the old log back if it has not.
	answerTime = 10 * time.Second
)

// spareName is where the new log is besides, hidden from those who look for a log's older files by its name.
func spareName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".reopening")
}

// newName is where conmon makes the new log before it renames it.
func newName(path string) string { return path + ".tmp" }

// begin notes that the log is reopened, and makes the new one, with its spare name, for the monitor to find.
func (p *Process) begin(path string) error {
	note := p.launcher.path(p.id, reopeningFile)
	if err := os.Symlink(path, note); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("note that the log is reopened: %w", errdef.Disk(err))
	}
	failpoint.Hit("monitor/reopen/noted")
	f, err := openNew(newName(path))
	if err != nil {
		return fmt.Errorf("make new log: %w", errdef.Disk(err))
	}
	failpoint.Hit("monitor/reopen/made")
	// What is there without a note is nobody's.
	if err := os.Remove(spareName(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("make new log: %w", err), f.Close())
	}
	failpoint.Hit("monitor/reopen/spare-free")
	// By its descriptor: an earlier command may just be letting the monitor rename it.
	err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.AT_FDCWD, spareName(path), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		err = &os.LinkError{Op: "link", Old: newName(path), New: spareName(path), Err: err}
	}
	failpoint.Hit("monitor/reopen/linked")
	return errors.Join(err, f.Close())
}

// openNew opens what will be the log, which a container that has the log's directory mounted may have made a link or
// something else. What is a file stays: the monitor may be about to rename it, and dies when it cannot.
func openNew(path string) (*os.File, error) {
	const flags = os.O_WRONLY | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if err == nil {
		info, failed := f.Stat()
		if failed == nil && info.Mode().IsRegular() {
			return f, nil
		}
		err = errors.Join(failed, f.Close())
	}
	if err = errors.Join(err, os.Remove(path)); errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, flags|os.O_EXCL, 0o640)
}

// reconcile ends a reopening of which it is unknown whether the monitor has done it, and whether the client knew: a new log
// that has its spare name only gets the log's name, and an old log that has it now another one, which rotated tells. It may
// be repeated. The caller holds reopening, or the monitor is gone.
func (p *Process) reconcile(path string) (rotated string, err error) {
	if p.launcher.interrupted(p.id) == "" {
		return "", nil
	}
	if err := checkLog(path); err != nil {
		return "", err
	}
	if _, err := p.takeBack(); err != nil {
		return "", err
	}
	spare := spareName(path)
	fresh, err := lstat(spare)
	if err != nil {
		return "", err
	}
	at, err := lstat(path)
	if err != nil {
		return "", err
	}
	written := func() bool { return p.monitor != nil && p.writesTo(spare) }
	switch {
	case fresh == nil:
	case !fresh.Mode().IsRegular(), names(fresh) > 1:
		err = os.Remove(spare)
	case at == nil && (fresh.Size() > 0 || written()):
		err = os.Rename(spare, path)
	case at != nil && (written() || fresh.Size() > 0 && fresh.ModTime().After(at.ModTime())):
		if err = unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
			err = &os.LinkError{Op: "exchange", Old: spare, New: path, Err: err}
			break
		}
		failpoint.Hit("monitor/reconcile/exchanged")
		rotated, err = setAside(spare, path)
	case fresh.Size() > 0:
		rotated, err = setAside(spare, path)
	default:
		err = os.Remove(spare)
	}
	if err != nil {
		return "", fmt.Errorf("give the log %s its name: %w", path, err)
	}
	failpoint.Hit("monitor/reconcile/named")
	return rotated, p.ended()
}

// names tells how many names a file has.
func names(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

// abandon undoes begin where the monitor does nothing any more.
func (p *Process) abandon(path string) error {
	var failed error
	for _, name := range []string{newName(path), spareName(path)} {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return errors.Join(failed, p.ended())
}

// ended forgets that the log was reopened.
func (p *Process) ended() error {
	err := os.Remove(p.launcher.path(p.id, reopeningFile))
	failpoint.Hit("monitor/reconcile/forgotten")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// setAside names an old log as the kubelet does, behind those that it has renamed.
func setAside(old, path string) (string, error) {
	stamp := path + "." + time.Now().Format("20060102-150405")
	for n, name := 1, stamp; ; n++ {
		err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return "", &os.LinkError{Op: "rename", Old: old, New: name, Err: err}
		}
		name = fmt.Sprintf("%s-%d", stamp, n)
	}
}

// lstat returns nil for what is not there.
func lstat(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return info, err
}

// interrupted tells which log of container id has been reopened, if that is not ended; empty for none.
func (l *Launcher) interrupted(id string) string {
	path, err := os.Readlink(l.path(id, reopeningFile))
	if err != nil {
		return ""
	}
	return path
}
