package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// noteFile is where a monitor directory keeps what its StoppedLog last was, for the next crid: the directory is on a tmpfs,
// and goes with the container.
const noteFile = "log.stopped"

// notes are the StoppedLogs that an earlier crid has told of, by container.
func (l *Launcher) notes() map[string]*StoppedLog {
	found := map[string]*StoppedLog{}
	files, err := filepath.Glob(l.path("*", noteFile))
	if err != nil {
		return found // the pattern is a good one
	}
	for _, file := range files {
		var s StoppedLog
		raw, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(raw, &s) == nil && s.Container != "" {
			found[s.Container] = &s
		}
	}
	return found
}

// note keeps what is told of a container's log. It is fine when the container has gone meanwhile.
func (l *Launcher) note(s StoppedLog) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	file := l.path(s.Container, noteFile)
	err = os.WriteFile(file+".new", raw, 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// earlier is what an earlier crid has told of a container that has ended since; false once that is gone.
func (l *Launcher) earlier(s StoppedLog) (StoppedLog, bool) {
	if _, err := os.Stat(l.path(s.Container, noteFile)); err != nil {
		return s, false
	}
	if exit, ended := l.recorded(s.Container); ended && s.Until.IsZero() {
		s.Until = exit.At
	}
	return s, true
}

// lineLimit is more than conmon makes of a line.
const lineLimit = 64 << 10

// lastWritten is the stamp of the last line in the first size bytes of a log that has one; otherwise is the answer where
// none has. The time of the file would be that of a write which has failed.
func lastWritten(path string, size int64, otherwise time.Time) time.Time {
	f, err := os.Open(path)
	if err != nil {
		return otherwise
	}
	defer f.Close()
	from := max(0, size-lineLimit)
	text, err := io.ReadAll(io.NewSectionReader(f, from, size-from))
	if err != nil {
		return otherwise
	}
	for len(text) > 0 {
		text = bytes.TrimSuffix(text, []byte("\n"))
		start := bytes.LastIndexByte(text, '\n') + 1
		stamp, _, _ := bytes.Cut(text[start:], []byte(" "))
		if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
			return at
		}
		text = text[:start]
	}
	return otherwise
}
