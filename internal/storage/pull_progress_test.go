package storage

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// watched remembers what a pull tells of its progress.
type watched struct {
	mu  sync.Mutex // guards all
	all [][]LayerProgress
}

func (w *watched) tell(now []LayerProgress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, slices.Clone(now))
}

func (w *watched) last() []LayerProgress {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) == 0 {
		return nil
	}
	return w.all[len(w.all)-1]
}

func TestPullTellsItsProgress(t *testing.T) {
	r := newRegistry(t)
	s := newWorld(t, r).open(t)
	base, top := layer(t, false, "base", "told of"), layer(t, false, "top", "told of, too")
	r.push(t, "a:1", picture(t, "a", base, top))
	ref := r.host + "/a:1"
	open := make(chan struct{})
	held := digestOf(t, top)
	r.set(func(r *fakeRegistry) {
		r.hold = func(_ http.ResponseWriter, req *http.Request) bool {
			if strings.HasSuffix(req.URL.Path, held) {
				<-open
			}
			return false
		}
	})
	var first, second watched // who began the pull, and who joined it
	var both sync.WaitGroup
	for _, w := range []*watched{&first, &second} {
		both.Go(func() {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Progress: w.tell}); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
		waitFor(t, func() bool { // the lower layer has come, the upper one has not
			last := w.last()
			return len(last) == 2 && last[0].Done == last[0].Total && last[0].Done > 0 && last[1].Done == 0
		})
	}
	close(open)
	both.Wait()
	want := progressOf(t, LayerStored, base, top)
	for i, w := range []*watched{&first, &second} {
		if got := w.last(); !slices.Equal(got, want) {
			t.Errorf("watcher %d was told at the end %+v, want %+v", i, got, want)
		}
	}

	var again watched
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Progress: again.tell}); err != nil {
		t.Fatal(err)
	}
	want = progressOf(t, LayerReused, base, top)
	if got := again.last(); len(again.all) != 1 || !slices.Equal(got, want) {
		t.Errorf("a pull of what is stored told %+v, want %+v", again.all, want)
	}
}

// progressOf is what a pull tells of layers that are in the store.
func progressOf(t *testing.T, state LayerState, layers ...v1.Layer) []LayerProgress {
	t.Helper()
	var out []LayerProgress
	for _, l := range layers {
		size, err := l.Size()
		check(t, err)
		p := LayerProgress{Digest: digest.NewDigestFromEncoded(digest.SHA256, digestOf(t, l)), Total: size, State: state}
		if state == LayerStored {
			p.Done = size
		}
		out = append(out, p)
	}
	return out
}

func digestOf(t *testing.T, l v1.Layer) string {
	t.Helper()
	h, err := l.Digest()
	check(t, err)
	return h.Hex
}
