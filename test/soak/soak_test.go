// Package soak lives with a crid for minutes, as a busy node does: pods and containers come and go at random, commands
// run in them, logs are rotated, limits changed, images pulled and removed, while crid is killed again and again. What
// clients were told must stay true all the time; at the end crid's view must be the kernel's, and nothing may be left.
package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

var (
	enabled   = flag.Bool("soak", false, "soak: it takes the minutes that -minutes says")
	minutes   = flag.Float64("minutes", 10, "how long pods come and go")
	killEvery = flag.Duration("kill-every", 30*time.Second, "how often crid is killed")
	endEvery  = flag.Duration("end-every", 110*time.Second, "how often crid is asked to end, besides")
	workers   = flag.Int("workers", 6, "how many clients work at once")
	seed      = flag.Uint64("seed", 0, "of the random choices; 0 = a new one, which is told")
	handler   = flag.String("handler", "", "runtime handler to make the default")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !*enabled {
		fmt.Println("the soak is left out: run it with `make soak`")
		return
	}
	harness.Main(m)
}

func TestSoak(t *testing.T) {
	s := newSoak(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(*minutes*float64(time.Minute)))
	defer cancel()
	var wg sync.WaitGroup
	all := make([]*worker, *workers)
	for i := range all {
		all[i] = &worker{soak: s, rand: rand.New(rand.NewPCG(s.seed, uint64(i)))}
		wg.Go(func() { all[i].live(ctx) }) // ends with ctx
	}
	wg.Go(func() { s.churnImages(ctx) })        // ends with ctx
	wg.Go(func() { s.checkAgainAndAgain(ctx) }) // ends with ctx
	s.killAgainAndAgain(ctx)
	wg.Wait()
	for _, w := range all {
		w.checkAll()
	}
	s.compareWithKernel(all)
	s.report()
}

// callLimit bounds one call, crid's absence included.
const callLimit = 2 * time.Minute

// soak is what all workers share.
type soak struct {
	t       *testing.T
	c       *harness.Crid
	seed    uint64
	runtime runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient

	mu     sync.Mutex // guards the counts
	done   map[string]int
	failed map[string]int
	again  int // calls that were repeated because crid was killed amid them
	kills  int
	ends   int
	peak   int64 // of crid's resident memory, KiB
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, seed: *seed, done: map[string]int{}, failed: map[string]int{}}
	if s.seed == 0 {
		s.seed = rand.Uint64()
	}
	t.Logf("seed %d", s.seed)
	s.c = harness.Start(t, harness.Quiet(), harness.Runtime(*handler))
	s.c.Pull(images.Busybox)
	conn, err := grpc.NewClient("unix://"+s.c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	s.runtime, s.images = runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	return s
}

// call does something until crid has answered, and counts it. A crid that dies amid a call, or is about to end, makes
// it Unavailable, after which a client asks again; any other error fails the test, unless fine knows it. It tells
// whether there was none.
func (s *soak) call(name string, do func(ctx context.Context) error, fine ...codes.Code) bool {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	var err error
	for repeated := false; ; repeated = true {
		err = do(ctx)
		code := status.Code(err)
		if code == codes.Unavailable && ctx.Err() == nil {
			s.count(func() { s.again++ })
			continue
		}
		if repeated && slices.Contains(fine, code) {
			err = nil
		}
		break
	}
	s.count(func() {
		s.done[name]++
		if err != nil {
			s.failed[name]++
		}
	})
	if err != nil {
		s.t.Errorf("%s: %v", name, err)
	}
	return err == nil
}

func (s *soak) count(edit func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit()
}

// killAgainAndAgain kills crid, and now and then asks it to end, until ctx ends, and starts it again each time.
func (s *soak) killAgainAndAgain(ctx context.Context) {
	kill, ask := time.NewTicker(*killEvery), time.NewTicker(*endEvery)
	defer kill.Stop()
	defer ask.Stop()
	for {
		var end func() error
		var counter *int
		select {
		case <-ctx.Done():
			return
		case <-kill.C:
			end, counter = s.c.Kill, &s.kills
		case <-ask.C:
			end, counter = s.c.Node.Stop, &s.ends
		}
		s.weigh()
		if err := end(); err != nil {
			s.t.Error("end crid:", err)
		}
		if err := s.c.Again(context.WithoutCancel(ctx)); err != nil {
			s.t.Fatal("start crid again:", err)
		}
		s.count(func() { *counter++ })
	}
}

// weigh notes the memory that crid has in use.
func (s *soak) weigh() {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.c.PID()))
	if err != nil {
		s.t.Error("weigh crid:", err)
		return
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			s.count(func() { s.peak = max(s.peak, kib) })
		}
	}
}

// churnImages pulls and removes images that no container uses.
func (s *soak) churnImages(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		spec := &runtime.ImageSpec{Image: harness.Ref([]string{images.Volume, images.Files, images.User}[i%3])}
		s.call("PullImage", func(ctx context.Context) error {
			_, err := s.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec})
			return err
		})
		s.call("ImageStatus", func(ctx context.Context) error {
			got, err := s.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec})
			if err == nil && got.Image == nil {
				return errors.New("a pulled image is not there")
			}
			return err
		})
		s.call("RemoveImage", func(ctx context.Context) error {
			_, err := s.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: spec})
			return err
		})
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond): // a node pulls less than this
		}
	}
}

func (s *soak) report() {
	s.weigh()
	var lines []string
	total, failures := 0, 0
	for name, n := range s.done {
		lines = append(lines, fmt.Sprintf("  %-24s %6d, failed %d", name, n, s.failed[name]))
		total, failures = total+n, failures+s.failed[name]
	}
	slices.Sort(lines)
	s.t.Logf("%d operations, %d failures, %d repeated; crid killed %d times, asked to end %d times; its memory at most %d MiB\n%s",
		total, failures, s.again, s.kills, s.ends, s.peak>>10, strings.Join(lines, "\n"))
}
