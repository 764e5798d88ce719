package integration

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cstorage "go.podman.io/storage"
	"go.podman.io/storage/types"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

const (
	slowLayers = 6
	slowPieces = 24 // of each blob
	slowImage  = "slow:1"
)

// slowRegistry serves an image of some layers slowly, piece by piece and one layer after the other.
type slowRegistry struct {
	host string

	mu     sync.Mutex // guards all below
	pause  time.Duration
	blobs  map[string]int // the place of each layer in the image
	pieces int            // served of layers since the last reset
	begun  map[string]bool
	after  map[int]func() // called when so many pieces were served
}

func newSlowRegistry(t *testing.T) *slowRegistry {
	t.Helper()
	r := &slowRegistry{blobs: map[string]int{}, begun: map[string]bool{}}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, blob, _ := strings.Cut(req.URL.Path, "/blobs/")
		r.mu.Lock()
		place, isLayer := r.blobs[blob]
		r.mu.Unlock()
		if isLayer && req.Method == http.MethodGet {
			w = &slowWriter{ResponseWriter: w, r: r, blob: blob, place: place}
		}
		next.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	img := v1.Image(empty.Image)
	blobs := map[string]int{}
	for i := range slowLayers {
		layer := someLayer(t, i)
		digest, err := layer.Digest()
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
		blobs[digest.String()] = i
	}
	ref, err := name.NewTag(r.host+"/"+slowImage, name.Insecure)
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.blobs = blobs
	return r
}

// someLayer makes a layer of files, directories and links of which no two are alike.
func someLayer(t *testing.T, n int) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	random := rand.New(rand.NewPCG(1, uint64(n)))
	put := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := fmt.Sprintf("layer%d/", n)
	put(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	for i := range 40 {
		content := make([]byte, random.IntN(64<<10))
		for j := range content {
			content[j] = byte(random.Uint32())
		}
		put(tar.Header{Name: fmt.Sprintf("%sfile%d", dir, i), Typeflag: tar.TypeReg, Mode: 0o644, Uid: 1000 + i}, content)
		put(tar.Header{Name: fmt.Sprintf("%slink%d", dir, i), Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: fmt.Sprintf("file%d", i)}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// reset begins a new count: pieces are served a pause apart, and after so many of them what belongs to it is called.
func (r *slowRegistry) reset(pause time.Duration, after map[int]func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pause, r.pieces, r.begun, r.after = pause, 0, map[string]bool{}, after
}

// served tells of how many layers something was served since the last reset.
func (r *slowRegistry) served() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.begun)
}

type slowWriter struct {
	http.ResponseWriter
	r     *slowRegistry
	blob  string
	place int
}

// Write serves one layer's content in pieces. A later layer begins later, so that layers do not end together.
func (w *slowWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	pause := w.r.pause
	w.r.begun[w.blob] = true
	w.r.mu.Unlock()
	<-time.After(time.Duration(w.place*slowPieces/3) * pause)
	written := 0
	for piece := max(1, len(p)/slowPieces); written < len(p); {
		n, err := w.ResponseWriter.Write(p[written:min(len(p), written+piece)])
		written += n
		if err != nil {
			return written, err
		}
		if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
			return written, err
		}
		<-time.After(pause)
		w.r.count()
	}
	return written, nil
}

func (r *slowRegistry) count() {
	r.mu.Lock()
	r.pieces++
	call := r.after[r.pieces]
	r.mu.Unlock()
	if call != nil {
		call()
	}
}

// storeCheck lets containers/storage compare everything in the store that crid, which must not run, has at root, and
// returns how many layers it calls complete. Raw is a store as a crash left it, with layers that no list accounts for.
func storeCheck(t *testing.T, root string, raw bool) int {
	t.Helper()
	store, err := cstorage.GetStore(types.StoreOptions{
		GraphRoot: filepath.Join(root, "storage"), RunRoot: t.TempDir(), GraphDriverName: "overlay",
		GraphDriverOptions: []string{"overlay.skip_mount_home=true"},
	})
	if err != nil {
		t.Fatal("open the store for a check:", err)
	}
	defer store.Free()
	report, err := store.Check(cstorage.CheckEverything())
	if err != nil {
		t.Fatal("check the store:", err)
	}
	for _, found := range []map[string][]error{report.Layers, report.Images, report.Containers} {
		for id, errs := range found {
			if raw && len(errs) == 1 && errors.Is(errs[0], cstorage.ErrLayerUnaccounted) {
				continue
			}
			t.Errorf("store check: %s: %v", id, errs)
		}
	}
	layers, err := store.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Shutdown(false); err != nil {
		t.Fatal(err)
	}
	return len(layers)
}

func pullSlow(c *harness.Crid, r *slowRegistry) error {
	_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: r.host + "/" + slowImage}, nil, nil)
	return err
}

// The power fails amid a pull, at many moments: what the disk holds then has no layer that is called complete and is not.
// A crid that starts there pulls the rest.
func TestPowerCutsAmidAPull(t *testing.T) {
	r := newSlowRegistry(t)
	disk := harness.NewDisk(t, 192<<20)
	c := harness.Start(t, harness.Registry(r.host))
	r.reset(3*time.Millisecond, nil)
	from := disk.Moment()
	if err := pullSlow(c, r); err != nil {
		t.Fatal(err)
	}
	to := disk.Moment()
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	moments := disk.Flushes(from, to)
	flushes := len(moments)
	for i := range 20 {
		moments = append(moments, from+(to-from)*i/20)
	}
	complete := map[int]int{} // a moment for each number of complete layers
	for _, m := range moments {
		disk.MountCut(m)
		n := storeCheck(t, c.Root(), true)
		if t.Failed() {
			t.Fatalf("after the power failed at %d of %d", m-from, to-from)
		}
		complete[n] = m
	}
	t.Logf("%d writes and flushes, %d moments before a flush and 20 others, numbers of complete layers: %d different", to-from, flushes, len(complete))
	if flushes < slowLayers || len(complete) < 4 {
		t.Errorf("%d flushes, %d different numbers of complete layers: that is not amid a pull", flushes, len(complete))
	}
	for n, m := range complete {
		disk.Reboot(c, m)
		r.reset(0, nil)
		afterPowerCut(t, c, r)
		if got := r.served(); n < slowLayers && got > slowLayers-n {
			t.Errorf("with %d layers stored, the pull fetched %d", n, got)
		}
	}
	disk.Unmount()
	disk.MountWhole()
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
}

// afterPowerCut starts crid, pulls and stops crid, and looks whether all is whole then.
func afterPowerCut(t *testing.T, c *harness.Crid, r *slowRegistry) {
	t.Helper()
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pullSlow(c, r); err != nil {
		t.Error("pull after the power cut:", err)
	}
	eventually(t, "the layers to be verified", func() bool {
		_, err := os.Stat(filepath.Join(c.Root(), "storage/crid-open"))
		return err == nil && !strings.Contains(verbose(t, c), "are being compared")
	})
	if told := verbose(t, c); strings.Contains(told, "damaged") {
		t.Errorf("status after the power cut: %s", told)
	}
	eventually(t, "the trash to be emptied", func() bool { return emptyTrash(t, c) })
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := storeCheck(t, c.Root(), false); n != slowLayers {
		t.Errorf("%d layers after the pull", n)
	}
}

// emptyTrash tells whether all that was taken out of the image store is deleted.
func emptyTrash(t *testing.T, c *harness.Crid) bool {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.Root(), "storage/crid-trash/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found) == 0
}

// verbose is what Status tells of crid when it is asked for all.
func verbose(t *testing.T, c *harness.Crid) string {
	t.Helper()
	s, err := c.Runtime.Status(c.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	return s.Info["crid"]
}

// crid is killed at many moments of a pull, from the first piece to after the last: the store is whole then, and the next
// pull brings what is missing.
func TestKillsAmidAPull(t *testing.T) {
	r := newSlowRegistry(t)
	c := harness.Start(t, harness.Registry(r.host))
	all := slowLayers * slowPieces
	reused := 0
	for _, moment := range []struct {
		pieces int
		later  time.Duration
	}{
		{1, 0}, {all / 8, 0}, {all / 4, 0}, {all / 2, 0}, {all * 3 / 4, 0}, {all * 7 / 8, 0}, {all, 0},
		{all, 10 * time.Millisecond}, {all, 30 * time.Millisecond}, {all, 60 * time.Millisecond}, {all, 120 * time.Millisecond},
	} {
		now := make(chan struct{})
		r.reset(3*time.Millisecond, map[int]func(){moment.pieces: sync.OnceFunc(func() { close(now) })})
		pulled := make(chan error, 1)
		go func() { pulled <- pullSlow(c, r) }() // ends when crid is killed
		select {
		case <-now:
		case <-time.After(30 * time.Second):
			t.Fatal("the pull does not go on")
		}
		<-time.After(moment.later)
		if err := c.Node.Kill(); err != nil {
			t.Fatal(err)
		}
		<-pulled
		stored := storeCheck(t, c.Root(), true)
		r.reset(0, nil)
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pullSlow(c, r); err != nil {
			t.Errorf("killed %v after %d pieces, with %d layers stored: %v", moment.later, moment.pieces, stored, err)
		}
		if got := r.served(); got > slowLayers-min(stored, slowLayers) {
			t.Errorf("killed %v after %d pieces, with %d layers stored: the next pull fetched %d", moment.later, moment.pieces, stored, got)
		}
		if stored > 0 {
			reused++
		}
		if told := verbose(t, c); strings.Contains(told, "damaged") {
			t.Errorf("status: %s", told)
		}
		eventually(t, "the trash to be emptied", func() bool { return emptyTrash(t, c) })
		if found := fsck(t, c, "--contents"); len(found) > 0 {
			t.Errorf("killed %v after %d pieces, with %d layers stored: fsck finds %v", moment.later, moment.pieces, stored, found)
		}
		if err := c.Node.Stop(); err != nil {
			t.Fatal(err)
		}
		if n := storeCheck(t, c.Root(), false); n != slowLayers {
			t.Errorf("killed %v after %d pieces, with %d layers stored: %d layers after the next pull", moment.later, moment.pieces, stored, n)
		}
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: r.host + "/" + slowImage}); err != nil {
			t.Error(err)
		}
	}
	if reused == 0 {
		t.Error("no moment was one with layers stored")
	}
}

// The power fails while containers run: what is left of them can be looked at and removed, what has no record is collected,
// and images are as they were.
func TestAPowerCutAmidPods(t *testing.T) {
	disk := harness.NewDisk(t, 192<<20)
	c := harness.Start(t)
	c.Pull(images.Busybox)
	pod, torn := c.RunPod(), c.RunPod()
	const writes = "i=0; while mkdir -p /d$i && echo $i > /d$i/f; do i=$((i+1)); done"
	running, lost, exited := pod.Run(writes), torn.Run(writes), pod.Run("echo done > /file")
	exited.Wait()
	soon := disk.Moment()
	<-time.After(1500 * time.Millisecond) // records are on the disk a second later
	later := disk.Moment()
	for _, p := range []*harness.Pod{pod, torn} {
		p.Stop()
		p.Remove()
	}
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, moment := range []int{soon, later} {
		disk.Reboot(c, moment)
		if _, err := os.Stat(filepath.Join(c.Root(), "rootfs", running.ID, "upper/d0")); moment == later && err != nil {
			t.Error("the power cut left nothing of a container:", err)
		}
		for _, record := range []string{"pods/" + torn.ID, "containers/" + lost.ID} {
			err := os.Truncate(filepath.Join(c.Root(), "state", record+".json"), 0)
			if moment == later && err != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		if moment == later {
			afterReboot(t, c, pod, running, exited)
		}
		removeRest(t, c, pod.ID, torn.ID)
		if got := c.RunPod().Output("echo works"); got != "works\n" {
			t.Errorf("a new container of the image: %q", got)
		}
		removeRest(t, c)
		eventually(t, "all root filesystems to be collected", func() bool {
			found, err := filepath.Glob(filepath.Join(c.Root(), "rootfs/[^.]*"))
			trash, trashErr := filepath.Glob(filepath.Join(c.Root(), "rootfs/.trash/*"))
			return err == nil && trashErr == nil && len(found)+len(trash) == 0
		})
		if err := c.Node.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	disk.Unmount()
	disk.MountWhole()
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
}

// afterReboot looks how a pod and its containers are listed that were there before a power cut.
func afterReboot(t *testing.T, c *harness.Crid, pod *harness.Pod, running, exited *harness.Container) {
	t.Helper()
	if got := pod.Status().State; got != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", got)
	}
	if s := running.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 255 || s.Reason == "" {
		t.Errorf("the container that ran: %v", s)
	}
	if s := exited.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("the container that had exited: %v", s)
	}
	if told := unreadable(t, c); len(told) == 0 {
		t.Error("nothing is told of the records that are empty")
	}
}

// removeRest removes the pods of the ids, known or not, and all that are listed.
func removeRest(t *testing.T, c *harness.Crid, ids ...string) {
	t.Helper()
	pods, err := c.Runtime.ListPodSandbox(c.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		ids = append(ids, p.Id)
	}
	for _, id := range ids {
		if err := errors.Join(c.Runtime.StopPodSandbox(c.Context(), id), c.Runtime.RemovePodSandbox(c.Context(), id)); err != nil {
			t.Errorf("remove pod %s: %v", id, err)
		}
	}
}
