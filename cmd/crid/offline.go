package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fsck"
	"github.com/crid/crid/internal/host"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/storage"
)

// undoWait is how long repairing waits for pods and containers to be undone that a crid left half-made.
const undoWait = 5 * time.Minute

// checkOffline checks what a crid has left that does not run; the caller holds its locks. To repair, it opens the rooms
// as a start of crid does, which takes up what was there, repairs as a crid that runs does, and closes them again.
func checkOffline(ctx context.Context, p places, log *slog.Logger, ask fsckRequest) (fsckReport, error) {
	report := fsckReport{By: fmt.Sprintf("crid fsck, process %d: crid does not run", os.Getpid()), Repaired: ask.Repair}
	found, err := lookOffline(ctx, p, func(s *survey) ([]fsck.Finding, error) { return s.check(ctx, ask.Contents) })
	if len(found) == 0 || !ask.Repair {
		report.Findings = found
		return report.without(ctx, err)
	}
	done, failed := repairOffline(ctx, p, log, found)
	if failed != nil {
		return report, failed
	}
	left, again := lookOffline(ctx, p, func(s *survey) ([]fsck.Finding, error) { return s.look(ctx, ask.Contents) })
	report.Findings = done.settle(found, left)
	return report.without(ctx, cmp.Or(again, err))
}

// lookOffline lists by the records and by the machine, and changes neither.
func lookOffline(ctx context.Context, p places, look func(*survey) ([]fsck.Finding, error)) (found []fsck.Finding, err error) {
	s := &survey{
		places: p, pins: p.pinner(), network: network.New(p.network()), records: p.viewRecords(),
		monitors: monitor.New(monitor.Config{Dir: p.monitors(), ExitDir: p.exits()}, nil),
		files:    sandbox.NewFiles(sandbox.FilesConfig{Dir: p.podFiles()}),
		idle:     func() bool { return true },
	}
	s.known = s.records.onDisk
	if s.host, err = host.Probe(); err != nil {
		return nil, err
	}
	tree, err := cgroup.Open(s.host)
	if err != nil {
		return nil, err
	}
	chosen, manager, err := chooseDriver(p.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, manager.Close()) }()
	s.cgroups, s.parent = cgroup.NewDriver(tree, unitsOf(manager)), chosen.parent
	s.images, err = storage.ViewImages(p.images())
	if err != nil && !errors.Is(err, errdef.NotFound) {
		return nil, err
	}
	if err == nil {
		defer func() { err = errors.Join(err, s.images.Close()) }()
	}
	return look(s)
}

func repairOffline(ctx context.Context, p places, log *slog.Logger, found []fsck.Finding) (repairs, error) {
	r, err := openRooms(ctx, p.Config, log)
	if err != nil {
		return repairs{}, err
	}
	failed := append(r.containers.Load(ctx), r.pods.Load(ctx)...)
	done := r.mend(ctx, found)
	done.failed = append(done.failed, failed...)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWait)
	defer cancel()
	return done, r.close(end)
}

// needRoot refuses a root directory that is not there: it would be made to be locked.
func needRoot(p places) error {
	if _, err := os.Stat(p.Root); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no crid has ever had %s: name its directories with --config, or --root and --runroot", p.Root)
	} else if err != nil {
		return err
	}
	return nil
}
