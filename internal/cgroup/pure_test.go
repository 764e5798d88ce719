package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

var (
	hostV1     = fact.Host{Cgroup: fact.CgroupV1, Controllers: controllers}
	hostHybrid = fact.Host{Cgroup: fact.CgroupHybrid, Controllers: controllers}
	hostV2     = fact.Host{Cgroup: fact.CgroupV2, Controllers: []string{"cpu", "memory"}}
)

func TestChoose(t *testing.T) {
	const v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
		"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n" + // the same again
		"34 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"35 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n" +
		"36 31 0:32 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,xattr,name=elogind\n" +
		"37 31 0:33 / /var/chroot/pids rw - cgroup cgroup rw,pids\n" +
		"38 31 0:38 / /run/cilium/cgroupv2 rw - cgroup2 none rw\n"
	const unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	const v2 = "26 22 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	three := []hierarchy{
		{dir: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
		{dir: "/sys/fs/cgroup/memory", controllers: []string{"memory"}},
		{dir: "/sys/fs/cgroup/systemd"},
	}
	for _, c := range []struct {
		name, mounts string
		host         fact.Host
		want         []hierarchy
	}{
		{"v1", v1, hostV1, three},
		{"v1 does not look at v2", v1 + unified, hostV1, three},
		{"hybrid", v1 + unified, hostHybrid, append(three[:3:3], hierarchy{dir: "/sys/fs/cgroup/unified", unified: true})},
		{"v2", unified + v2 + v1, hostV2, []hierarchy{{dir: "/sys/fs/cgroup", unified: true, controllers: []string{"cpu", "memory"}}}},
		{"none", "", hostV1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(c.mounts), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, choose(mounts, c.host), cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLeafNames(t *testing.T) {
	for got, want := range map[string]string{
		Names{}.Leaf("/kubepods/podx", "a"):         "/kubepods/podx/crid-a",
		Names{}.Leaf("", "a"):                       "/crid-a",
		Names{}.Leaf("crid", "a"):                   "/crid/crid-a",
		Names{}.MonitorLeaf("/kubepods/podx/", "a"): "/kubepods/podx/crid-mon-a",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// fake returns a tree of one v2 hierarchy that is a plain directory, with the files of the cgroup /crid-a in it.
func fake(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	h := hierarchy{dir: t.TempDir(), controllers: []string{"cpu", "memory"}, unified: true}
	if err := os.Mkdir(h.dir+"/crid-a", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Tree{hierarchies: []hierarchy{h}}
}

func TestOOMKillsAsV2CountsThem(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		path  string
		want  uint64
		kind  error
	}{
		{"some", map[string]string{"crid-a/memory.events": "low 0\nhigh 1\nmax 7\noom 4\noom_kill 3\noom_group_kill 9\n"}, "/crid-a", 3, nil},
		{"no memory controller", nil, "/crid-a", 0, nil},
		{"no cgroup", nil, "/crid-b", 0, errdef.NotFound},
		{"does not count", map[string]string{"crid-a/memory.events": "low 0\nhigh 1\n"}, "/crid-a", 0, errdef.Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			if n, err := fake(t, c.files).OOMKills(c.path); n != c.want || !errors.Is(err, c.kind) {
				t.Errorf("got %d, %v", n, err)
			}
		})
	}
}

func TestCreateHandsControllersDown(t *testing.T) {
	for given, want := range map[string]string{
		"":           "+cpu +memory",
		"cpu io":     "+memory",
		"memory cpu": "memory cpu", // nothing to write
	} {
		tree := fake(t, map[string]string{"cgroup.subtree_control": given, "crid-a/cgroup.subtree_control": given})
		if err := tree.Create("/crid-a/b"); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"/", "/crid-a"} {
			got, err := os.ReadFile(filepath.Join(tree.hierarchies[0].dir, dir, "cgroup.subtree_control"))
			if err != nil || !strings.HasPrefix(string(got), want) {
				t.Errorf("%s with %q: %q, %v", dir, given, got, err)
			}
		}
	}
}

func TestWhatIsWithheldIsTold(t *testing.T) {
	tree := fake(t, map[string]string{"cgroup.subtree_control": "cpu memory"})
	if withheld, err := tree.Withheld(); err != nil || len(withheld) > 0 {
		t.Errorf("where all is given: %q, %v", withheld, err)
	}
	tree = fake(t, map[string]string{"cgroup.subtree_control": "cpu", "cgroup.type": "domain", "cgroup.procs": "1\n"})
	if withheld, err := tree.Withheld(); err != nil || !slices.Equal(withheld, []string{"memory"}) {
		t.Errorf("with processes in the root: %q, %v", withheld, err)
	}
	if got, err := os.ReadFile(filepath.Join(tree.hierarchies[0].dir, "cgroup.subtree_control")); err != nil || string(got) != "cpu" {
		t.Errorf("with processes in the root, it was asked for %q, %v", got, err)
	}
}

func TestPidsRefusesWhatIsNoPid(t *testing.T) {
	tree := fake(t, map[string]string{"crid-a/cgroup.procs": "12\nno\n"})
	if pids, err := tree.Pids("/crid-a"); err == nil {
		t.Errorf("got %v", pids)
	}
}
