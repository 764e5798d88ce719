package storage

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/crid/crid/internal/errdef"
)

// faulty is a registry of one image of one layer that plays a fault with it.
type faulty struct {
	*liar
	layer imgspec.Descriptor
	blob  []byte // the layer, as it should be
	play  func(f *faulty, w http.ResponseWriter, r *http.Request, n int)

	mu    sync.Mutex  // guards what follows
	asked []time.Time // for the layer
	other int         // for anything else
}

// newFaulty serves a layer of so many bytes that do not compress.
func newFaulty(t *testing.T, size int, play func(f *faulty, w http.ResponseWriter, r *http.Request, n int)) *faulty {
	t.Helper()
	l := &liar{manifests: map[string]answer{}, blobs: map[string]answer{}}
	f := &faulty{liar: l, play: play}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	l.host = strings.TrimPrefix(server.URL, "http://")
	random := rand.NewChaCha8([32]byte{1})
	content := make([]byte, size)
	_, err := random.Read(content)
	check(t, err)
	raw := packed(t, file("data", string(content)))
	f.blob = gzipped(t, raw)
	f.layer = l.blob(imgspec.MediaTypeImageLayerGzip, f.blob)
	l.tag(t, l.config(t, []digest.Digest{digest.FromBytes(raw)}, nil), f.layer)
	return f
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	isLayer := strings.HasSuffix(r.URL.Path, f.layer.Digest.String())
	if isLayer {
		f.asked = append(f.asked, time.Now())
	} else {
		f.other++
	}
	n, play := len(f.asked), f.play
	f.mu.Unlock()
	if isLayer {
		play(f, w, r, n)
		return
	}
	f.liar.ServeHTTP(w, r)
}

// requests are how many there were for the layer, and the shortest time between two.
func (f *faulty) requests() (n int, least time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	least = time.Hour
	for i := 1; i < len(f.asked); i++ {
		least = min(least, f.asked[i].Sub(f.asked[i-1]))
	}
	return len(f.asked), least
}

// send answers with the blob from where the request wants it, at most so many bytes; then the connection is cut.
func (f *faulty) send(w http.ResponseWriter, r *http.Request, ranges bool, most int) {
	from := 0
	if want := r.Header.Get("Range"); ranges && want != "" {
		_, _ = fmt.Sscanf(want, "bytes=%d-", &from) // the library's own form
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(f.blob)-1, len(f.blob)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	to := min(from+most, len(f.blob))
	_, _ = w.Write(f.blob[from:to]) // the client may have enough of it
	if to < len(f.blob) {
		if flush, ok := w.(http.Flusher); ok {
			flush.Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

func (f *faulty) whole(w http.ResponseWriter, r *http.Request) { f.send(w, r, true, len(f.blob)) }

func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	code := map[int]string{http.StatusUnauthorized: "UNAUTHORIZED", http.StatusTooManyRequests: "TOOMANYREQUESTS"}[status]
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"not now"}]}`, cmp.Or(code, "UNAVAILABLE"))
}

// registryFault is one way in which a registry fails, and what becomes of a pull.
type registryFault struct {
	what string
	size int // of the layer
	play func(f *faulty, w http.ResponseWriter, r *http.Request, n int)

	kind error    // of the pull's error; nil: it goes well
	says []string // the error
	most int      // requests for the layer
}

var registryFaults = []registryFault{
	{what: "cut at every megabyte", size: 3<<20 + 1000, most: 5,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) { f.send(w, r, true, 1<<20) }},
	{what: "cut once and no ranges", size: 2 << 20, most: 3,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, n int) {
			f.send(w, r, false, map[bool]int{true: 1 << 20, false: 4 << 20}[n == 1])
		}},
	{what: "cut always and no ranges", size: 2 << 20, most: 2 * blobTries, kind: errdef.RegistryUnavailable, says: []string{"after 5 tries"},
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) { f.send(w, r, false, 1<<20) }},
	{what: "an end without a length", size: 1 << 20, most: 2,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, n int) {
			if n > 1 {
				f.whole(w, r)
				return
			}
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			_, _ = conn.Write(append([]byte("HTTP/1.0 200 OK\r\n\r\n"), f.blob[:1000]...))
		}},
	{what: "another content", size: 1000, most: 1, kind: errdef.Invalid, says: []string{"does not have that digest"},
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) {
			other := bytes.Clone(f.blob)
			other[len(other)/2] ^= 1
			_, _ = w.Write(other)
		}},
	{what: "more than the manifest says", size: 1000, most: 1, kind: errdef.Invalid, says: []string{"has more than the"},
		play: func(f *faulty, w http.ResponseWriter, _ *http.Request, _ int) {
			_, _ = w.Write(append(bytes.Clone(f.blob), 0))
		}},
	{what: "less than the manifest says", size: 1000, most: blobTries, kind: errdef.RegistryUnavailable, says: []string{"the connection ended after"},
		play: func(f *faulty, w http.ResponseWriter, _ *http.Request, _ int) { _, _ = w.Write(f.blob[:len(f.blob)-1]) }},
	{what: "too many requests once", size: 1000, most: 2,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				refuse(w, http.StatusTooManyRequests)
				return
			}
			f.whole(w, r)
		}},
	{what: "unavailable twice", size: 1000, most: 3,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, n int) {
			if n <= 2 {
				refuse(w, http.StatusServiceUnavailable)
				return
			}
			f.whole(w, r)
		}},
	{what: "unavailable always", size: 1000, most: blobTries, kind: errdef.RegistryUnavailable, says: []string{"after 5 tries"},
		play: func(_ *faulty, w http.ResponseWriter, _ *http.Request, _ int) {
			refuse(w, http.StatusServiceUnavailable)
		}},
	{what: "a token that has expired", size: 1000, most: 2,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				refuse(w, http.StatusUnauthorized)
				return
			}
			f.whole(w, r)
		}},
	{what: "a layer that is denied", size: 1000, most: 2, says: []string{"the registry denies access"},
		play: func(_ *faulty, w http.ResponseWriter, _ *http.Request, _ int) { refuse(w, http.StatusUnauthorized) }},
	{what: "redirected", size: 1000, most: 3,
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) {
			if !strings.Contains(r.URL.RawQuery, "signed") {
				http.Redirect(w, r, r.URL.Path+"?signed", http.StatusTemporaryRedirect)
				return
			}
			f.whole(w, r)
		}},
	{what: "redirected in a circle", size: 1000, most: 12, says: []string{"stopped after 10 redirects"},
		play: func(_ *faulty, w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}},
	{what: "silence amid a layer", size: 1000, most: 1, kind: errdef.RegistryUnavailable, says: []string{"nothing came from 127.0.0.1", "for 2s"},
		play: func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)))
			_, _ = w.Write(f.blob[:100])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}},
	{what: "silence before a layer", size: 1000, most: 1, kind: errdef.RegistryUnavailable, says: []string{"nothing came from 127.0.0.1"},
		play: func(_ *faulty, _ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }},
	{what: "slow but not silent", size: 1000, most: 1,
		play: func(f *faulty, w http.ResponseWriter, _ *http.Request, _ int) {
			w.Header().Set("Content-Length", strconv.Itoa(len(f.blob)))
			for part := range len(f.blob)/300 + 1 {
				_, _ = w.Write(f.blob[part*300 : min(len(f.blob), part*300+300)])
				_ = http.NewResponseController(w).Flush()
				<-time.After(700 * time.Millisecond)
			}
		}},
}

// Whatever a registry does, a pull ends with the right image or with an error that says what is wrong, leaves nothing
// behind, and does not ask again and again.
func TestPullsUnderFaults(t *testing.T) {
	for _, c := range registryFaults {
		t.Run(c.what, func(t *testing.T) {
			f := newFaulty(t, c.size, c.play)
			w := newWorld(t, &fakeRegistry{host: f.host})
			w.Pulls.Patience = 2 * time.Second
			s := w.open(t)
			t.Parallel() // from here on: the store is opened by one at a time
			ref := f.host + "/x:1"
			img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if n, least := f.requests(); n > c.most || least < 900*time.Millisecond && !strings.HasPrefix(c.what, "redirected") {
				t.Errorf("%d requests for the layer, two of them within %v; want at most %d", n, least, c.most)
			}
			w.nothingLeft(t, s)
			if c.kind == nil && c.says == nil {
				check(t, err)
				dirs, err := s.Layers(t.Context(), img.ID)
				check(t, err)
				data, err := os.ReadFile(filepath.Join(dirs[0], "data"))
				if err != nil || len(data) != c.size {
					t.Errorf("the layer has %d bytes, %v", len(data), err)
				}
				return
			}
			if err == nil || c.kind != nil && !errors.Is(err, c.kind) || len(list(t, s)) > 0 {
				t.Fatalf("got %v, and %d images; want %v", err, len(list(t, s)), c.kind)
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
			f.mu.Lock()
			f.play = func(f *faulty, w http.ResponseWriter, r *http.Request, _ int) { f.whole(w, r) }
			f.mu.Unlock()
			pull(t, s, ref)
		})
	}
}

// A layer that cannot be unpacked is not the registry's fault.
func TestALayerThatCannotBeUnpacked(t *testing.T) {
	l := newLiar(t)
	w := newWorld(t, &fakeRegistry{host: l.host})
	s := w.open(t)
	_, err := s.Pull(t.Context(), PullRequest{Ref: l.imageOf(t, special(tar.TypeLink, "a", "nothing"))})
	if err == nil || errors.Is(err, errdef.RegistryUnavailable) || !strings.Contains(err.Error(), "unpack layer sha256:") {
		t.Errorf("got %v", err)
	}
	w.nothingLeft(t, s)
}

// nothingLeft looks for what a pull that has ended has left beside the layers.
func (w *world) nothingLeft(t *testing.T, s *Images) {
	t.Helper()
	s.pulls.wait()
	for _, dir := range []string{"crid-scratch", "overlay/staging", "overlay/tempdirs"} {
		left, err := filepath.Glob(filepath.Join(w.Root, "storage", dir, "*"))
		check(t, err)
		if len(left) > 0 {
			t.Errorf("the pull left %v", left)
		}
	}
	layers, err := s.store.Layers()
	check(t, err)
	stored, err := s.store.Images()
	check(t, err)
	if len(layers) > len(stored) {
		t.Errorf("the pull left %d layers of %d images", len(layers), len(stored))
	}
}
