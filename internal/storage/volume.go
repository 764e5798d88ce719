package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"go.podman.io/storage/drivers/copy"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// Volume makes the directory behind the image volume at dest of the mounted root filesystem id: a copy of what
// the image has there, or an empty directory of owner where it has nothing. The answer is its path on the host; it lives
// as long as the root filesystem, and repeated calls find it. A copy under way does not heed ctx. Invalid: the
// image has something else at dest. WrongState: the root filesystem is not mounted.
func (r *Rootfs) Volume(ctx context.Context, id, dest string, owner Owner) (string, error) {
	p, err := r.place(id)
	if err != nil {
		return "", err
	}
	dest = path.Clean("/" + dest)
	if dest == "/" {
		return "", fmt.Errorf("volume at / of root filesystem %s: %w", id, errdef.Invalid)
	}
	sum := sha256.Sum256([]byte(dest))
	dir := filepath.Join(p.volumes, hex.EncodeToString(sum[:8]))
	if _, err := os.Lstat(dir); err == nil {
		return dir, nil
	}
	mounted, err := isMountPoint(p.target)
	if err != nil {
		return "", fmt.Errorf("volume at %s of root filesystem %s: %w", dest, id, err)
	}
	if !mounted {
		return "", fmt.Errorf("volume at %s of root filesystem %s, which is not mounted: %w", dest, id, errdef.WrongState)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := fillVolume(p.target, dest, dir, owner); err != nil {
		return "", fmt.Errorf("volume at %s of root filesystem %s: %w", dest, id, errdef.Disk(err))
	}
	return dir, nil
}

// fillVolume makes dir as a copy of dest below root, all or nothing: a crash leaves a name that nobody asks for.
func fillVolume(root, dest, dir string, owner Owner) error {
	if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	failpoint.Hit("storage/volume/dir-made")
	half := dir + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	failpoint.Hit("storage/volume/cleared")
	err := copyUp(root, dest, half, owner)
	failpoint.Hit("storage/volume/copied")
	if err == nil {
		err = os.Rename(half, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(half))
	}
	failpoint.Hit("storage/volume/placed")
	return nil
}

// copyUp copies the directory dest of the tree at root to the new directory to. Symbolic links of the tree are
// followed inside it only.
func copyUp(root, dest, to string, owner Owner) error {
	from, err := pathrs.OpenInRoot(root, dest)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(makeEmpty(to), os.Chown(to, owner.UID, owner.GID))
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w: %w", err, errdef.Invalid)
	}
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("the image has a %s there, not a directory: %w", kindOf(st.Mode()), errdef.Invalid)
	}
	// The slash makes the copy begin at the directory that was opened, not at the link to it.
	return copy.DirCopy(fmt.Sprintf("/proc/self/fd/%d/", from.Fd()), to, copy.Content, true)
}

// MkdirAll makes a directory of the tree at root and those above it, as far as they are not there, for owner. Symbolic
// links of the tree are followed inside it only.
func MkdirAll(root, dest string, owner Owner) error {
	at := "/"
	for _, part := range strings.Split(strings.Trim(path.Clean("/"+dest), "/"), "/") {
		at = path.Join(at, part)
		there, err := pathrs.OpenInRoot(root, at)
		switch {
		case err == nil:
			err = there.Close()
		case errors.Is(err, fs.ErrNotExist):
			err = mkdirFor(root, at, owner)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mkdirFor(root, dest string, owner Owner) error {
	if err := pathrs.MkdirAll(root, dest, 0o755); err != nil {
		return err
	}
	made, err := pathrs.OpenInRoot(root, dest)
	if err != nil {
		return err
	}
	err = unix.Fchownat(int(made.Fd()), "", owner.UID, owner.GID, unix.AT_EMPTY_PATH)
	return errors.Join(err, made.Close())
}

func kindOf(mode fs.FileMode) string {
	if mode.IsRegular() {
		return "file"
	}
	return "special file"
}

// ReadFile reads a regular file of the tree at root, such as /etc/passwd; symbolic links are followed inside the
// tree only. NotFound when there is none. Invalid when it is no regular file, or larger than limit bytes.
func ReadFile(root, name string, limit int64) ([]byte, error) {
	at, err := pathrs.OpenInRoot(root, name)
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, absentKind(err))
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s of the image: no regular file: %w", name, errdef.Invalid)
	}
	f, err := pathrs.Reopen(at, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("read %s of the image: larger than %d bytes: %w", name, limit, errdef.Invalid)
	}
	return content, nil
}

// absentKind gives what does not exist, or lies below what is no directory, its kind.
func absentKind(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", err, errdef.NotFound)
	}
	return err
}
