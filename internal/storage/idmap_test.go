package storage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

const (
	mappedUID = 1 << 20
	mappedGID = 1 << 21
)

// newOwner is a user namespace that lasts as long as the test.
func newOwner(t *testing.T) Owner {
	t.Helper()
	needRoot(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: mappedUID, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{HostID: mappedGID, Size: 65536}},
		Pdeathsig:   unix.SIGKILL,
	}
	must(t, cmd.Start())
	t.Cleanup(func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed
	})
	return Owner{UserNS: fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid), UID: mappedUID, GID: mappedGID}
}

func wantIDs(t *testing.T, path string, uid, gid int) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if int(st.Uid) != uid || int(st.Gid) != gid {
		t.Errorf("%s is of %d:%d, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

func TestARootFilesystemOfAnotherOwner(t *testing.T) {
	needRoot(t)
	top, bottom := tree(t, "new", "data/seed"), tree(t, "old", "user")
	must(t, os.Chown(filepath.Join(bottom, "user"), 1000, 1001))
	disk := t.TempDir() // layers may lie on several mounts
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	must(t, os.WriteFile(filepath.Join(disk, "elsewhere"), nil, 0o644))
	r := openTestRootfs(t, layersOf{"img": {top, bottom, disk}, "none": nil})
	owner := newOwner(t)
	for range 2 {
		root, err := r.Mount(t.Context(), "a", "img", owner)
		must(t, err)
		for _, name := range []string{"", "new", "old", "data", "elsewhere"} {
			wantIDs(t, filepath.Join(root, name), mappedUID, mappedGID)
		}
		wantIDs(t, filepath.Join(root, "user"), mappedUID+1000, mappedGID+1001)
		wantFile(t, filepath.Join(root, "old"), "old")
		must(t, os.WriteFile(filepath.Join(root, "user"), []byte("changed"), 0o644)) // copied up
		wantIDs(t, filepath.Join(root, "user"), mappedUID+1000, mappedGID+1001)
		if left := mountsBelow(t, r.cfg.MountDir); len(left) != 2 {
			t.Errorf("mounts beside the directory and the root filesystem: %v", left)
		}
		must(t, r.Unmount("a"))
	}
	wantIDs(t, filepath.Join(bottom, "user"), 1000, 1001)
	wantFile(t, filepath.Join(bottom, "user"), "user")
	root, err := r.Mount(t.Context(), "a", "img", owner)
	must(t, err)
	wantFile(t, filepath.Join(root, "user"), "changed")
	for dest, seed := range map[string]string{"/data": "seed", "/fresh": ""} {
		dir, err := r.Volume(t.Context(), "a", dest, owner)
		must(t, err)
		wantIDs(t, filepath.Join(dir, seed), mappedUID, mappedGID)
	}
	must(t, MkdirAll(root, "/data/x/y", owner))
	wantIDs(t, filepath.Join(root, "data/x"), mappedUID, mappedGID)
	wantIDs(t, filepath.Join(root, "data/x/y"), mappedUID, mappedGID)

	root, err = r.Mount(t.Context(), "b", "none", owner)
	must(t, err)
	wantIDs(t, root, mappedUID, mappedGID)
}

func mapMount(t *testing.T, r *Rootfs, id, source string, owner Owner) (string, error) {
	t.Helper()
	at, err := os.OpenFile(source, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	return r.MapMount(t.Context(), id, at, owner)
}

func TestMapMount(t *testing.T) {
	r := openTestRootfs(t, layersOf{})
	owner := newOwner(t)
	source := tree(t, "file", "dir/", "link -> file", "sub/")
	must(t, os.Chown(filepath.Join(source, "file"), 1000, 1000))
	must(t, unix.Mount("tmpfs", filepath.Join(source, "sub"), "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(source, "sub"), 0)) })
	dir, err := mapMount(t, r, "a", source, owner)
	must(t, err)
	wantIDs(t, dir, mappedUID, mappedGID)
	wantIDs(t, filepath.Join(dir, "file"), mappedUID+1000, mappedGID+1000)
	wantIDs(t, filepath.Join(dir, "sub"), 0, 0) // another mount: its own ids
	must(t, os.Chown(filepath.Join(dir, "dir"), mappedUID+7, mappedGID+7))
	wantIDs(t, filepath.Join(source, "dir"), 7, 7)
	file, err := mapMount(t, r, "a", filepath.Join(source, "file"), owner)
	must(t, err)
	wantFile(t, file, "file")
	wantIDs(t, file, mappedUID+1000, mappedGID+1000)
	other, err := mapMount(t, r, "b", source, owner)
	must(t, err)

	must(t, r.Unmap("a"))
	must(t, r.Unmap("a"))
	wantAbsent(t, dir)
	wantIDs(t, other, mappedUID, mappedGID)
	must(t, r.Remove(t.Context(), "b"))
	wantAbsent(t, other)

	if _, err := mapMount(t, r, "a", "/proc", owner); !errors.Is(err, errdef.Unsupported) || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("a filesystem that cannot: %v", err)
	}
	if _, err := mapMount(t, r, "../a", source, owner); !errors.Is(err, errdef.Invalid) {
		t.Errorf("an id that leads out: %v", err)
	}
	must(t, r.Unmap("a"))
}

// What a crash leaves mounted is found by the next life.
func TestOpenUnmapsWhatACrashLeft(t *testing.T) {
	r := openTestRootfs(t, layersOf{})
	left, err := mapMount(t, r, "a", tree(t, "file"), newOwner(t))
	must(t, err)
	openRootfsAt(t, r.cfg, layersOf{})
	wantAbsent(t, left)
}

func TestMapImage(t *testing.T) {
	r := openTestRootfs(t, layersOf{"one": {tree(t, "file")}, "none": nil})
	_ = openTestMounts(t, r)
	owner := newOwner(t)
	for range 2 {
		dir, err := r.MapImage(t.Context(), "a", "one", owner)
		must(t, err)
		wantFile(t, filepath.Join(dir, "file"), "file")
		wantIDs(t, filepath.Join(dir, "file"), mappedUID, mappedGID)
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("writing to an image: %v", err)
		}
	}
	dir, err := r.MapImage(t.Context(), "a", "none", owner)
	must(t, err)
	wantIDs(t, dir, mappedUID, mappedGID)
	if _, err := r.MapImage(t.Context(), "a", "unknown", owner); !errors.Is(err, errdef.NotFound) {
		t.Errorf("got %v", err)
	}
	must(t, r.Unmap("a"))
}

func TestProbeMapped(t *testing.T) {
	r := openTestRootfs(t, layersOf{})
	owner := newOwner(t)
	must(t, r.ProbeMapped(t.Context(), owner, t.TempDir()))
	if err := r.ProbeMapped(t.Context(), owner, "/proc"); !errors.Is(err, errdef.Unsupported) {
		t.Errorf("a store that cannot: %v", err)
	}
	if err := r.ProbeMapped(t.Context(), Owner{UserNS: "/nonexistent"}); err == nil {
		t.Error("a namespace that is not there")
	}
	if left := mountsBelow(t, r.cfg.MountDir); len(left) != 1 {
		t.Errorf("left mounted: %v", left)
	}
}

// Kernels before 6.3 cannot map the ids of a tmpfs, as this one cannot those of mqueue.
func TestProbeMemory(t *testing.T) {
	users, err := os.Open(newOwner(t).UserNS)
	must(t, err)
	defer users.Close()
	must(t, probeMemory("tmpfs", users))
	if err := probeMemory("mqueue", users); !errors.Is(err, errdef.Unsupported) {
		t.Errorf("a filesystem that cannot: %v", err)
	}
}
