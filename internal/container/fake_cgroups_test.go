package container

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

type fakeCgroups struct{ session }

func (f fakeCgroups) Pids(path string) ([]int, error) {
	return nil, f.do("cgroup pids", func() error { return nil })
}

func (f fakeCgroups) Kill(ctx context.Context, path string) error {
	var survivor *mainProcess
	err := f.do("cgroup kill", func() error {
		survivor = f.strike(path)
		return nil
	})
	if err == nil && survivor != nil {
		<-ctx.Done()
		return fmt.Errorf("process %d survives: %w", survivor.ref.PID, ctx.Err())
	}
	return err
}

func (f fakeCgroups) Remove(_ context.Context, path string) error {
	return f.do("cgroup remove", func() error {
		if f.strike(path) != nil {
			return errors.New("busy")
		}
		delete(f.cgroups, path)
		return nil
	})
}

func (f fakeCgroups) OOMKills(string) (uint64, error) {
	var n uint64
	err := f.do("cgroup oom kills", func() error {
		n = f.script.oomKills
		return f.script.noCount
	})
	return n, err
}

func (f fakeCgroups) Find(_ context.Context, id string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []string
	for _, name := range []string{"/crid-" + id, "/crid-mon-" + id} {
		for path := range f.cgroups {
			if strings.HasSuffix(path, name) {
				found = append(found, path)
			}
		}
	}
	return found, nil
}
