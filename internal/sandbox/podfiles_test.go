package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/isolate"
)

func TestMain(m *testing.M) { isolate.Tests(m.Run) }

func contentOf(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(raw)
}

// etc is a stand-in for the host's /etc.
func etc(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"resolv.conf": "nameserver 192.0.2.1\n", "hosts": "192.0.2.2 thehost\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFilesOfAPod(t *testing.T) {
	isolate.NeedRoot(t, "it gives files to the pod's root")
	dir := t.TempDir()
	f := NewFiles(FilesConfig{Dir: filepath.Join(dir, "pods"), Etc: etc(t)})
	for name, c := range map[string]struct {
		want          FilesWant
		ips           []string
		resolv, hosts string
	}{
		"with DNS": {
			want: FilesWant{Hostname: "a", DNS: &runtime.DNSConfig{
				Servers: []string{"10.10.10.10", "fd00::53"}, Searches: []string{"google.com", "example.com"}, Options: []string{"ndots:8"},
			}},
			ips:    []string{"10.0.0.2", "fd00::2"},
			resolv: "search google.com example.com\nnameserver 10.10.10.10\nnameserver fd00::53\noptions ndots:8\n",
			hosts:  "10.0.0.2\ta\nfd00::2\ta\n",
		},
		"without DNS": {want: FilesWant{Hostname: "a", DNS: &runtime.DNSConfig{}}, resolv: "nameserver 192.0.2.1\n"},
		"on the host's network": {
			want: FilesWant{Hostname: "thehost", HostNet: true}, resolv: "nameserver 192.0.2.1\n", hosts: "192.0.2.2 thehost\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.LogDir = filepath.Join(dir, "logs", name)
			if err := errors.Join(f.Make(t.Context(), "id", c.want), f.Hosts("id", c.want.Hostname, c.ips)); err != nil {
				t.Fatal(err)
			}
			p := f.Paths("id")
			if got := contentOf(t, p.ResolvConf); got != c.resolv {
				t.Errorf("resolv.conf %q", got)
			}
			if got := contentOf(t, p.Hosts); !strings.HasSuffix(got, c.hosts) || len(c.ips) > 0 && !strings.HasPrefix(got, "127.0.0.1\tlocalhost\n") {
				t.Errorf("hosts %q", got)
			}
			if got := contentOf(t, p.Hostname); got != c.want.Hostname+"\n" {
				t.Errorf("hostname %q", got)
			}
			if _, err := os.Stat(c.want.LogDir); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := f.Remove(t.Context(), "id"); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(filepath.Dir(p.Hosts)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pod's directory is left: %v", err)
			}
		})
	}
}

func TestFilesWithoutHostFiles(t *testing.T) {
	isolate.NeedRoot(t, "it gives files to the pod's root")
	f := NewFiles(FilesConfig{Dir: t.TempDir(), Etc: t.TempDir()})
	if err := f.Make(t.Context(), "id", FilesWant{HostNet: true}); err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, f.Paths("id").ResolvConf) + contentOf(t, f.Paths("id").Hosts); got != "" {
		t.Errorf("files of a host without any: %q", got)
	}
	if err := f.Remove(t.Context(), "id"); err != nil {
		t.Error(err)
	}
}

// Containers write to their pod's files, and can fill no more than those (as CVE-2020-8557 filled the host's disk).
func TestAPodCannotFillTheHost(t *testing.T) {
	isolate.NeedRoot(t, "it mounts")
	f := NewFiles(FilesConfig{Dir: t.TempDir(), Etc: etc(t)})
	for id, want := range map[string]FilesWant{"own": {Shm: true}, "host": {HostNet: true}} {
		if err := f.Make(t.Context(), id, want); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.Paths(id).Hosts, f.Paths(id).Hostname, f.Paths(id).ResolvConf} {
			if err := os.Truncate(path, 0); err != nil {
				t.Error(err)
			}
			if err := os.WriteFile(path, make([]byte, shmSize+1), 0o644); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%s of pod %s took more than the pod has: %v", path, id, err)
			}
			if err := os.Truncate(path, 0); err != nil {
				t.Error(err)
			}
		}
		if err := f.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestShm(t *testing.T) {
	isolate.NeedRoot(t, "it mounts")
	f := NewFiles(FilesConfig{Dir: t.TempDir(), Etc: etc(t)})
	if err := f.Make(t.Context(), "id", FilesWant{Hostname: "a", Shm: true}); err != nil {
		t.Fatal(err)
	}
	shm := f.Paths("id").Shm
	var st unix.Statfs_t
	if err := unix.Statfs(shm, &st); err != nil {
		t.Fatal(err)
	}
	const flags = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != shmSize || st.Flags&flags != flags {
		t.Errorf("shm: type %x, %d bytes, flags %x", st.Type, st.Blocks*uint64(st.Bsize), st.Flags)
	}
	if fi, err := os.Stat(shm); err != nil || fi.Mode().Perm() != 0o777 || fi.Mode()&os.ModeSticky == 0 {
		t.Errorf("shm: %v, %v", fi.Mode(), err)
	}
	open, err := os.Create(filepath.Join(shm, "used")) // a container that still has it
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Remove(t.Context(), "id"); err != nil {
			t.Error(err)
		}
	}
	if raw := contentOf(t, "/proc/self/mountinfo"); strings.Contains(raw, shm) {
		t.Error("shm is still mounted")
	}
	if err := open.Close(); err != nil {
		t.Error(err)
	}
}

func TestPinned(t *testing.T) {
	f := NewFiles(FilesConfig{})
	if err := f.Pinned("/proc/self/ns/net"); err != nil {
		t.Error(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.Pinned(plain); !errors.Is(err, errdef.NotFound) {
		t.Errorf("a plain file: %v", err)
	}
	if err := f.Pinned(plain + "-not"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}
