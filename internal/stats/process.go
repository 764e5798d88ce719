package stats

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	procDir = "/proc"
	// maxProcesses is of how many processes of one container the descriptors are looked at. Of a container with more
	// none are told.
	maxProcesses = 1024
	// maxDescriptors is how many descriptors of one container are looked at for sockets. Of a container with more no
	// sockets are told.
	maxDescriptors = 1 << 14
)

// tasks is what processes have open; nil is what is not told.
type tasks struct {
	processes            uint64
	descriptors, sockets *uint64
	openFiles            *uint64 // the main process's soft limit
}

// none is what no process has.
func none() tasks { return tasks{descriptors: new(uint64), sockets: new(uint64)} }

// and is what two sets of processes have together.
func (t tasks) and(o tasks) tasks {
	return tasks{processes: t.processes + o.processes, descriptors: sum(t.descriptors, o.descriptors), sockets: sum(t.sockets, o.sockets)}
}

func sum(a, b *uint64) *uint64 {
	if a == nil || b == nil {
		return nil
	}
	n := *a + *b
	return &n
}

// lookAt looks at the processes of one container, at a bounded cost. What ends meanwhile is left out.
func lookAt(proc string, pids []int, main int) (tasks, error) {
	t := tasks{processes: uint64(len(pids))}
	if slices.Contains(pids, main) {
		limit, err := openFiles(filepath.Join(proc, strconv.Itoa(main), "limits"))
		if err != nil && !ended(err) {
			return t, err
		}
		t.openFiles = limit
	}
	if len(pids) > maxProcesses {
		return t, nil
	}
	var descriptors, sockets uint64
	left := maxDescriptors
	for _, pid := range pids {
		open, those, err := descriptorsOf(filepath.Join(proc, strconv.Itoa(pid), "fd"), left)
		switch {
		case ended(err):
			continue
		case errors.Is(err, os.ErrPermission):
			return t, nil // crid may not look at the processes of others
		case err != nil:
			return t, err
		}
		descriptors += open
		sockets += those
		left -= int(min(open, maxDescriptors+1))
	}
	t.descriptors = &descriptors
	if left >= 0 {
		t.sockets = &sockets
	}
	return t, nil
}

// ended tells whether err says that a process is gone. A process outside of crid's PID namespace has no directory.
func ended(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// descriptorsOf counts the entries of a directory of descriptors, and if there are at most limit the sockets among them.
func descriptorsOf(path string, limit int) (open, sockets uint64, err error) {
	dir, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return 0, 0, err
	}
	if open = uint64(info.Size()); open > uint64(max(limit, 0)) { // Linux 6.2 tells how many there are
		return open, 0, nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil || len(names) > limit {
		return uint64(len(names)), 0, err
	}
	var target [len("socket:[")]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(dir.Fd()), name, target[:])
		if errors.Is(err, unix.ENOENT) {
			continue // closed meanwhile
		}
		if err != nil {
			return 0, 0, fmt.Errorf("read %s/%s: %w", path, name, err)
		}
		if string(target[:n]) == "socket:[" {
			sockets++
		}
	}
	return uint64(len(names)), sockets, nil
}

// openFiles reads the soft limit of open files from a file of limits; nil when there is none.
func openFiles(path string) (*uint64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(raw) {
		rest, found := strings.CutPrefix(string(line), "Max open files")
		words := strings.Fields(rest)
		if !found || len(words) == 0 || words[0] == "unlimited" {
			continue
		}
		n, err := strconv.ParseUint(words[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", path, err)
		}
		return &n, nil
	}
	return nil, nil
}
