package container

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
)

func TestAPauseWithoutAReadableRecordIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		if _, err := m.StartPause(t.Context(), h.pod()); err != nil {
			t.Fatal(err)
		}
		m, _ = restart(t, h, m, func() {
			if err := os.WriteFile(filepath.Join(h.dir, "records", PauseID(testPod)+".json"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if _, started, dead := m.FindPause(testPod); !started || !dead {
			t.Errorf("started %t, dead %t", started, dead)
		}
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}

func TestOnePauseForAPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, m := start(t)
		dead := make(chan string, 1)
		m.OnPauseExit(func(podID string) { dead <- podID })
		paths := make([]string, 8)
		var wg sync.WaitGroup
		for i := range paths {
			wg.Go(func() {
				var err error
				if paths[i], err = m.StartPause(t.Context(), h.pod()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, p := range paths {
			if p == "" || p != paths[0] {
				t.Fatalf("paths %q", paths)
			}
		}
		if pidns, started, gone := m.FindPause(testPod); pidns != paths[0] || !started || gone {
			t.Errorf("found %q, %v, %v", pidns, started, gone)
		}
		if len(m.List()) != 0 || len(m.OfPod(testPod)) != 1 {
			t.Errorf("listed %d, in the pod %d", len(m.List()), len(m.OfPod(testPod)))
		}
		_, err := m.Get(testPod)
		wantKind(t, err, errdef.NotFound)

		h.mu.Lock()
		h.mains[PauseID(testPod)].end(monitor.Exit{Code: 137})
		h.mu.Unlock()
		if got := <-dead; got != testPod {
			t.Errorf("told of %q", got)
		}
		if _, started, gone := m.FindPause(testPod); !started || !gone {
			t.Error("a dead pause is not shown as dead")
		}
		_, err = m.StartPause(t.Context(), h.pod())
		wantKind(t, err, errdef.Exists)
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Fatal(err)
		}
		h.wantNothingLeft(m)
	})
}
