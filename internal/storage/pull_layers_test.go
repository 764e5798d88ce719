package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// A layer that two images have, pulled at the same time, is fetched by one of them.
func TestTwoPullsFetchTheirLayerOnce(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base := layer(t, false, "base", "wanted by two")
	for _, mark := range []string{"a", "b"} {
		r.push(t, mark+":1", picture(t, mark, base, layer(t, false, "top", mark)))
	}
	g := holdBlobs(r)
	var both sync.WaitGroup
	for _, mark := range []string{"a", "b"} {
		both.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/" + mark + ":1"}); err != nil {
				t.Errorf("%s: %v", mark, err)
			}
		})
	}
	close(g.open)
	both.Wait()
	if all, most := r.fetched(); all != 5 || most != 1 { // two configurations, two tops, one base
		t.Errorf("%d blobs fetched, one of them %d times", all, most)
	}
}

// When the pull that fetches a layer is given up, the other one that waits for it goes on.
func TestAWaitingPullTakesOver(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base := layer(t, false, "base", "begun by one")
	for _, mark := range []string{"a", "b"} {
		r.push(t, mark+":1", picture(t, mark, base))
	}
	held := digestOf(t, base)
	asked := make(chan struct{}, 2)
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, held) && r.count(held) == 1 {
				asked <- struct{}{}
				<-req.Context().Done()
			}
			return false
		}
	})
	first, leave := context.WithCancel(t.Context())
	defer leave()
	done := make(chan error, 2)
	go func() { // ends by leave
		_, err := s.Pull(first, PullRequest{Ref: r.host + "/a:1"})
		done <- err
	}()
	<-asked
	go func() { // ends with the pull
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/b:1"})
		done <- err
	}()
	waitFor(t, func() bool { return s.waiting() == 2 })
	leave()
	if err := <-done; err == nil {
		t.Error("the pull that was given up went well")
	}
	check(t, <-done)
	if got := list(t, s); len(got) != 1 {
		t.Errorf("%d images", len(got))
	}
}

// What the store has of a blob is used again wherever it lies: twice in one image, and on another parent.
func TestAStoredBlobIsNotFetchedAgain(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	common := layer(t, false, "a/common", "in many places", "b", "x")
	r.push(t, "twice:1", picture(t, "twice", common, layer(t, false, "between", "x"), common))
	r.push(t, "over:1", picture(t, "over", layer(t, false, "other", "below"), common))
	pull(t, s, r.host+"/twice:1")
	img := pull(t, s, r.host+"/over:1")
	if n := r.count(digestOf(t, common)); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	dirs, err := s.Layers(t.Context(), img.ID)
	check(t, err)
	if data, err := os.ReadFile(filepath.Join(dirs[0], "a/common")); err != nil || string(data) != "in many places" {
		t.Errorf("the copied layer has %q, %v", data, err)
	}
}

func TestPullOntoAFullDisk(t *testing.T) {
	f := newFaulty(t, 4<<20, func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) { f.whole(w, r) })
	w := newWorld(t, &fakeRegistry{host: f.host})
	s := w.open(t)
	var st unix.Statfs_t
	check(t, unix.Statfs(w.dir, &st))
	room := int64(st.Blocks-st.Bfree)*st.Bsize + 2<<20
	check(t, unix.Mount("", w.dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", room)))
	_, err := s.Pull(t.Context(), PullRequest{Ref: f.host + "/x:1"})
	if !errors.Is(err, errdef.Exhausted) {
		t.Errorf("got %v", err)
	}
	w.nothingLeft(t, s)
	if n, _ := f.requests(); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	check(t, unix.Mount("", w.dir, "", unix.MS_REMOUNT, "size=0"))
	pull(t, s, f.host+"/x:1")
}

func TestBandwidth(t *testing.T) {
	f := newFaulty(t, 1<<20, func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) { f.whole(w, r) })
	w := newWorld(t, &fakeRegistry{host: f.host})
	w.Pulls.Bandwidth = 1 << 20
	s := w.open(t)
	began := time.Now()
	pull(t, s, f.host+"/x:1")
	least := time.Second * (1<<20 - blobWindow) / (1 << 20) // the first window comes at once
	if took := time.Since(began); took < least*9/10 {
		t.Errorf("a megabyte took %v at a megabyte a second", took)
	}
}

// What a crid that died was unpacking is removed at the next start; what another tool is unpacking is not.
func TestStagesAreCleared(t *testing.T) {
	w := newWorld(t)
	check(t, w.open(t).Close())
	dir := filepath.Join(w.Root, "storage/overlay/staging")
	for _, name := range []string{"without", "stale", "busy"} {
		check(t, os.MkdirAll(filepath.Join(dir, name, "dir"), 0o700))
	}
	check(t, os.WriteFile(filepath.Join(dir, "stale/staging.lock"), nil, 0o600))
	busy, err := os.Create(filepath.Join(dir, "busy/staging.lock"))
	check(t, err)
	defer busy.Close()
	check(t, unix.FcntlFlock(busy.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	w.open(t)
	left, err := entryNames(dir)
	if err != nil || len(left) != 1 || left[0] != "busy" {
		t.Errorf("left are %v, %v", left, err)
	}
}
