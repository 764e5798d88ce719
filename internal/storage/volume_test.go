package storage

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

func TestVolumeCopiesTheImage(t *testing.T) {
	needRoot(t)
	lower := tree(t, "data/file", "data/sub/deep", "data/link -> /etc/passwd", "data/empty/", "etc/passwd")
	data := filepath.Join(lower, "data")
	must(t, os.Link(filepath.Join(data, "file"), filepath.Join(data, "hard")))
	must(t, unix.Mknod(filepath.Join(data, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mkfifo(filepath.Join(data, "pipe"), 0o600))
	must(t, os.Chown(data, 12, 34))
	must(t, unix.Chmod(data, 0o1770))
	must(t, os.Chown(filepath.Join(data, "file"), 5, 6))
	must(t, unix.Chmod(filepath.Join(data, "file"), 0o4711))
	must(t, os.Lchown(filepath.Join(data, "link"), 7, 7))
	must(t, unix.Setxattr(filepath.Join(data, "file"), "user.note", []byte("hello"), 0))
	r := openTestRootfs(t, layersOf{"img": {lower}})
	mustMount(t, r, "a", "img")
	dir, err := r.Volume(t.Context(), "a", "/data", Owner{})
	must(t, err)

	wantOwner(t, dir, 12, 34, 0o1770)
	wantOwner(t, filepath.Join(dir, "file"), 5, 6, 0o4711)
	wantOwner(t, filepath.Join(dir, "link"), 7, 7, 0o777)
	wantFile(t, filepath.Join(dir, "sub/deep"), "data/sub/deep")
	if to, err := os.Readlink(filepath.Join(dir, "link")); to != "/etc/passwd" {
		t.Errorf("link -> %q, %v", to, err)
	}
	note := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(dir, "hard"), "user.note", note); err != nil || string(note[:n]) != "hello" {
		t.Errorf("user.note: %v", err)
	}
	var file, hard, null unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dir, "file"), &file))
	must(t, unix.Lstat(filepath.Join(dir, "hard"), &hard))
	must(t, unix.Lstat(filepath.Join(dir, "null"), &null))
	if file.Ino != hard.Ino || file.Nlink != 2 {
		t.Error("a hard link became a copy")
	}
	if null.Rdev != unix.Mkdev(1, 3) || null.Mode&unix.S_IFMT != unix.S_IFCHR {
		t.Errorf("device is %o %d", null.Mode, null.Rdev)
	}
}

func wantOwner(t *testing.T, path string, uid, gid, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != mode {
		t.Errorf("%s is %d:%d %o; want %d:%d %o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, gid, mode)
	}
}

func TestVolumeIsTheContainersOwn(t *testing.T) {
	needRoot(t)
	r := openTestRootfs(t, layersOf{"img": {tree(t, "data/file")}})
	mustMount(t, r, "a", "img")
	mustMount(t, r, "b", "img")
	ofA, err := r.Volume(t.Context(), "a", "/data", Owner{})
	must(t, err)
	ofB, err := r.Volume(t.Context(), "b", "/data", Owner{})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(ofA, "file"), []byte("mine"), 0o644))
	again, err := r.Volume(t.Context(), "a", "data/../data/", Owner{})
	must(t, err)
	if again != ofA {
		t.Errorf("at %s, then at %s", ofA, again)
	}
	wantFile(t, filepath.Join(ofA, "file"), "mine")
	wantFile(t, filepath.Join(ofB, "file"), "data/file")
	before, err := r.Usage(t.Context(), "b")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(ofB, "big"), make([]byte, 1<<20), 0o644))
	after, err := r.Usage(t.Context(), "b")
	must(t, err)
	if after.Bytes < before.Bytes+1<<20 {
		t.Error("what is in a volume is not counted")
	}
	must(t, r.Remove(t.Context(), "a"))
	wantAbsent(t, ofA)
}

func TestVolumeDestinations(t *testing.T) {
	needRoot(t)
	outside := tree(t, "secret")
	lower := tree(t, "real/file", "to-real -> real", "abs -> /real", "dots -> ../../../../real", "host -> "+outside,
		"plain", "loop -> loop", "dir/", "dir/up -> ../real")
	r := openTestRootfs(t, layersOf{"img": {lower}})
	mustMount(t, r, "a", "img")
	cases := []struct {
		dest string
		want string // names in the volume
		kind error
	}{
		{dest: "/real", want: "file"},
		{dest: "/to-real", want: "file"},
		{dest: "/abs", want: "file"},
		{dest: "/dots", want: "file"},
		{dest: "/dir/up", want: "file"},
		{dest: "/host", want: ""}, // names nothing inside the image
		{dest: "/absent/deep", want: ""},
		{dest: "/../../absent", want: ""},
		{dest: "/plain", kind: errdef.Invalid},
		{dest: "/plain/below", kind: errdef.Invalid},
		{dest: "/loop", kind: errdef.Invalid},
		{dest: "/", kind: errdef.Invalid},
		{dest: "", kind: errdef.Invalid},
		{dest: "/dir/..", kind: errdef.Invalid},
	}
	for _, c := range cases {
		dir, err := r.Volume(t.Context(), "a", c.dest, Owner{})
		if c.kind != nil {
			wantKind(t, err, c.kind)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.dest, err)
			continue
		}
		if got := strings.Join(namesIn(t, dir), " "); got != c.want {
			t.Errorf("volume at %s holds %q; want %q", c.dest, got, c.want)
		}
		wantOwner(t, dir, 0, 0, 0o755)
	}
}

func TestVolumeNeedsItsRootfs(t *testing.T) {
	needRoot(t)
	r := openTestRootfs(t, layersOf{"img": {tree(t, "data/file")}})
	_, err := r.Volume(t.Context(), "a", "/data", Owner{})
	wantKind(t, err, errdef.WrongState, "not mounted")
	mustMount(t, r, "a", "img")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Volume(cancelled, "a", "/data", Owner{})
	wantKind(t, err, context.Canceled)
	dir, err := r.Volume(t.Context(), "a", "/data", Owner{})
	must(t, err)

	// A copy that a crash cut short does not count.
	must(t, os.Rename(dir, dir+".half"))
	must(t, os.WriteFile(filepath.Join(dir+".half", "garbage"), nil, 0o644))
	dir, err = r.Volume(t.Context(), "a", "/data", Owner{})
	must(t, err)
	if names := namesIn(t, dir); strings.Join(names, " ") != "file" {
		t.Errorf("holds %v", names)
	}
}

func TestReadFile(t *testing.T) {
	outside := tree(t, "secret")
	root := tree(t, "etc/passwd", "etc/link -> /etc/passwd", "etc/out -> "+outside+"/secret", "etc/dots -> ../../../../../../etc/passwd",
		"etc/loop -> loop", "dir/")
	must(t, unix.Mkfifo(filepath.Join(root, "pipe"), 0o600))
	cases := []struct {
		name string
		want string
		kind error
	}{
		{name: "/etc/passwd", want: "etc/passwd"},
		{name: "etc/passwd", want: "etc/passwd"},
		{name: "/etc/link", want: "etc/passwd"},
		{name: "/etc/dots", want: "etc/passwd"},
		{name: "/../etc/passwd", want: "etc/passwd"},
		{name: "/etc/out", kind: errdef.NotFound},
		{name: "/etc/none", kind: errdef.NotFound},
		{name: "/etc/passwd/x", kind: errdef.NotFound},
		{name: "/dir", kind: errdef.Invalid},
		{name: "/pipe", kind: errdef.Invalid},
	}
	for _, c := range cases {
		got, err := ReadFile(root, c.name, 10)
		if c.kind != nil {
			wantKind(t, err, c.kind, c.name)
			continue
		}
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	_, err := ReadFile(root, "/etc/passwd", 9)
	wantKind(t, err, errdef.Invalid, "9 bytes")
	if _, err := ReadFile(root, "/etc/loop", 10); err == nil {
		t.Error("read a loop")
	}
}
