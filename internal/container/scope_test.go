package container

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/monitor"
)

const testSlice = "/kubepods.slice/kubepods-podx.slice"

// inSlice is a request for a container of a pod in a slice.
func inSlice(h *host, m *Manager) Request {
	m.deps.Options.Cgroups = cgroup.Names{Systemd: true}
	r := h.request("web")
	r.Pod.CgroupParent = testSlice
	return r
}

func TestAContainerInASliceIsAScope(t *testing.T) {
	h, m := start(t)
	c := mustCreate(t, m, inSlice(h, m))
	if got, want := c.Cgroup(), testSlice+"/crid-"+c.ID()+".scope"; got != want {
		t.Errorf("the cgroup is %s, want %s", got, want)
	}
	raw, err := os.ReadFile(filepath.Join(h.bundle(c.ID()), "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Linux.CgroupsPath, "kubepods-podx.slice:crid:"+c.ID(); got != want {
		t.Errorf("the runtime is told %s, want %s", got, want)
	}
	if value, there := s.Annotations["run.oci.systemd.subgroup"]; !there || value != "" {
		t.Errorf("crun is not told to leave its sub-cgroup out: %v", s.Annotations)
	}
	if !h.mains[c.ID()].systemd {
		t.Error("the runtime is not told to ask systemd")
	}
}

// systemd takes the cgroup away as soon as it is empty.
func TestWantOfMemoryInAScopeThatIsGone(t *testing.T) {
	for _, c := range []struct {
		name   string
		exit   monitor.Exit
		kills  uint64
		none   error // there is no count
		reason string
	}{
		{"the main process, by the note", monitor.Exit{Code: 137, OOM: true}, 0, errdef.NotFound, ReasonOOMKilled},
		{"a child, by the note", monitor.Exit{Code: 1, OOM: true}, 0, errdef.NotFound, ReasonOOMKilled},
		{"the main process, by the count", monitor.Exit{Code: 137}, 1, nil, ReasonOOMKilled},
		{"a child, by the count", monitor.Exit{Code: 1}, 1, nil, ReasonOOMKilled},
		{"nobody, though memory ran out", monitor.Exit{Code: 1, OOM: true}, 0, nil, ReasonError},
		{"somebody else", monitor.Exit{Code: 137}, 0, errdef.NotFound, ReasonError},
		{"a child of one that ended well", monitor.Exit{OOM: true}, 1, nil, ReasonCompleted},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, m := start(t)
			m.deps.Host.Cgroup = fact.CgroupV2
			h.script = script{endAtStart: &c.exit, oomKills: c.kills, noCount: c.none}
			web := mustStart(t, m, inSlice(h, m))
			<-web.exited
			if s := web.Status(); s.Reason != c.reason {
				t.Errorf("the reason is %s, want %s", s.Reason, c.reason)
			}
		})
	}
}
