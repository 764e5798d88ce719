package storage

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/failpoint"
)

// What a hosts.toml says is told to containers/image in its own words: a registries.conf and a directory of certificates for
// each host, below crid's runroot, in a directory that is named by what is in it. So pulls at a time
// share it, and each edit of the operator's makes one.

func (s *Images) hostsDir() string { return filepath.Join(s.cfg.RunRoot, "registries") }

// clearHosts removes what an earlier crid has told the library.
func (s *Images) clearHosts() error {
	if err := os.RemoveAll(s.hostsDir()); err != nil {
		return fmt.Errorf("clear what hosts.toml said: %w", err)
	}
	failpoint.Hit("storage/hosts/cleared")
	return nil
}

// obeyHosts lets the description of the image's registry below certs_d, if there is one, rule sys. An entry of
// registries.conf that is about the image goes first: it is crid's own.
func (s *Images) obeyHosts(sys *types.SystemContext, name reference.Named) error {
	entry, err := sysregistriesv2.FindRegistry(sys, name.Name())
	if err != nil || entry != nil {
		return err
	}
	registry := reference.Domain(name)
	dir, err := findHosts(s.cfg.CertsD, registry)
	if err != nil || dir == "" {
		return err
	}
	file := filepath.Join(dir, "hosts.toml")
	told, err := s.tellHosts(sys, file, registry)
	if err != nil {
		err = fmt.Errorf("read %s: %w", file, err)
	}
	s.problems.set(file, err)
	if err != nil || told == "" {
		return err
	}
	sys.SystemRegistriesConfPath = filepath.Join(told, "registries.conf")
	sys.SystemRegistriesConfDirPath = filepath.Join(told, "none")
	sys.DockerPerHostCertDirPath = filepath.Join(told, "certs")
	return nil
}

// findHosts returns the directory that describes the registry, "" when there is none. A port may be spelled host_port_.
func findHosts(roots []string, registry string) (string, error) {
	names := []string{registry, "_default"}
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		names = append([]string{registry[:i] + "_" + registry[i+1:] + "_"}, names...)
	}
	for _, root := range roots {
		for _, name := range names {
			dir := filepath.Join(root, name)
			_, err := os.Stat(dir)
			if err == nil {
				return dir, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("look for hosts.toml: %w", err)
			}
		}
	}
	return "", nil
}

// tellHosts reads file, or where there is none the certificates beside it, and returns the directory with what the library
// reads; "" when nothing is said.
func (s *Images) tellHosts(sys *types.SystemContext, file, registry string) (string, error) {
	dir := filepath.Dir(file)
	data, err := os.ReadFile(file)
	t := telling{registry: registry, certs: map[string]string{}}
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0: // Docker's way: the directory holds certificates
		found, err := filepath.Glob(filepath.Join(dir, "*.c*rt"))
		if err != nil || len(found) == 0 {
			return "", err
		}
		t.endpoints = []endpoint{{host: registry}}
		t.certs[registry] = dir
	case err != nil:
		return "", err
	default:
		if t.endpoints, err = parseHosts(data, dir, registry); err != nil {
			return "", err
		}
		if err := t.findCertificates(); err != nil {
			return "", err
		}
	}
	conf, err := t.registriesConf(sys)
	if err != nil {
		return "", err
	}
	return s.writeHosts(conf, t.certs)
}

// telling is what is told to the library of one registry.
type telling struct {
	registry  string
	endpoints []endpoint
	certs     map[string]string // what is to lie in the directory of certificates, to where it lies
}

// registriesConf is the operator's registries.conf, with one entry more.
func (t telling) registriesConf(sys *types.SystemContext) ([]byte, error) {
	var conf struct {
		Registries []sysregistriesv2.Registry `toml:"registry"`
		Helpers    []string                   `toml:"credential-helpers"`
		AuthHelper string                     `toml:"additional-layer-store-auth-helper,omitempty"`
	}
	var failed [3]error
	conf.Registries, failed[0] = sysregistriesv2.GetRegistries(sys)
	conf.Helpers, failed[1] = sysregistriesv2.CredentialHelpers(sys)
	conf.AuthHelper, failed[2] = sysregistriesv2.AdditionalLayerStoreAuthHelper(sys)
	if err := errors.Join(failed[:]...); err != nil {
		return nil, err
	}
	own := sysregistriesv2.Registry{Prefix: t.registry}
	for _, e := range t.endpoints {
		told := sysregistriesv2.Endpoint{Location: e.location(), Insecure: e.insecure}
		if e.onlyDigests {
			told.PullFromMirror = sysregistriesv2.MirrorByDigestOnly
		}
		if e.host != t.registry {
			told.NamespaceProxy = t.registry // as containerd says it: one mirror may serve several registries
		}
		own.Mirrors = append(own.Mirrors, told)
	}
	last := len(own.Mirrors) - 1
	own.Endpoint, own.Mirrors = own.Mirrors[last], own.Mirrors[:last]
	conf.Registries = append(slices.Clone(conf.Registries), own)
	var out bytes.Buffer
	err := toml.NewEncoder(&out).Encode(conf)
	return out.Bytes(), err
}

// findCertificates fills certs. A host of which the file names no certificate has those of the system's directories.
func (t telling) findCertificates() error {
	said := map[string]certificates{}
	for _, e := range t.endpoints {
		if before, twice := said[e.host]; twice && !before.equal(e.certificates) {
			return fmt.Errorf("host %q stands there twice, with different certificates: crid knows one set of them for a host", e.host)
		}
		said[e.host] = e.certificates
	}
	for host, c := range said {
		if len(c.authorities)+len(c.clients) == 0 {
			if dir := systemCertificates(host); dir != "" {
				t.certs[host] = dir
			}
			continue
		}
		for i, file := range c.authorities {
			t.certs[filepath.Join(host, strconv.Itoa(i)+".crt")] = file
		}
		for i, pair := range c.clients {
			t.certs[filepath.Join(host, strconv.Itoa(i)+".cert")] = pair[0]
			t.certs[filepath.Join(host, strconv.Itoa(i)+".key")] = pair[1]
		}
	}
	for _, file := range t.certs {
		if _, err := os.Stat(file); err != nil { // the library would go on without it
			return fmt.Errorf("find certificate: %w", err)
		}
	}
	return nil
}

func (c certificates) equal(other certificates) bool {
	return slices.Equal(c.authorities, other.authorities) && slices.Equal(c.clients, other.clients)
}

// systemCertificates is the directory in which the library would look for the host's certificates.
func systemCertificates(host string) string {
	for _, dir := range append(configDirs(), "/etc/docker") {
		dir = filepath.Join(dir, "certs.d", host)
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return ""
}

// writeHosts returns the directory with these contents, made unless it is there.
func (s *Images) writeHosts(conf []byte, certs map[string]string) (_ string, err error) {
	names := slices.Sorted(maps.Keys(certs))
	sum := sha256.New()
	sum.Write(conf)
	for _, name := range names {
		fmt.Fprintf(sum, "\x00%s\x00%s", name, certs[name])
	}
	dir := filepath.Join(s.hostsDir(), fmt.Sprintf("%x", sum.Sum(nil)[:16]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(s.hostsDir(), 0o700); err != nil {
		return "", err
	}
	failpoint.Hit("storage/hosts/made")
	fresh, err := os.MkdirTemp(s.hostsDir(), "new-")
	if err != nil {
		return "", err
	}
	failpoint.Hit("storage/hosts/begun")
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(fresh))
		}
	}()
	if err := os.WriteFile(filepath.Join(fresh, "registries.conf"), conf, 0o600); err != nil {
		return "", err
	}
	failpoint.Hit("storage/hosts/written")
	for _, name := range names {
		if err := link(certs[name], filepath.Join(fresh, "certs", name)); err != nil {
			return "", err
		}
	}
	err = os.Rename(fresh, dir)
	if _, there := os.Stat(dir); err != nil && there == nil { // another pull was faster
		return dir, os.RemoveAll(fresh)
	}
	failpoint.Hit("storage/hosts/named")
	return dir, err
}

// link makes name stand for what lies at target.
func link(target, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	failpoint.Hit("storage/hosts/certs-made")
	if err := os.Symlink(target, name); err != nil {
		return err
	}
	failpoint.Hit("storage/hosts/linked")
	return nil
}
