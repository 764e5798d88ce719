package main

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fsck"
)

func TestNobodyIsThereToBeAsked(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "crid.sock")
	_, err := askFsck(t.Context(), socket, fsckRequest{})
	if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "--socket") {
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
