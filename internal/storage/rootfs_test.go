package storage

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

func TestRootfsByConfig(t *testing.T) { testRootfsBy(t, mountByConfig) }

func TestRootfsByOptions(t *testing.T) { testRootfsBy(t, mountByOptions) }

func testRootfsBy(t *testing.T, way mounter) {
	needRoot(t)
	files := openFiles(t)
	testRootfses(t, func(t *testing.T, images Layers) rootfses {
		r := openTestRootfs(t, images)
		if err := r.tryMounter(way); err != nil {
			t.Skipf("this kernel does not mount that way: %v", err)
		}
		r.mount = way
		return r
	})
	if now := openFiles(t); now > files+2 { // the runtime's own poller
		t.Errorf("%d files open, %d before", now, files)
	}
}

func TestRootfsFailedMountLeavesNothing(t *testing.T) {
	needRoot(t)
	good, file := tree(t, "file"), filepath.Join(tree(t, "file"), "file")
	r := openTestRootfs(t, layersOf{
		"missing": {good, "/nonexistent/layer"}, "missing top": {"/nonexistent/layer", good}, "file": {file, good},
	})
	cases := map[string][]string{"missing": {"/nonexistent/layer"}, "missing top": {"/nonexistent/layer"}, "file": {file}}
	for _, way := range []mounter{mountByConfig, mountByOptions} {
		r.mount = way
		for image, words := range cases {
			_, err := r.Mount(t.Context(), "a", image, Owner{})
			if err == nil {
				t.Fatalf("mounted an image whose layer is %s", image)
			}
			wantKind(t, err, err, append(words, "root filesystem a")...)
			if left := slices.Concat(namesIn(t, r.cfg.MountDir), idsOf(t, r)); len(left) > 0 {
				t.Errorf("image %s left %v", image, left)
			}
		}
	}
}

// Where there is no SELinux a label cannot be had, which is an error and not a mount without it.
func TestRootfsLabels(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this host has SELinux")
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	for _, way := range []mounter{mountByConfig, mountByOptions} {
		r.mount = way
		if _, err := r.Mount(t.Context(), "a", "img", Owner{Label: label}); err == nil {
			t.Error("mounted with a label that the kernel does not know")
		}
		if left := slices.Concat(namesIn(t, r.cfg.MountDir), idsOf(t, r)); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

func idsOf(t testing.TB, r rootfses) []string {
	t.Helper()
	ids, err := r.List()
	must(t, err)
	return ids
}

func TestRootfsTooManyLayersForOptions(t *testing.T) {
	needRoot(t)
	r := openTestRootfs(t, layersOf{"img": manyLayers(t, 300)})
	mustMount(t, r, "by-config", "img")
	r.mount = mountByOptions
	_, err := r.Mount(t.Context(), "by-options", "img", Owner{})
	wantKind(t, err, errdef.Unsupported, "300 layers")
}

func TestRootfsLongPaths(t *testing.T) {
	needRoot(t)
	base := filepath.Join(t.TempDir(), strings.Repeat("long-", 40), strings.Repeat("path,:", 20))
	layer := filepath.Join(base, "layer")
	must(t, os.MkdirAll(layer, 0o755))
	must(t, os.WriteFile(filepath.Join(layer, "file"), []byte("x"), 0o644))
	r := openRootfsAt(t, RootfsConfig{Dir: filepath.Join(base, "rootfs"), MountDir: filepath.Join(t.TempDir(), "m")}, layersOf{"img": {layer}})
	for i, way := range []mounter{mountByConfig, mountByOptions} {
		r.mount = way
		root := mustMount(t, r, fmt.Sprint("r", i), "img")
		wantFile(t, filepath.Join(root, "file"), "x")
	}
}

// The mark that a volatile overlay leaves is a kernel's promise; Mount takes it away, and this shows that it must.
func TestRootfsVolatileMark(t *testing.T) {
	needRoot(t)
	lower := tree(t, "file")
	r := openTestRootfs(t, layersOf{"img": {lower}})
	root := mustMount(t, r, "a", "img")
	must(t, unix.Unmount(root, 0))
	p := r.at("a")
	if _, err := os.Stat(filepath.Join(p.work, "work/incompat/volatile")); err != nil {
		t.Fatalf("no mark of a volatile mount: %v", err)
	}
	if err := r.mount(overlay{lower: []string{lower}, upper: p.upper, work: p.work, target: p.target}); err == nil {
		t.Fatal("a volatile overlay was mounted twice: the mark is no longer needed")
	}
	mustMount(t, r, "a", "img")
}

func TestRootfsFullDisk(t *testing.T) {
	needRoot(t)
	lower := tree(t, "data/small")
	must(t, os.WriteFile(filepath.Join(lower, "data/big"), make([]byte, 1<<20), 0o644))
	disk := tmpfs(t, 256)
	r := openRootfsAt(t, RootfsConfig{Dir: filepath.Join(disk, "rootfs"), MountDir: t.TempDir()}, layersOf{"img": {lower}})
	root := mustMount(t, r, "a", "img")
	_, err := r.Volume(t.Context(), "a", "/data", Owner{})
	wantKind(t, err, errdef.Exhausted, "/data")
	if left := namesIn(t, r.at("a").volumes); len(left) > 0 {
		t.Errorf("a failed copy left %v", left)
	}
	fill(t, filepath.Join(root, "fill"))
	must(t, r.Remove(t.Context(), "a"))
	waitEmpty(t, filepath.Join(r.cfg.Dir, trashName))
	mustMount(t, r, "b", "img")
}

func TestRootfsNoInodesLeft(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "nr_inodes=24"))
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	r := openRootfsAt(t, RootfsConfig{Dir: filepath.Join(disk, "rootfs"), MountDir: t.TempDir()}, layersOf{"img": {tree(t, "file")}})
	var err error
	mounted := 0
	for ; err == nil && mounted < 24; mounted++ {
		_, err = r.Mount(t.Context(), fmt.Sprint("r", mounted), "img", Owner{})
	}
	wantKind(t, err, errdef.Exhausted)
	if got := len(idsOf(t, r)); got != mounted-1 {
		t.Errorf("%d root filesystems after %d mounts of which the last failed", got, mounted)
	}
}

// fill writes to path until the disk is full.
func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestRootfsRemoveInUse(t *testing.T) {
	needRoot(t)
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	root := mustMount(t, r, "a", "img")
	f, err := os.Open(filepath.Join(root, "file"))
	must(t, err)
	defer f.Close()
	must(t, r.Remove(t.Context(), "a"))
	wantAbsent(t, root)
	buf := make([]byte, 8)
	if n, err := f.Read(buf); err != nil || string(buf[:n]) != "file" {
		t.Errorf("a file open across Remove reads %q, %v", buf[:n], err)
	}
}

func TestRootfsSurvivesRestart(t *testing.T) {
	needRoot(t)
	images := layersOf{"img": {tree(t, "file")}}
	r := openTestRootfs(t, images)
	root := mustMount(t, r, "a", "img")
	must(t, os.WriteFile(filepath.Join(root, "file"), []byte("written"), 0o644))
	for range 3 {
		must(t, r.Close())
		r = openRootfsAt(t, r.cfg, images)
	}
	if again := mustMount(t, r, "a", "img"); again != root {
		t.Errorf("mounted at %s, then at %s", root, again)
	}
	wantFile(t, filepath.Join(root, "file"), "written")
	if n := len(mountsBelow(t, r.cfg.MountDir)); n != 2 {
		t.Errorf("%d mounts; want the private one and the root filesystem", n)
	}
}

func TestRootfsAtTheSameTime(t *testing.T) {
	r := openTestRootfs(t, layersOf{"img": {tree(t, "data/file")}})
	var group errgroup.Group
	for i := range 20 {
		group.Go(func() error {
			id := fmt.Sprint("r", i)
			_, err := r.Mount(t.Context(), id, "img", Owner{})
			if err == nil {
				_, err = r.Volume(t.Context(), id, "/data", Owner{})
			}
			if err == nil {
				_, err = r.Total(t.Context())
			}
			return errors.Join(err, r.Remove(t.Context(), id))
		})
	}
	must(t, group.Wait())
	waitEmpty(t, filepath.Join(r.cfg.Dir, trashName))
	if warnings := r.Warnings(); len(warnings) > 0 {
		t.Error(warnings)
	}
}

// A Mount that a crash cut short is finished by the next one, and removed by Remove.
func TestRootfsHalfMade(t *testing.T) {
	needRoot(t)
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	for i, made := range [][]string{{""}, {"upper"}, {"upper", "work"}} {
		id := fmt.Sprint("r", i)
		p := r.at(id)
		for _, dir := range made {
			must(t, os.MkdirAll(filepath.Join(p.dir, dir), 0o700))
		}
		wantFile(t, filepath.Join(mustMount(t, r, id, "img"), "file"), "file")
	}
	must(t, os.MkdirAll(r.at("only-target").target, 0o700))
	if ids := idsOf(t, r); !slices.Contains(ids, "only-target") {
		t.Errorf("List = %v", ids)
	}
	must(t, r.Remove(t.Context(), "only-target"))
}

func TestRootfsMountsStayPrivate(t *testing.T) {
	needRoot(t)
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
	t.Cleanup(func() { must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")) })
	r := openTestRootfs(t, layersOf{"img": {tree(t, "file")}})
	other := exec.Command("unshare", "-m", "--propagation", "slave", "cat")
	other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := other.StdinPipe()
	must(t, err)
	out, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	t.Cleanup(func() { in.Close(); must(t, other.Wait()) })
	_, err = in.Write([]byte("x")) // echoed once it has its namespace
	must(t, err)
	_, err = out.Read(make([]byte, 1))
	must(t, err)
	root := mustMount(t, r, "a", "img")
	seen, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", other.Process.Pid))
	must(t, err)
	if strings.Contains(string(seen), root) {
		t.Error("the mount reached another mount namespace")
	}
}

func TestOpenRootfsNamesWhatIsMissing(t *testing.T) {
	needRoot(t)
	proc := RootfsConfig{Dir: "/proc/crid", MountDir: t.TempDir()}
	if _, err := OpenRootfs(proc, layersOf{}); err == nil {
		t.Error("opened on /proc")
	}
	lower, upper := t.TempDir(), t.TempDir()
	over := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(upper, "u"), 0o755))
	must(t, os.MkdirAll(filepath.Join(upper, "w"), 0o755))
	must(t, unix.Mount("overlay", over, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+"/u,workdir="+upper+"/w"))
	t.Cleanup(func() { must(t, unix.Unmount(over, 0)) })
	cfg := RootfsConfig{Dir: filepath.Join(over, "rootfs"), MountDir: filepath.Join(t.TempDir(), "m")}
	_, err := OpenRootfs(cfg, layersOf{}) // an overlay cannot be the upper of another
	wantKind(t, err, errdef.Unsupported, "ext4", cfg.Dir)
	if left := namesIn(t, cfg.MountDir); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	must(t, unix.Unmount(cfg.MountDir, 0))
}

func BenchmarkRootfsMountRemove(b *testing.B) {
	needRoot(b)
	r := openTestRootfs(b, layersOf{"img": manyLayers(b, 8)})
	i := 0
	for b.Loop() {
		id := fmt.Sprint("r", i)
		i++
		mustMount(b, r, id, "img")
		if err := r.Remove(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// At the end of a btrfs's quota what exists cannot be changed: what is as it should be is left alone.
func TestDirectoriesThatAreRightAreNotWrittenTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "empty")
	changed := func() unix.Timespec {
		if err := makeEmpty(dir); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != 0o755 {
			t.Errorf("mode %o", st.Mode&0o7777)
		}
		return st.Ctim
	}
	first := changed()
	if again := changed(); again != first {
		t.Errorf("changed at %v, then at %v", first, again)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	changed()
}
