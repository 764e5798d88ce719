package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/server"
)

// closeGrace is what the rooms have to end, lastWord of each aside, after the server had its own grace: ten seconds
// together. What hangs by then, a plugin or a disk, hangs longer.
const closeGrace = 1500 * time.Millisecond

// serve is the life of the daemon. It returns nil once it was told to end, by SIGTERM or SIGINT.
func serve(ctx context.Context, cfg config.Config) error {
	if os.Geteuid() != 0 {
		return errNotRoot
	}
	syscall.Umask(0o022)
	log, err := newLog(cfg, os.Stderr)
	if err != nil {
		return err
	}
	adopt(log)
	told, err := findManager(log)
	if err != nil {
		return err
	}
	ctx, unhook := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer unhook()
	context.AfterFunc(ctx, unhook) // a second signal ends crid at once
	return run(ctx, cfg, told)
}

// run holds the roots for as long as it works in them.
func run(ctx context.Context, cfg config.Config, told manager) (err error) {
	log := told.log
	held, err := lockToServe(ctx, places{cfg}, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	// Clients may connect from here on; they wait until what was there is known.
	l, err := listen(ctx, cfg.Socket, 0o660)
	if err != nil {
		return err
	}
	r, err := openRooms(ctx, cfg, log)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	r.load(ctx)
	streams, err := openStreams(ctx, r)
	if err != nil {
		return errors.Join(err, l.Close(), r.close(ctx))
	}
	s, err := newServer(r, streams)
	if err != nil {
		return errors.Join(err, l.Close(), r.close(ctx))
	}
	stopDebug, err := startDebug(ctx, r, s)
	if err != nil {
		return errors.Join(err, l.Close(), r.close(ctx))
	}
	stopMetrics := r.startMetrics(ctx, s.Active)
	go r.collect(ctx)                          // ends with ctx, at the latest
	go r.survey.monitors.WatchLogs(ctx, r.log) // ends with ctx, or hangs with a log's filesystem
	stopWatch, err := r.watch(ctx, told)
	if err != nil {
		return errors.Join(err, l.Close(), stopDebug(), stopMetrics(), r.close(ctx))
	}
	log.Info("crid serves", "version", versionString(), "socket", cfg.Socket, "pods", len(r.pods.List()), "containers", len(r.containers.List()))
	context.AfterFunc(ctx, func() {
		told.say(sayStopping)
		r.containers.Hurry() // the server waits for its calls, some of which may only wait
	})
	err = s.Serve(ctx, l)
	log.Info("crid ends; containers stay", "containers", len(r.containers.List()))
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
	defer cancel()
	return errors.Join(err, stopWatch(), stopDebug(), stopMetrics(), r.close(end))
}

// startDebug serves the debug socket, if there is to be one, until the function it returns is called.
func startDebug(ctx context.Context, r *rooms, s *server.Server) (stop func() error, err error) {
	if r.cfg.DebugSocket == "" {
		return func() error { return nil }, nil
	}
	l, err := listen(ctx, r.cfg.DebugSocket, 0o600)
	if err != nil {
		return nil, fmt.Errorf("debug socket: %w", err)
	}
	d := debugServer(func() (counts, error) { return r.count(s) })
	go serveDebug(d, l, func(err error) { r.log.Error("debug socket", "err", err) }) // ends by Close
	return d.Close, nil
}

// lockToServe takes the locks for a crid that serves. It waits for a check to end, and for what a crid that was killed has
// left to let go.
func lockToServe(ctx context.Context, p places, log *slog.Logger) (locks, error) {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for told := false; ; told = true {
		held, err := lockRoots(p, serving)
		var taken *lockedError
		switch {
		case !errors.As(err, &taken) || taken.as != checking && !taken.gone():
			return held, err
		case told:
		case taken.gone():
			log.Info("crid starts when a child of the one before has let go of its directories", "pid", taken.pid)
		default:
			log.Info("crid starts when the check of its directories has ended", "pid", taken.pid)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// watch tells the service manager that crid is ready, and from then on that it is alive.
func (r *rooms) watch(ctx context.Context, told manager) (stop func() error, err error) {
	ask, closing, err := answers(r.cfg.Socket)
	if err != nil {
		return nil, err
	}
	status := func() string {
		return fmt.Sprintf("%d pods, %d containers", len(r.pods.List()), len(r.containers.List()))
	}
	told.say(sayReady + "\n" + sayStatus + status())
	go told.watched(ctx, ask, status) // ends with ctx: what is stopping is not watched
	return closing, nil
}
