package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/crid/crid/internal/errdef"
)

const (
	lookEvery      = 30 * time.Second // at plugins, and for events that the kernel dropped
	lookFirst      = time.Second      // after a failure; doubled up to lookEvery
	lookMissing    = 5 * time.Second  // the most while a plugin is not installed: looking is cheap
	statusDeadline = 10 * time.Second // of one round of STATUS
)

// follower keeps the view of a CNI up to date. Its fields belong to the goroutine of run.
type follower struct {
	cni      *CNI
	watcher  *fsnotify.Watcher
	timer    *time.Timer // the next look without an event
	failures int         // looks in a row at which the network was not ready
	asking   *network    // whose plugins are asked for their STATUS; nil when nothing is in flight
	answers  chan error  // of that; holds one, so that the asker never waits
}

// Watch reads the configuration and goes on following it in the background until ctx ends. A directory that
// does not exist, or disappears, is waited for.
func (c *CNI) Watch(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		kind := errdef.Unavailable
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			kind = errdef.Exhausted
		}
		return fmt.Errorf("watch %s: %w (see the sysctl fs.inotify.max_user_instances): %w", c.cfg.ConfDir, err, kind)
	}
	f := &follower{cni: c, watcher: w, timer: time.NewTimer(lookEvery), answers: make(chan error, 1)}
	f.look(ctx)
	f.schedule()
	go f.run(ctx) // ends with ctx
	return nil
}

func (f *follower) run(ctx context.Context) {
	defer f.watcher.Close()
	defer f.timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-f.watcher.Events:
			if f.concerns(ev) {
				f.renew(ev)
				f.look(ctx)
				f.failures = 0
				f.schedule()
			}
		case <-f.watcher.Errors: // an overflow: events are lost
			f.look(ctx)
		case <-f.timer.C:
			f.look(ctx)
			f.schedule()
		case err := <-f.answers:
			f.answered(ctx, err)
			f.schedule()
		}
	}
}

// concerns leaves out what else happens in the directories above.
func (f *follower) concerns(ev fsnotify.Event) bool {
	dir := f.cni.cfg.ConfDir
	return ev.Name == dir || strings.HasPrefix(ev.Name, dir+"/") || strings.HasPrefix(dir, ev.Name+"/")
}

// renew lets go of a watched directory that went away, since another may come under its name.
func (f *follower) renew(ev fsnotify.Event) {
	if ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
		_ = f.watcher.Remove(ev.Name) // no error matters: it is watched no longer either way
	}
}

// look aims the watches, then reads the directory and publishes what it holds: in this order, for then a
// change is either read or announced.
func (f *follower) look(ctx context.Context) {
	problem := f.aim()
	old, v := f.cni.view.Load(), readView(f.cni.cfg)
	if problem != nil {
		v.problems = append(v.problems, problem.Error())
	}
	if v.net != nil && v.net.hasVerb11() {
		v.status = errUnasked
		if v.net.same(old.net) {
			v.status = old.status
		}
	}
	f.cni.view.Store(v)
	f.ask(ctx)
}

// ask asks the plugins of the current network for their STATUS, unless that is going on.
func (f *follower) ask(ctx context.Context) {
	v := f.cni.view.Load()
	if f.asking != nil || v.net == nil || v.missing != nil || !v.net.hasVerb11() {
		return
	}
	f.asking = v.net
	go func() { // ends with ctx or the deadline
		ctx, cancel := context.WithTimeout(ctx, statusDeadline)
		defer cancel()
		f.answers <- f.cni.ask(ctx, v.net)
	}()
}

// answered publishes an answer, if it is about the network of now.
func (f *follower) answered(ctx context.Context, err error) {
	about := f.asking
	f.asking = nil
	old := f.cni.view.Load()
	if !about.same(old.net) {
		f.ask(ctx)
		return
	}
	v := *old
	v.status = err
	f.cni.view.Store(&v)
}

// schedule sets the next look: soon after a failure, later after more of them.
func (f *follower) schedule() {
	v := f.cni.view.Load()
	if v.net == nil || v.missing == nil && v.status == nil {
		f.failures = 0
		f.timer.Reset(lookEvery)
		return
	}
	limit := lookEvery
	if v.missing != nil {
		limit = lookMissing
	}
	f.timer.Reset(min(lookFirst<<min(f.failures, 5), limit))
	f.failures++
}

// aim makes the watcher watch the configuration directory, what is in it and its parent, or the nearest
// parent that exists. It goes round again when the directories changed meanwhile.
func (f *follower) aim() error {
	for range 10 {
		want := targets(f.cni.cfg.ConfDir)
		for _, have := range f.watcher.WatchList() {
			if !slices.Contains(want, have) {
				_ = f.watcher.Remove(have) // it may be gone already
			}
		}
		for _, dir := range want {
			if err := f.watcher.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("watch %s, changes are seen every %s: %w", dir, lookEvery, err)
			}
		}
		if slices.Equal(want, targets(f.cni.cfg.ConfDir)) {
			return nil
		}
	}
	return nil // changes faster than it can be followed: there are more events to come
}

// targets are the directories whose events can change the answer for dir. Lists of CNI 1.1 may keep their
// plugins in a subdirectory.
func targets(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		for dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			if st, err := os.Stat(dir); err == nil && st.IsDir() {
				break
			}
		}
		return []string{dir}
	}
	want := []string{filepath.Dir(dir), dir}
	for _, e := range entries {
		if e.IsDir() {
			want = append(want, filepath.Join(dir, e.Name()))
		}
	}
	return want
}
