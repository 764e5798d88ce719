package monitor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// logRhythm is how often logs are looked at: one stat for each, 60 of them take a fifth of a millisecond, and one look for
// a reopening that was interrupted.
const logRhythm = 2 * time.Second

// fullBelow is the free space in bytes below which a filesystem may refuse a write: ext4 keeps up to 16 MiB to itself.
const fullBelow = 32 << 20

// StoppedLog tells of a container whose monitor could not write all of its output into the log, since that lies on a full
// filesystem. Conmon does not hold the container up but drops what it has read; the last line before may be cut off.
type StoppedLog struct {
	Container string    `json:"container"`
	Path      string    `json:"path"`
	Since     time.Time `json:"since"`           // the last that was written
	Until     time.Time `json:"until,omitzero"`  // it goes on, or the container ended; zero = output is still lost
	Before    int       `json:"before,omitzero"` // how often that had happened to it already
}

// logWatch finds logs that have stopped. The kernel notes the time of a write to a file before it looks for space: a log
// whose time has changed and whose size has not is one that a write to has failed.
type logWatch struct {
	launcher *Launcher
	log      *slog.Logger
	looks    map[*Process]look
	notes    map[string]*StoppedLog // of an earlier crid
}

// look is what a log was at the last look.
type look struct {
	path  string // empty = there is none
	inode uint64
	size  int64
	mtime time.Time
	stop  *StoppedLog // the last; a published one is never changed
}

// WatchLogs looks for logs that have stopped until ctx ends. It may hang with the filesystem of a log, and then nobody
// hears of others that stop. What an earlier crid has told is told on.
func (l *Launcher) WatchLogs(ctx context.Context, log *slog.Logger) {
	w := &logWatch{launcher: l, log: log, looks: map[*Process]look{}, notes: l.notes()}
	tick := time.NewTicker(logRhythm)
	defer tick.Stop()
	for {
		w.round()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// StoppedLogs returns what WatchLogs has found of containers that are still there, the longest ago first. It never waits.
func (l *Launcher) StoppedLogs() []StoppedLog {
	if all := l.stopped.Load(); all != nil {
		return *all
	}
	return nil
}

func (w *logWatch) round() {
	w.launcher.mu.Lock()
	procs := make([]*Process, 0, len(w.launcher.procs))
	for _, p := range w.launcher.procs {
		procs = append(procs, p)
	}
	w.launcher.mu.Unlock()
	now := make(map[*Process]look, len(procs))
	var stopped []StoppedLog
	for _, p := range procs {
		w.settle(p)
		l, known := w.looks[p]
		if !known {
			l = w.first(p)
		}
		if l.path != "" {
			l = w.look(p, l)
		}
		now[p] = l
		if l.stop != nil {
			stopped = append(stopped, *l.stop)
		}
	}
	w.looks = now
	for id, note := range w.notes { // those that no process has taken over
		told, there := w.launcher.earlier(*note)
		if !there {
			delete(w.notes, id)
			continue
		}
		stopped = append(stopped, told)
	}
	slices.SortFunc(stopped, func(a, b StoppedLog) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Container, b.Container))
	})
	w.launcher.stopped.Store(&stopped)
}

// first is what is known of a log before the first look at it.
func (w *logWatch) first(p *Process) look {
	var l look
	l.path, _ = p.logPath() // without one there is nothing to watch
	note := w.notes[p.id]
	if note == nil {
		return l
	}
	delete(w.notes, p.id)
	l.path, l.stop = note.Path, note
	var st unix.Stat_t
	if unix.Stat(l.path, &st) == nil { // what has grown while nobody looked may have stopped again
		l.inode, l.size, l.mtime = st.Ino, st.Size, time.Unix(st.Mtim.Unix())
	}
	return l
}

// settle ends a reopening whose client has had its time.
func (w *logWatch) settle(p *Process) {
	path := w.launcher.interrupted(p.id)
	if path == "" {
		return
	}
	select {
	case p.reopening <- struct{}{}:
		defer func() { <-p.reopening }()
	default:
		return // it goes on
	}
	note, err := os.Lstat(w.launcher.path(p.id, reopeningFile))
	if err != nil || time.Since(note.ModTime()) < answerTime {
		return
	}
	rotated, err := p.reconcile(path)
	switch {
	case err != nil:
		w.log.Warn("a container's log has two names, since its reopening was interrupted", "container", p.id, "path", path,
			"other", spareName(path), "err", err)
	case rotated != "":
		w.log.Warn("a container's log goes on in a new file, since its reopening was interrupted", "container", p.id, "path", path, "older", rotated)
	}
}

// look compares a log with what it was.
func (w *logWatch) look(p *Process, before look) look {
	now := before
	stopped := before.stop != nil && before.stop.Until.IsZero()
	if isDone(p) {
		if stopped {
			now.stop = w.resume(*before.stop, p.exit.At)
		}
		return now
	}
	var st unix.Stat_t
	if unix.Stat(before.path, &st) != nil {
		return now // it is being rotated, or was taken away
	}
	now.inode, now.size, now.mtime = st.Ino, st.Size, time.Unix(st.Mtim.Unix())
	switch {
	case stopped && (now.size != before.size || now.inode != before.inode || !isFull(before.path)):
		now.stop = w.resume(*before.stop, time.Now())
	case !stopped && before.inode == now.inode && before.size == now.size && !before.mtime.Equal(now.mtime) && isFull(before.path):
		now.stop = w.stop(p, before)
		if unix.Stat(before.path, &st) == nil {
			now.mtime = time.Unix(st.Mtim.Unix())
		}
	}
	return now
}

func isDone(p *Process) bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (w *logWatch) stop(p *Process, last look) *StoppedLog {
	if err := endLine(last.path, last.size); err != nil {
		w.log.Warn("the line that a full disk cut off runs into the next one", "container", p.id, "path", last.path, "err", err)
	}
	s := StoppedLog{Container: p.id, Path: last.path, Since: lastWritten(last.path, last.size, last.mtime)}
	if last.stop != nil {
		s.Before = last.stop.Before + 1
	}
	w.keep(s)
	w.log.Warn("a container's log has stopped: its filesystem is full, what the container writes is lost until there is space",
		"container", s.Container, "path", s.Path, "since", s.Since)
	return &s
}

func (w *logWatch) resume(s StoppedLog, until time.Time) *StoppedLog {
	s.Until = until
	w.keep(s)
	w.log.Warn("a container's log goes on: what it wrote meanwhile is lost",
		"container", s.Container, "path", s.Path, "since", s.Since, "until", s.Until)
	return &s
}

func (w *logWatch) keep(s StoppedLog) {
	if err := w.launcher.note(s); err != nil {
		w.log.Warn("a crid that starts will not tell of the log that stopped", "container", s.Container, "err", err)
	}
}

// endLine makes the last of the size bytes of a log the end of a line: conmon cuts a line off where the space ends, and
// writes the next one behind it. It takes no space, and what is appended meanwhile comes after.
func endLine(path string, size int64) error {
	if size == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	last := make([]byte, 1)
	_, err = f.ReadAt(last, size-1)
	if err == nil && last[0] != '\n' {
		_, err = f.WriteAt([]byte{'\n'}, size-1)
	}
	return errors.Join(err, f.Close())
}

// isFull tells whether the filesystem of a log can hardly take more.
func isFull(path string) bool {
	var st unix.Statfs_t
	if unix.Statfs(filepath.Dir(path), &st) != nil {
		return false
	}
	free := st.Bfree * uint64(st.Bsize)
	return st.Bavail == 0 || st.Files > 0 && st.Ffree == 0 || free < fullBelow && free < st.Blocks*uint64(st.Bsize)/16
}
