package storage

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
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
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read credentials of namespace %s: %w", namespace, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) { // another pull of the image has them as well
		return "", fmt.Errorf("remove the credentials of one pull, which was not begun: %w", err)
	}
	failpoint.Hit("storage/auth/taken")
	if !json.Valid(raw) {
		return "", fmt.Errorf("read credentials of namespace %s: %s was no JSON", namespace, file)
	}
	return string(raw), nil
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
