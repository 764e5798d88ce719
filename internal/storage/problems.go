package storage

import (
	"maps"
	"slices"
	"sync"
)

// problems are the sentences for Status verbose, one for each thing that is wrong.
type problems struct {
	mu  sync.Mutex // guards all; nothing is waited for under it
	all map[string]string
}

// set replaces what is said about the thing by err; nil means that it is well again.
func (p *problems) set(thing string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.all, thing)
		return
	}
	if p.all == nil {
		p.all = make(map[string]string)
	}
	p.all[thing] = err.Error()
}

func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, thing := range slices.Sorted(maps.Keys(p.all)) {
		out = append(out, p.all[thing])
	}
	return out
}
