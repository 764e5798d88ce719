package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fsck"
)

// serveAdmin answers on a socket as check does.
func serveAdmin(t *testing.T, check func(context.Context, fsckRequest) (fsckReport, error)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: adminHandler(check)}
	go serveDebug(s, l, func(err error) { t.Error(err) }) // ends by Close
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestAskAdmin(t *testing.T) {
	socket := serveAdmin(t, func(_ context.Context, ask fsckRequest) (fsckReport, error) {
		if ask.Contents {
			return fsckReport{}, errors.New("the disk is on fire")
		}
		return fsckReport{By: "me", Repaired: ask.Repair, Findings: []fsck.Finding{{
			Problem: fsck.Orphaned, Thing: fsck.Thing{Kind: fsck.Rootfs, Name: "/r/1", Of: fsck.Ref{Kind: fsck.Container, ID: "1"}},
			Size: &fsck.Size{Bytes: 4096, Inodes: 2},
		}}}, nil
	})
	got, err := askAdmin(t.Context(), socket, fsckRequest{Repair: true})
	if err != nil || got.By != "me" || !got.Repaired || len(got.Findings) != 1 || got.Findings[0].Name != "/r/1" || got.Findings[0].Size.Inodes != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := askAdmin(t.Context(), socket, fsckRequest{Contents: true}); err == nil || !strings.Contains(err.Error(), "on fire") || errors.Is(err, errdef.Unavailable) {
		t.Errorf("a check that fails: %v", err)
	}
	if _, err := askAdmin(t.Context(), socket+"x", fsckRequest{}); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestReportAsTable(t *testing.T) {
	report := fsckReport{By: "me", Findings: []fsck.Finding{{
		Problem: fsck.Orphaned, Thing: fsck.Thing{Kind: fsck.Rootfs, Name: "/r/1\x1b[2J", Of: fsck.Ref{Kind: fsck.Container, ID: strings.Repeat("a", 64)}},
		Owner: fsck.Description{Name: "web/app\n", Namespace: "shop"}, Size: &fsck.Size{Bytes: 3 << 20, Inodes: 7},
	}}}
	var out strings.Builder
	if err := report.write(&out, "table"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for _, want := range []string{"orphaned", "rootfs", "3 MiB in 7", "container aaaaaaaaaaaaa shop/web/app?", "/r/1?[2J"} {
		if len(lines) != 3 || !strings.Contains(lines[1], want) {
			t.Errorf("%q is not said in\n%s", want, out.String())
		}
	}
	out.Reset()
	if err := (fsckReport{By: "me"}).write(&out, "json"); err != nil || !strings.Contains(out.String(), `"findings": []`) {
		t.Errorf("nothing as JSON: %s, %v", out.String(), err)
	}
}

func TestASecondProcessLearnsWhatTheLockIsFor(t *testing.T) {
	base := t.TempDir()
	p := places{config.Config{Root: filepath.Join(base, "root"), Runroot: filepath.Join(base, "run")}}
	for _, as := range []role{checking, serving} {
		held, err := lockRoots(p, as)
		if err != nil {
			t.Fatal(err)
		}
		_, err = lockRoots(p, serving)
		var taken *lockedError
		if !errors.As(err, &taken) || taken.as != as || taken.pid == "" {
			t.Errorf("taken as %q: %v", as, err)
		}
		if err := held.Close(); err != nil {
			t.Error(err)
		}
	}
	// One that cannot have both has none.
	file, err := lock(p.Runroot, checking)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRoots(p, serving); err == nil {
		t.Error("both were locked")
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	held, err := lockRoots(p, serving)
	if err != nil {
		t.Fatal("something is still locked:", err)
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
}

func TestACridThatStartsWaitsForACheck(t *testing.T) {
	base := t.TempDir()
	p := places{config.Config{Root: filepath.Join(base, "root"), Runroot: filepath.Join(base, "run")}}
	checks, err := lockRoots(p, checking)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	got := make(chan error, 1)
	go func() { // ends when it has the locks
		held, err := lockToServe(t.Context(), p, slog.New(slog.NewTextHandler(&log, nil)))
		got <- errors.Join(err, held.Close())
	}()
	select {
	case err := <-got:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := checks.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil || strings.Count(log.String(), "check of its directories") != 1 {
		t.Errorf("it ended with %v and said\n%s", err, log.String())
	}
}
