package storage

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// du is what the tool of that name says that dir takes.
func du(t *testing.T, dir string) Usage {
	t.Helper()
	sum := func(unit string) uint64 {
		out, err := exec.Command("du", "-s", unit, dir).Output()
		check(t, err)
		n, err := strconv.ParseUint(string(bytes.Fields(out)[0]), 10, 64)
		check(t, err)
		return n
	}
	return Usage{Bytes: sum("-B1"), Inodes: sum("--inodes")}
}

// agrees waits until the store tells what du does.
func agrees(t *testing.T, after string, s *Images) {
	t.Helper()
	var told, real Usage
	defer func() {
		if t.Failed() {
			t.Logf("after %s: the store says %+v, du %+v", after, told, real)
		}
	}()
	waitFor(t, func() bool {
		s.disk.kick()
		var err error
		told, err = s.Usage(t.Context())
		check(t, err)
		real = du(t, s.root)
		return told.Bytes == real.Bytes && told.Inodes == real.Inodes
	})
}

func TestUsageIsWhatDuSays(t *testing.T) {
	r := newRegistry(t)
	s := newDamagedWorld(t, r).open(t)
	agrees(t, "start", s)
	base := layer(t, false, "base", strings.Repeat("b", 300_000))
	for _, mark := range []string{"a", "b", "c"} {
		r.push(t, mark+":1", picture(t, mark, base, layer(t, false, "top", strings.Repeat(mark, 100_000))))
		pull(t, s, r.host+"/"+mark+":1")
		agrees(t, "the pull of "+mark, s)
	}
	dirs, err := s.Layers(t.Context(), resolve(t, s, r.host+"/a:1").ID)
	check(t, err)
	waitFor(t, func() bool { return s.leased(t, resolve(t, s, r.host+"/a:1").ID) })
	agrees(t, "a lease", s)
	check(t, os.WriteFile(filepath.Join(s.scratchDir(), "half"), make([]byte, 70_000), 0o600))
	agrees(t, "half a pull", s)
	check(t, os.Link(filepath.Join(s.scratchDir(), "half"), filepath.Join(s.root, "crid-cache-link")))
	agrees(t, "a second name for a file", s)
	check(t, s.Remove(t.Context(), r.host+"/c:1"))
	agrees(t, "a removal", s)
	check(t, s.setAside(dirs[0])) // a layer's files, which somebody may still use
	agrees(t, "setting a layer aside", s)
	_, err = s.Pull(t.Context(), PullRequest{Ref: r.host + "/b:1"})
	check(t, err)
	agrees(t, "one more pull", s)
}

// TestLinksBetweenLayers: files of two layers that are one on the disk count once.
func TestLinksBetweenLayers(t *testing.T) {
	r := newRegistry(t)
	s := newDamagedWorld(t, r).open(t)
	for _, mark := range []string{"a", "b"} {
		r.push(t, mark+":1", picture(t, mark, layer(t, false, "f", strings.Repeat(mark, 50_000))))
		pull(t, s, r.host+"/"+mark+":1")
	}
	var dirs []string
	for _, e := range s.index.Load().byID {
		dirs = append(dirs, e.lower[0])
	}
	check(t, os.Link(filepath.Join(dirs[0], "f"), filepath.Join(dirs[1], "g")))
	check(t, s.Close())
	s, err := OpenImages(s.cfg)
	check(t, err)
	defer s.Close()
	agrees(t, "a link from layer to layer", s)
}

func TestSharesOfImages(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base := layer(t, false, "base", strings.Repeat("b", 300_000))
	shares := map[string]Share{}
	for _, mark := range []string{"a", "b"} {
		r.push(t, mark+":1", picture(t, mark, base, layer(t, false, "top", strings.Repeat(mark, 100_000))))
		id := pull(t, s, r.host+"/"+mark+":1").ID
		waitFor(t, func() bool { _, known := s.Share(id); return known })
	}
	a, b := resolve(t, s, r.host+"/a:1"), resolve(t, s, r.host+"/b:1")
	waitFor(t, func() bool { // the base was a's alone at first
		shares[a.ID], _ = s.Share(a.ID)
		return shares[a.ID].Shared > 300_000
	})
	shares[b.ID], _ = s.Share(b.ID)
	if x, y := shares[a.ID], shares[b.ID]; x.Shared != y.Shared || x.Exclusive < 100_000 || x.Exclusive > 150_000 || y.Exclusive < 100_000 {
		t.Errorf("a %+v, b %+v", x, y)
	}
	agrees(t, "the pulls", s)
	before := du(t, s.root)
	check(t, s.Remove(t.Context(), a.ID))
	gone := before.Bytes - du(t, s.root).Bytes
	if diff := int64(gone) - int64(shares[a.ID].Exclusive); diff < -16384 || diff > 16384 { // lists of the store shrink, too
		t.Errorf("removing a gave back %d bytes, it was said to have %d alone", gone, shares[a.ID].Exclusive)
	}
	waitFor(t, func() bool { _, known := s.Share(a.ID); return !known })
	waitFor(t, func() bool { now, _ := s.Share(b.ID); return now.Shared == 0 && now.Exclusive > 400_000 })
}

func TestTotalOfRootFilesystems(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	dir := filepath.Join(w.dir, "rootfs")
	r, err := OpenRootfs(RootfsConfig{Dir: dir, MountDir: filepath.Join(w.dir, "mounts"), ImageStore: s.Dir()}, s)
	check(t, err)
	defer r.Close()
	total, err := r.Total(t.Context())
	check(t, err)
	if total.Mountpoint != s.Dir() {
		t.Errorf("on one filesystem containers are told at %s, images at %s", total.Mountpoint, s.Dir())
	}
	for _, name := range []string{"a", ".trash/1"} { // what was removed takes its place until it is deleted
		check(t, os.MkdirAll(filepath.Join(dir, name, "upper"), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name, "upper/f"), make([]byte, 100_000), 0o600))
		waitFor(t, func() bool {
			r.total.kick()
			got, err := r.Total(t.Context())
			check(t, err)
			real := du(t, dir)
			return got.Bytes == real.Bytes && got.Inodes == real.Inodes
		})
	}
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	defer func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	waitFor(t, func() bool {
		r.total.kick()
		got, err := r.Total(t.Context())
		check(t, err)
		return got.Mountpoint == dir
	})
}

// TestUsageAnswersWhileItMeasures: a measurement that takes long holds nobody who has an answer.
func TestUsageAnswersWhileItMeasures(t *testing.T) {
	hang := make(chan struct{})
	began := make(chan int, 8)
	n := 0
	g := newGauge(func(ctx context.Context) (Usage, error) {
		n++
		began <- n
		if n > 1 {
			select {
			case <-hang:
			case <-ctx.Done():
			}
		}
		return Usage{Bytes: uint64(n)}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { g.run(ctx, func(error) {}); close(done) }()
	defer func() { cancel(); <-done }()
	first, err := g.read(t.Context())
	if err != nil || first.Bytes != 1 || first.At.IsZero() {
		t.Fatalf("%+v, %v", first, err)
	}
	g.kick()
	<-began
	if n := <-began; n != 2 {
		t.Fatal(n)
	}
	if again, err := g.read(t.Context()); err != nil || again != first {
		t.Errorf("%+v, %v", again, err)
	}
	old := *g.last.Load() // nobody has asked for long
	old.usage.At = time.Now().Add(-2 * gaugeStale)
	g.last.Store(&old)
	asked := make(chan Usage)
	go func() { u, _ := g.read(t.Context()); asked <- u }()
	close(hang)
	if u := <-asked; u.Bytes != 2 {
		t.Errorf("after a long silence: %+v", u)
	}
}

// BenchmarkUsage is ImageFsInfo's part of the store, with so many images.
func BenchmarkUsage(b *testing.B) {
	s := openMany(b, 200, 800)
	if _, err := s.Usage(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Usage(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	began := time.Now()
	if _, err := s.measureStore(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "ms/measurement")
}
