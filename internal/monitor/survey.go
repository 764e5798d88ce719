package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Files returns what there is of monitors, whether they live or not: paths to the ids of their containers. Directories
// that are absent hold nothing.
func (l *Launcher) Files() (map[string]string, error) {
	found := map[string]string{}
	for _, dir := range []string{l.cfg.Dir, l.cfg.ExitDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list monitors: %w", err)
		}
		for _, e := range entries {
			id, _, _ := strings.Cut(e.Name(), ".") // an exit record that is being written is ID.SOMETHING
			found[filepath.Join(dir, e.Name())] = id
		}
	}
	return found, nil
}

// Running is the process of a monitor.
type Running struct {
	ID    string // of its container
	PID   int
	Start uint64 // field 22 of /proc/PID/stat: with it, the pid names the process for good
	Ours  bool   // its files are where this Launcher's are
}

// Running finds the monitors among all processes, those of other crids too. It reads every command line.
func (l *Launcher) Running() ([]Running, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Running
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := commandLine(pid)
		if err != nil {
			continue // gone meanwhile
		}
		r := Running{PID: pid}
		bundle := ""
		for _, arg := range args {
			if id, ok := strings.CutPrefix(arg, "--cid="); ok {
				r.ID = id
			}
			if dir, ok := strings.CutPrefix(arg, "--bundle="); ok {
				bundle = filepath.Clean(dir)
			}
		}
		s, err := readStat(pid)
		if r.ID == "" || bundle == "" || err != nil || s.zombie {
			continue
		}
		r.Start, r.Ours = s.start, bundle == filepath.Clean(l.path(r.ID, ""))
		found = append(found, r)
	}
	return found, nil
}

// End kills the process and waits until it is gone. One that is gone is fine.
func (l *Launcher) End(ctx context.Context, r Running) error {
	p, err := openPid(r.PID, startedAt(r.Start))
	if err == nil && p != nil {
		err = errors.Join(p.signal(syscall.SIGKILL), p.waitFor(ctx), p.close())
	}
	if err != nil {
		return fmt.Errorf("end monitor of container %s: %w", r.ID, err)
	}
	return nil
}

// HoldsDeleted tells whether the process has a file of this name open that is deleted. It is false where that
// cannot be told.
func HoldsDeleted(pid int, name string) bool {
	links, err := filepath.Glob(procFile(pid, "fd/*"))
	if err != nil {
		return false
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && filepath.Base(to) == name+" (deleted)" {
			return true
		}
	}
	return false
}
