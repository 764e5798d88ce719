package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/oci/spec"
)

// Files is what a pod has in the host's file system. Every path is a function of the id.
type Files interface {
	Paths(id string) FilePaths // pure
	Make(ctx context.Context, id string, want FilesWant) error
	Hosts(id, hostname string, ips []string) error // after Make, when the addresses are known
	Remove(ctx context.Context, id string) error   // repeatable
	Pinned(path string) error                      // whether a namespace is mounted at path
}

// FilePaths is where a pod's files are, for its containers to mount.
type FilePaths struct {
	Dir                         string // a filesystem of the pod's own, with the rest in it
	Hostname, ResolvConf, Hosts string
	Shm                         string // where the pod has an IPC namespace of its own
}

// FilesWant is what a pod's files depend on.
type FilesWant struct {
	Hostname string
	DNS      *runtime.DNSConfig // nil or empty: as the host's resolv.conf
	Shm      bool
	LogDir   string // made when it is absent; it is the client's to remove. May be empty
	HostNet  bool   // /etc/hosts is the host's
	UID, GID int    // who the files belong to: the root of the pod's user namespace
}

func filesWant(rec *Record) FilesWant {
	cfg := rec.Config.PodSandboxConfig
	uid, gid := spec.UserMap(cfg).Root()
	return FilesWant{
		Hostname: rec.Hostname, DNS: cfg.GetDnsConfig(), Shm: want(cfg).IPC,
		LogDir: cfg.GetLogDirectory(), HostNet: hostNetwork(cfg), UID: uid, GID: gid,
	}
}

// A pod's files are on a tmpfs of its own together with its shared memory: containers may write to them all, and must
// not fill the host's runroot.
const (
	shmSize   = 64 << 20 // bytes of a pod's tmpfs with its /dev/shm: what Docker chose, and programs expect
	filesSize = 1 << 20  // bytes of one without
)

// FilesConfig says where pods' files are.
type FilesConfig struct {
	Dir string // one directory for each pod, under runroot on a private mount
	Etc string // the host's /etc, for resolv.conf and hosts
}

// HostFiles keeps pods' files on the host.
type HostFiles struct{ cfg FilesConfig }

// NewFiles does no I/O.
func NewFiles(cfg FilesConfig) *HostFiles { return &HostFiles{cfg} }

func (f *HostFiles) dir(id string) string { return filepath.Join(f.cfg.Dir, id) }

// Paths implements Files.
func (f *HostFiles) Paths(id string) FilePaths {
	dir := f.dir(id)
	return FilePaths{
		Dir:        dir,
		Hostname:   filepath.Join(dir, "hostname"),
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Hosts:      filepath.Join(dir, "hosts"),
		Shm:        filepath.Join(dir, "shm"),
	}
}

// Make implements Files.
func (f *HostFiles) Make(_ context.Context, id string, want FilesWant) error {
	paths := f.Paths(id)
	if want.LogDir != "" {
		if err := os.MkdirAll(want.LogDir, 0o755); err != nil {
			return fmt.Errorf("make log_directory: %w", errdef.Disk(err))
		}
	}
	failpoint.Hit("sandbox/files/log-dir-made")
	if err := mountFiles(f.dir(id), want); err != nil {
		return err
	}
	hosts := []byte(nil)
	resolv, err := f.resolvConf(want.DNS)
	if err == nil && want.HostNet {
		hosts, err = f.ofHost("hosts")
	}
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		paths.Hostname: []byte(want.Hostname + "\n"), paths.ResolvConf: resolv, paths.Hosts: hosts,
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return fmt.Errorf("write pod file: %w", errdef.Disk(err))
		}
		failpoint.Hit("sandbox/files/written")
		if err := os.Chown(path, want.UID, want.GID); err != nil {
			return fmt.Errorf("give pod file to the pod: %w", err)
		}
		failpoint.Hit("sandbox/files/given")
	}
	if !want.Shm {
		return nil
	}
	if err := makeShm(paths.Shm, want); err != nil {
		return fmt.Errorf("make pod's shm: %w", err)
	}
	failpoint.Hit("sandbox/files/shm-made")
	return nil
}

// mountFiles mounts a pod's tmpfs. Nobody of the host gets in but the pod's root, as which runtimes come.
func makeShm(dir string, want FilesWant) error {
	return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|os.ModeSticky), os.Chown(dir, want.UID, want.GID))
}

func mountFiles(dir string, want FilesWant) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make pod directory: %w", errdef.Disk(err))
	}
	failpoint.Hit("sandbox/files/dir-made")
	size := filesSize
	if want.Shm {
		size = shmSize
	}
	options := fmt.Sprintf("mode=0700,size=%d,uid=%d,gid=%d", size, want.UID, want.GID)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount pod's files at %s: %w", dir, err)
	}
	failpoint.Hit("sandbox/files/mounted")
	return nil
}

// Hosts implements Files. A pod on the host's network has the host's file.
func (f *HostFiles) Hosts(id, hostname string, ips []string) error {
	if len(ips) == 0 {
		return nil
	}
	if err := os.WriteFile(f.Paths(id).Hosts, hostsFile(hostname, ips), 0o644); err != nil {
		return fmt.Errorf("write pod's hosts: %w", errdef.Disk(err))
	}
	failpoint.Hit("sandbox/hosts/written")
	return nil
}

// hostsFile is what a pod of its own network finds in /etc/hosts, unless the kubelet mounts its own.
func hostsFile(hostname string, ips []string) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return []byte(b.String())
}

// resolvConf is the pod's DNS configuration, or the host's when it has none.
func (f *HostFiles) resolvConf(dns *runtime.DNSConfig) ([]byte, error) {
	if content := resolvFile(dns); len(content) > 0 {
		return content, nil
	}
	return f.ofHost("resolv.conf")
}

func resolvFile(dns *runtime.DNSConfig) []byte {
	var b strings.Builder
	if searches := dns.GetSearches(); len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if options := dns.GetOptions(); len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return []byte(b.String())
}

// ofHost reads a file of the host's /etc; one that is absent is empty.
func (f *HostFiles) ofHost(name string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(f.cfg.Etc, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the host's %s: %w", name, err)
	}
	return content, nil
}

// List returns the ids of pods that have a directory.
func (f *HostFiles) List() ([]string, error) {
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list pods' files: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, nil
}

// Remove implements Files.
func (f *HostFiles) Remove(_ context.Context, id string) error {
	for {
		err := unix.Unmount(f.dir(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // nothing is mounted there
		}
		if err != nil {
			return fmt.Errorf("unmount pod's files %s: %w", f.dir(id), err)
		}
		failpoint.Hit("sandbox/files/unmounted")
	}
	if err := os.RemoveAll(f.dir(id)); err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	failpoint.Hit("sandbox/files/removed")
	return nil
}

// Pinned implements Files.
func (f *HostFiles) Pinned(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("look at namespace %s: %w", path, err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("no namespace is mounted at %s: %w", path, errdef.NotFound)
	}
	return nil
}
