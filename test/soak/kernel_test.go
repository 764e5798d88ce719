package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

var idPattern = regexp.MustCompile(`[0-9a-f]{64}`)

// view is what crid lists.
type view struct {
	ready  map[string]bool // pods with a network
	live   map[string]int  // containers that run or wait to be started, with their process
	listed map[string]bool // pods and containers
}

// compareWithKernel looks whether crid has all that its clients made and nothing else, and whether the kernel's
// processes, cgroups, namespaces and mounts, and the leases, are those of what crid says is there.
func (s *soak) compareWithKernel(all []*worker) {
	v := s.look()
	made := map[string]bool{}
	for _, w := range all {
		for _, p := range w.pods {
			made[p.ID] = true
			for _, c := range p.containers {
				made[c.id] = true
			}
		}
	}
	s.same("made by a client and listed by crid", made, v.listed)
	for id, pid := range v.live {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || !strings.Contains(string(raw), "crid-"+id) {
			s.t.Errorf("container %s is alive to crid, and process %d is not its: %v\n%s", id, pid, err, raw)
		}
	}
	s.same("in a cgroup with processes and alive to crid", s.busyCgroups(v), ids(v.live))
	s.same("pinned below /run/netns and ready to crid", s.names("/run/netns"), v.ready)
	s.same("mounted and alive to crid", s.rootfsMounts(), ids(v.live))
	s.checkMachine(s.c.Context())
}

// checkAgainAndAgain has crid look for what is orphaned or missing, amid everything, until ctx ends.
func (s *soak) checkAgainAndAgain(ctx context.Context) {
	for ctx.Err() == nil {
		s.checkMachine(context.WithoutCancel(ctx))
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
}

// checkMachine fails the test with what `crid fsck` finds. A crid that is killed amid it cannot answer, and what one has
// just left behind is not collected before the next one runs: then it is asked again.
func (s *soak) checkMachine(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, harness.Binary("crid"), "fsck", "--config", s.c.ConfigFile())
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		switch {
		case err == nil:
			s.count(func() { s.done["fsck"]++ })
			return
		case errors.As(err, &ended) && ctx.Err() == nil && (ended.ExitCode() == 2 || bytes.Contains(out, []byte("crid does not run"))):
			s.count(func() { s.again++ })
			continue
		}
		s.count(func() { s.done["fsck"]++; s.failed["fsck"]++ })
		s.t.Errorf("crid fsck: %v\n%s", err, out)
		return
	}
}

// look asks crid for everything.
func (s *soak) look() view {
	v := view{ready: map[string]bool{}, live: map[string]int{}, listed: map[string]bool{}}
	s.call("ListPodSandbox", func(ctx context.Context) error {
		got, err := s.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		for _, p := range got.GetItems() {
			v.listed[p.Id] = true
			if p.State == runtime.PodSandboxState_SANDBOX_READY {
				v.ready[p.Id] = true
			}
		}
		return err
	})
	s.call("ListContainers", func(ctx context.Context) error {
		got, err := s.runtime.ListContainers(ctx, &runtime.ListContainersRequest{})
		for _, c := range got.GetContainers() {
			v.listed[c.Id] = true
			if c.State == runtime.ContainerState_CONTAINER_RUNNING || c.State == runtime.ContainerState_CONTAINER_CREATED {
				v.live[c.Id] = s.c.ProcessOf(c.Id)
			}
		}
		return err
	})
	return v
}

// busyCgroups are the containers whose cgroup has a process; pauses and monitors are left out.
func (s *soak) busyCgroups(v view) map[string]bool {
	dirs, err := isolate.Cgroups(s.c.Cgroup)
	if err != nil {
		s.t.Fatal(err)
	}
	busy := map[string]bool{}
	for _, dir := range dirs {
		id, ours := strings.CutPrefix(filepath.Base(dir), "crid-")
		if !ours || !idPattern.MatchString(id) || strings.HasPrefix(id, "mon-") || !v.listed[id] && s.isPause(dir) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil && len(raw) > 0 {
			busy[id] = true
		}
	}
	return busy
}

// isPause tells whether the cgroup is that of a pod's pause, which crid does not list.
func (s *soak) isPause(dir string) bool {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return false
	}
	pid, _, _ := strings.Cut(string(raw), "\n")
	exe, err := os.Readlink("/proc/" + pid + "/exe")
	return err == nil && filepath.Base(exe) == "pause"
}

// rootfsMounts are the containers whose root filesystem is mounted.
func (s *soak) rootfsMounts() map[string]bool {
	dir := filepath.Join(s.c.RunRoot, "rootfs")
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string]bool{}
	for _, info := range infos {
		if id := idPattern.FindString(info.Mountpoint); info.Mountpoint == filepath.Join(dir, id, "root") {
			found[id] = true
		}
	}
	return found
}

// names are the ids in a directory's names.
func (s *soak) names(dir string) map[string]bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range entries {
		if id := idPattern.FindString(e.Name()); id != "" {
			found[id] = true
		}
	}
	return found
}

func ids(live map[string]int) map[string]bool {
	all := map[string]bool{}
	for id := range live {
		all[id] = true
	}
	return all
}

func (s *soak) same(what string, one, other map[string]bool) {
	for id := range one {
		if !other[id] {
			s.t.Errorf("%s: %s is only the former", what, id)
		}
	}
	for id := range other {
		if !one[id] {
			s.t.Errorf("%s: %s is only the latter", what, id)
		}
	}
}
