package storage

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
)

// registryOf is the registry that a client calls server, as names of images have it.
func registryOf(server string) string {
	_, rest, found := strings.Cut(server, "://")
	if !found {
		rest = server
	}
	host, _, _ := strings.Cut(rest, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return "docker.io"
	}
	return host
}

// perNamespace names a file of a Kubernetes namespace's own.
func perNamespace(dir, namespace, rest string) (string, error) {
	if filepath.Base(namespace) != namespace || namespace == "." || namespace == ".." || strings.ContainsRune(namespace, 0) {
		return "", fmt.Errorf("namespace %q is no name: %w", namespace, errdef.Invalid)
	}
	return filepath.Join(dir, namespace+rest), nil
}

// takeAuth returns what a credential provider has left for one pull of ref in the namespace, and removes it: it is for one pull.
// Empty when there is nothing.
func (s *Images) takeAuth(namespace, ref string) (string, error) {
	if s.cfg.NamespacedAuthDir == "" || namespace == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: %w", ref, err, errdef.Invalid)
	}
	file, err := perNamespace(s.cfg.NamespacedAuthDir, namespace, fmt.Sprintf("-%x.json", sha256.Sum256([]byte(named.Name()))))
	if err != nil {
		return "", err
	}
	raw, err := s.claimAuth(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read credentials of namespace %s: %w", namespace, err)
	}
	return string(raw), nil
}

// takenPrefix begins the names of files with credentials while crid reads them.
const takenPrefix = ".crid-taken-"

// claimAuth reads the file and removes it, and nothing that is written there meanwhile: what crid reads has another name by then.
func (s *Images) claimAuth(file string) (raw []byte, err error) {
	taken := filepath.Join(filepath.Dir(file), takenPrefix+rand.Text()+filepath.Base(file))
	if err := os.Rename(file, taken); err != nil {
		return nil, err
	}
	failpoint.Hit("storage/auth/renamed")
	f, err := os.Open(taken)
	if err != nil {
		return nil, errors.Join(err, putBack(taken))
	}
	defer f.Close() // nothing is lost with it
	if raw, err = io.ReadAll(f); err != nil {
		return nil, errors.Join(err, putBack(taken))
	}
	valid := json.Valid(raw)
	if !valid && beingWritten(f) {
		return nil, errors.Join(fmt.Errorf("%s is being written (try again): %w", file, errdef.Unavailable), putBack(taken))
	}
	if err := os.Remove(taken); err != nil {
		return nil, fmt.Errorf("remove the credentials of one pull, which was not begun: %w", err)
	}
	failpoint.Hit("storage/auth/taken")
	if !valid {
		return nil, fmt.Errorf("%s was no JSON", file)
	}
	return raw, nil
}

// beingWritten tells whether somebody has the file open for writing. The kernel lets nobody have a lease on it then.
func beingWritten(f *os.File) bool {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	return errors.Is(err, unix.EAGAIN)
}

// putBack gives what was taken its name again, unless there is something newer by that name.
func putBack(taken string) error {
	name := strings.TrimPrefix(filepath.Base(taken), takenPrefix)[len(rand.Text()):]
	err := unix.Renameat2(unix.AT_FDCWD, taken, unix.AT_FDCWD, filepath.Join(filepath.Dir(taken), name), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		err = os.Remove(taken)
	}
	failpoint.Hit("storage/put-back/cleared")
	if err != nil {
		return fmt.Errorf("put %s back: %w", taken, err)
	}
	return nil
}

// restoreAuth puts back what pulls had taken that did not begin, since crid died.
func (s *Images) restoreAuth() error {
	if s.cfg.NamespacedAuthDir == "" {
		return nil
	}
	names, err := entryNames(s.cfg.NamespacedAuthDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for credentials of pulls that did not begin: %w", err)
	}
	err = nil
	for _, name := range names {
		if strings.HasPrefix(name, takenPrefix) && len(name) > len(takenPrefix)+len(rand.Text()) {
			err = errors.Join(err, putBack(filepath.Join(s.cfg.NamespacedAuthDir, name)))
		}
	}
	return err
}

// lend makes text a file for the library, which has no other way to get credentials for several registries. It is in
// memory and has no name, and goes with the descriptor.
func lend(text string) (*os.File, error) {
	fd, err := unix.MemfdCreate("auth", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write a file in memory: %w", err), f.Close())
	}
	return f, nil
}
