package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/failpoint"
)

// configDirs are where the host's files for images may be, the administrator's before the distribution's. No
// file of a user's home is read: crid has none.
func configDirs() []string { return []string{"/etc/containers", "/usr/share/containers"} }

// hostFile returns path if it is set, else the system's own file of that name, else "".
func hostFile(path, name string) string {
	if path != "" {
		return path
	}
	for _, dir := range configDirs() {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return ""
}

func orElse(path, fallback string) string {
	if path != "" {
		return path
	}
	return fallback
}

func (s *Images) scratchDir() string { return filepath.Join(s.root, "crid-scratch") }

// clearScratch removes what pulls of an earlier life were writing.
func (s *Images) clearScratch() error {
	// The directory itself stays: a full disk has no place for another.
	if err := os.MkdirAll(s.scratchDir(), 0o700); err != nil {
		return fmt.Errorf("make the place of unfinished pulls: %w", err)
	}
	failpoint.Hit("storage/scratch/made")
	names, err := entryNames(s.scratchDir())
	staged, failed := s.staleStages()
	err = errors.Join(err, failed)
	for _, path := range append(staged, below(s.scratchDir(), names)...) {
		err = errors.Join(err, os.RemoveAll(path))
		failpoint.Hit("storage/scratch/cleared")
	}
	if err != nil {
		return fmt.Errorf("clear the place of unfinished pulls: %w", err)
	}
	return nil
}

func below(dir string, names []string) []string {
	var paths []string
	for _, name := range names {
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths
}

// staleStages are the directories into which layers were unpacked, by whoever uses the store, and are not any more: who
// unpacks has a lock.
func (s *Images) staleStages() ([]string, error) {
	dir := filepath.Join(s.root, "overlay", "staging")
	names, err := entryNames(dir)
	var stale []string
	for _, path := range below(dir, names) {
		lock, failed := os.OpenFile(filepath.Join(path, "staging.lock"), os.O_RDWR, 0)
		if failed == nil {
			failed = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
			_ = lock.Close() // nothing was written
		}
		if failed == nil || errors.Is(failed, fs.ErrNotExist) {
			stale = append(stale, path)
		}
	}
	return stale, ignoreAbsent(err)
}

// contextFor gathers what rules the pull of one name.
func (s *Images) contextFor(name reference.Named, key flightKey) (*types.SystemContext, error) {
	auth := key.auth
	if auth.Server != "" && registryOf(auth.Server) != reference.Domain(name) {
		auth = Auth{} // for another registry
	}
	sys := s.systemContext(auth)
	return sys, s.obeyHosts(sys, name)
}

// systemContext gathers what rules pulls in general, and auth. Every path is named, so that nothing is looked for elsewhere.
func (s *Images) systemContext(auth Auth) *types.SystemContext {
	sys := &types.SystemContext{
		RegistriesDirPath:           orElse(s.cfg.RegistriesD, "/etc/containers/registries.d"),
		SystemRegistriesConfPath:    orElse(hostFile(s.cfg.RegistriesConf, "registries.conf"), os.DevNull),
		SystemRegistriesConfDirPath: orElse(s.cfg.RegistriesConfDir, "/etc/containers/registries.conf.d"),
		UserShortNameAliasConfPath:  filepath.Join(s.scratchDir(), "no-aliases.conf"), // never written: crid learns no aliases
		AuthFilePath:                orElse(s.cfg.AuthFile, "/etc/containers/auth.json"),
		BlobInfoCacheDir:            filepath.Join(s.root, "crid-cache"),
		BigFilesTemporaryDir:        s.scratchDir(),
		DockerRegistryUserAgent:     "crid",
	}
	if auth.Username+auth.Password+auth.IdentityToken+auth.RegistryToken == "" {
		return sys
	}
	// Set also for a bare token: only then the library keeps both from mirrors at other hosts.
	sys.DockerAuthConfig = &types.DockerAuthConfig{
		Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken,
	}
	sys.DockerBearerRegistryToken = auth.RegistryToken
	return sys
}

// reloadRegistries reads registries.conf again, so that an operator's edit counts from the next pull on.
func (s *Images) reloadRegistries() error {
	_, err := sysregistriesv2.TryUpdatingCache(s.systemContext(Auth{}))
	if err != nil {
		err = fmt.Errorf("read registries.conf: %w", err)
	}
	s.problems.set("registries.conf", err)
	return err
}
