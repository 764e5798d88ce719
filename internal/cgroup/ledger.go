package cgroup

import (
	"fmt"
	"path/filepath"
	"sync"
)

// ledger tells the OOM kills in scopes that are gone: systemd removes them as soon as they are empty. On v2 a cgroup counts
// for all that is or was below it, so that what the count of a slice exceeds those of its children by was in children
// that are gone.
type ledger struct {
	mu   sync.Mutex
	told map[string]uint64 // by slice: of those kills, how many have had their container
}

// open begins to count for a slice, unless that has begun.
func (l *ledger) open(t *Tree, slice string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, begun := l.told[slice]; begun {
		return
	}
	gone, err := t.goneKills(slice)
	if err != nil {
		gone = 0 // there is no such slice yet
	}
	if l.told == nil {
		l.told = map[string]uint64{}
	}
	l.told[slice] = gone
}

// take returns the kills in a scope that is gone, those that nobody has had yet, if it was counted for its slice by then.
func (l *ledger) take(t *Tree, slice string) (kills uint64, counted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	told, begun := l.told[slice]
	gone, err := t.goneKills(slice)
	if !begun || err != nil {
		return 0, false
	}
	l.told[slice] = max(told, gone)
	return less(gone, told), true
}

// had notes kills that a scope had which is still there, and will not be.
func (l *ledger) had(slice string, kills uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, begun := l.told[slice]; begun {
		l.told[slice] += kills
	}
}

// close forgets a slice that is gone.
func (l *ledger) close(t *Tree, slice string) {
	if there, err := t.Exists(slice); err != nil || there {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.told, slice)
}

// goneKills is how many kills were in children of the cgroup at path that are gone.
func (t *Tree) goneKills(path string) (uint64, error) {
	h, ok := t.with("memory")
	if !ok || !h.unified {
		return 0, fmt.Errorf("only v2 counts for what is gone")
	}
	dir := filepath.Join(h.dir, path)
	// The children first: a kill in between counts as that of one who is gone, rather than be missed.
	names, err := children(dir)
	if err != nil {
		return 0, err
	}
	var there uint64
	for _, name := range names {
		kills, err := counter(filepath.Join(dir, name, "memory.events"), "oom_kill")
		if err != nil && !gone(err) {
			return 0, err
		}
		there += kills
	}
	all, err := counter(filepath.Join(dir, "memory.events"), "oom_kill")
	return less(all, there), err
}
