package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

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

func (s *Images) policyPath() string { return hostFile(s.cfg.PolicyPath, "policy.json") }

func (s *Images) scratchDir() string { return filepath.Join(s.root, "crid-scratch") }

// clearScratch removes what pulls of an earlier life were writing.
func (s *Images) clearScratch() error {
	// The directory itself stays: a full disk has no place for another.
	if err := os.MkdirAll(s.scratchDir(), 0o700); err != nil {
		return fmt.Errorf("make the place of unfinished pulls: %w", err)
	}
	failpoint.Hit("storage/scratch/made")
	names, err := entryNames(s.scratchDir())
	for _, name := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.scratchDir(), name)))
		failpoint.Hit("storage/scratch/cleared")
	}
	if err != nil {
		return fmt.Errorf("clear the place of unfinished pulls: %w", err)
	}
	return nil
}

// systemContext gathers what rules one pull. Every path is named, so that nothing is looked for elsewhere.
func (s *Images) systemContext(auth Auth) *types.SystemContext {
	sys := &types.SystemContext{
		RegistriesDirPath:           "/etc/containers/registries.d",
		SystemRegistriesConfPath:    orElse(hostFile(s.cfg.RegistriesConf, "registries.conf"), os.DevNull),
		SystemRegistriesConfDirPath: orElse(s.cfg.RegistriesConfDir, "/etc/containers/registries.conf.d"),
		UserShortNameAliasConfPath:  filepath.Join(s.scratchDir(), "no-aliases.conf"), // never written: crid learns no aliases
		AuthFilePath:                orElse(s.cfg.AuthFile, "/etc/containers/auth.json"),
		BlobInfoCacheDir:            filepath.Join(s.root, "crid-cache"),
		BigFilesTemporaryDir:        s.scratchDir(),
		DockerRegistryUserAgent:     "crid",
	}
	if auth == (Auth{}) {
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

// policy reads the host's signature policy; without any, everything is accepted.
func (s *Images) policy() (*signature.PolicyContext, error) {
	path := s.policyPath()
	if path == "" {
		return acceptAll()
	}
	policy, err := signature.NewPolicyFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read signature policy %s: it is configured but does not exist", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	return policyContext(policy)
}

// acceptAll is the policy for what was checked before.
func acceptAll() (*signature.PolicyContext, error) {
	return policyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
}

func policyContext(policy *signature.Policy) (*signature.PolicyContext, error) {
	ctx, err := signature.NewPolicyContext(policy)
	if err != nil {
		return nil, fmt.Errorf("use signature policy: %w", err)
	}
	return ctx, nil
}
