package sandbox

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
)

// usernsConfig is a pod with a user namespace.
func usernsConfig(name string) *runtime.PodSandboxConfig {
	cfg := config(name)
	cfg.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{
		UsernsOptions: &runtime.UserNamespace{
			Uids: []*runtime.IDMapping{{HostId: 100000, Length: 65536}}, Gids: []*runtime.IDMapping{{HostId: 200000, Length: 65536}},
		}}}}
	return cfg
}

func TestAPodWithAUserNamespace(t *testing.T) {
	w := want(usernsConfig("a"))
	if uid, gid := w.Users.Root(); !w.Net || !w.IPC || !w.UTS || uid != 100000 || gid != 200000 {
		t.Errorf("pinned is %+v", w)
	}
	if !want(config("a")).Users.None() {
		t.Error("a pod without one has one")
	}
	rec := &Record{Config: CRIConfig{usernsConfig("a")}}
	if f := filesWant(rec); f.UID != 100000 || f.GID != 200000 {
		t.Errorf("files are of %d:%d", f.UID, f.GID)
	}
}

func TestFilesBelongToThePodsRoot(t *testing.T) {
	isolate.NeedRoot(t, "it mounts, and gives files away")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	f := NewFiles(FilesConfig{Dir: filepath.Join(t.TempDir(), "pods"), Etc: etc(t)})
	if err := f.Make(t.Context(), "a", FilesWant{Hostname: "a", Shm: true, UID: 100000, GID: 200000}); err != nil {
		t.Fatal(err)
	}
	if err := f.Hosts("a", "a", []string{"10.0.0.2"}); err != nil {
		t.Fatal(err)
	}
	paths := f.Paths("a")
	for _, path := range []string{paths.Hostname, paths.Hosts, paths.ResolvConf, paths.Shm} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Uid != 100000 || st.Gid != 200000 {
			t.Errorf("%s is of %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}
	if err := f.Remove(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}
