package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

const (
	sharesFile = "cpu.shares"
	quotaFile  = "cpu.cfs_quota_us"
	memoryFile = "memory.limit_in_bytes"
)

// Update remembers what it has succeeded with and writes that again with everything else that it is told later, as
// runc from 1.2 on does. It writes shares before it looks at the quota, and thus may leave half of it.
func (f fakeRuntime) Update(_ context.Context, id string, res *specs.LinuxResources) error {
	return f.do("runtime update", func() error {
		told := maps.Clone(f.mains[id].told)
		if told == nil {
			told = cgroup.Limits{}
		}
		if res.Memory != nil {
			told[memoryFile] = fmt.Sprint(*res.Memory.Limit)
		}
		if res.CPU != nil && res.CPU.Shares != nil {
			told[sharesFile] = fmt.Sprint(*res.CPU.Shares)
		}
		maps.Copy(f.files(), told)
		if res.CPU != nil && res.CPU.Quota != nil {
			if *res.CPU.Quota < 0 || *res.CPU.Quota > 1<<40 { // so does crun 1.8 on cgroup v1
				return errors.New("writing file `cpu.cfs_quota_us`: Numerical result out of range")
			}
			f.files()[quotaFile] = fmt.Sprint(*res.CPU.Quota)
		}
		f.mains[id].told = told
		return nil
	})
}

// files is what every cgroup has. The caller holds mu.
func (h *host) files() cgroup.Limits {
	if h.script.limits == nil {
		h.script.limits = cgroup.Limits{sharesFile: "1024", quotaFile: "-1", memoryFile: "unlimited"}
	}
	return h.script.limits
}

type fakeLimits struct{ session }

func (f fakeLimits) Limits(string, ...string) (cgroup.Limits, error) {
	var found cgroup.Limits
	err := f.do("limits read", func() error {
		found = maps.Clone(f.files())
		return nil
	})
	return found, err
}

func (f fakeLimits) SetLimits(_ string, limits cgroup.Limits) error {
	return f.do("limits write", func() error {
		for file := range limits {
			if _, there := f.files()[file]; !there {
				return fmt.Errorf("%s: %w", file, errdef.NotFound)
			}
		}
		maps.Copy(f.files(), limits)
		return nil
	})
}

func (f fakeLimits) MemoryInUse(string) (uint64, error) {
	var n uint64
	err := f.do("memory in use", func() error {
		n = f.script.inUse
		return nil
	})
	return n, err
}

func (f fakeLimits) Places() (cpus, mems string, err error) {
	return "0-3", "0", f.do("places", func() error { return nil })
}

func (h *host) file(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.files()[name]
}

// wantShares wants the cgroup to have the shares that the status tells, unless the undoing is still due.
func (h *host) wantShares(c *Container) {
	h.t.Helper()
	told, got := fmt.Sprint(c.Status().Resources.GetCpuShares()), h.file(sharesFile)
	if told == "0" {
		told = "1024"
	}
	if told != got && c.Status().undo == nil {
		h.t.Errorf("the status tells of %s shares, the cgroup has %s", told, got)
	}
}

func TestUpdateChangesWhatIsSaidAndNothingElse(t *testing.T) {
	h, m := start(t)
	r := h.request("web")
	r.Config.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512, OomScoreAdj: 7}
	c := mustCreate(t, m, r)
	for _, change := range []*runtime.LinuxContainerResources{
		{MemoryLimitInBytes: 1 << 20, OomScoreAdj: 9},
		{CpuQuota: 5000, CpuPeriod: 100000},
		{MemoryLimitInBytes: 2 << 20},
	} {
		if err := c.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuQuota: -1, CpuShares: 600}); err != nil {
		t.Fatal(err)
	}
	if h.file(sharesFile) != "600" || h.file(quotaFile) != "-1" || h.file(memoryFile) != "2097152" {
		t.Errorf("in force: %v", h.files())
	}
	want := func(c *Container) {
		t.Helper()
		got := c.Status().Resources
		if got.CpuShares != 600 || got.CpuQuota != -1 || got.CpuPeriod != 100000 || got.MemoryLimitInBytes != 2<<20 ||
			got.MemorySwapLimitInBytes != 2<<20 || got.OomScoreAdj != 7 {
			t.Errorf("told: %v", got)
		}
	}
	want(c)
	again, errs := restart(t, h, m, func() {})
	if len(errs) > 0 {
		t.Error(errs)
	}
	want(loaded(t, again, c))
}

func TestAnUpdateThatFailsChangesNothing(t *testing.T) {
	h, m := start(t)
	c := mustStart(t, m, h.request("web"))
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 5, CpuQuota: 1 << 41, CpuPeriod: 100000}); err == nil {
		t.Error("a quota that the kernel does not take was taken")
	}
	h.script.inUse = 2 << 20
	for _, u := range []struct {
		name   string
		change *runtime.LinuxContainerResources
		kind   error
	}{
		{"memory in use", &runtime.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}, errdef.WrongState},
		{"swap below memory", &runtime.LinuxContainerResources{MemoryLimitInBytes: 4 << 20, MemorySwapLimitInBytes: 3 << 20}, errdef.Invalid},
		{"a file of cgroup v2", &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}, errdef.Invalid},
		{"a CPU that is not there", &runtime.LinuxContainerResources{CpuShares: 5, CpusetCpus: "0-4"}, errdef.Invalid},
		{"a quota that no kernel takes", &runtime.LinuxContainerResources{CpuShares: 5, CpuQuota: 1 << 44}, errdef.Invalid},
		{"a negative period", &runtime.LinuxContainerResources{CpuPeriod: -5}, errdef.Invalid},
	} {
		if err := c.Update(t.Context(), u.change); !errors.Is(err, u.kind) {
			t.Errorf("%s: %v", u.name, err)
		}
	}
	if h.file(sharesFile) != "1024" || h.file(memoryFile) != "unlimited" || c.Status().Resources != nil || c.Status().undo != nil {
		t.Errorf("in force: %v; told: %v", h.files(), c.Status().Resources)
	}
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantKind(t, c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 5}), errdef.WrongState)
}

func TestAnUpdateThatCridDidNotSurviveIsUndone(t *testing.T) {
	h, m := start(t)
	c := mustStart(t, m, h.request("web"))
	err := c.noteUpdate(func(s *Status) { s.undo = cgroup.Limits{sharesFile: "77"} })
	if err != nil {
		t.Fatal(err)
	}
	again, errs := restart(t, h, m, func() {})
	if len(errs) > 0 || h.file(sharesFile) != "77" || loaded(t, again, c).Status().undo != nil {
		t.Errorf("%v, in force: %v", errs, h.files())
	}
}

// A file that is gone is no sign that the container has ended.
func TestAnUpdateThatCannotBeUndoneStaysDue(t *testing.T) {
	h, m := start(t)
	c := mustStart(t, m, h.request("web"))
	undo := cgroup.Limits{sharesFile: "77", "hugetlb.2MB.limit_in_bytes": "0"}
	if err := c.noteUpdate(func(s *Status) { s.undo = undo }); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 5}); err == nil || !strings.Contains(err.Error(), "bring back the limits") {
		t.Errorf("got %v", err)
	}
	if !maps.Equal(c.Status().undo, undo) || h.file(sharesFile) != "1024" {
		t.Errorf("to be brought back: %v; in force: %v", c.Status().undo, h.files())
	}
	h.files()["hugetlb.2MB.limit_in_bytes"] = "5"
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuQuota: 5000}); err != nil || h.file(sharesFile) != "77" {
		t.Errorf("%v, in force: %v", err, h.files())
	}
}

// A runtime that remembers an update that crid has undone must not bring it back with the next one.
func TestAnUndoneUpdateStaysUndone(t *testing.T) {
	h, m := start(t)
	r := h.request("web")
	r.Config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 4 << 20}
	c := mustStart(t, m, r)
	limits := func(limit int64, shares int64) {
		t.Helper()
		if err := c.Update(t.Context(), &runtime.LinuxContainerResources{MemoryLimitInBytes: limit, CpuShares: shares}); err != nil {
			t.Fatal(err)
		}
	}
	limits(4<<20, 1024)
	puts := 0
	h.wrong = func(_ int, call string) verdict {
		if call == "record put running" {
			puts++
		}
		if puts == 2 { // the record of the success
			puts++
			return failBefore
		}
		return right
	}
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 << 20, CpuShares: 5}); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	for _, change := range []*runtime.LinuxContainerResources{{CpuQuota: 5000}, {CpusetCpus: "0"}, {MemoryLimitInBytes: 4 << 20}} {
		if err := c.Update(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if h.file(memoryFile) != fmt.Sprint(4<<20) || h.file(sharesFile) != "1024" {
			t.Errorf("after %v in force: %v", change, h.files())
		}
	}
}

// runc's update knows nothing of huge pages but what the container was made with, and that it brings back each time.
func TestUpdateLimitsHugePages(t *testing.T) {
	const file, promised = "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"
	h, m := start(t)
	m.deps.Host.Controllers, m.deps.Host.PageSizes = []string{"cpu", "memory", "hugetlb"}, []string{"2MB"}
	c := mustStart(t, m, h.request("web"))
	h.files()[file], h.files()[promised] = "0", "0"
	h.mains[c.ID()].told = cgroup.Limits{file: "0", promised: "0"}
	for _, step := range []struct {
		size string
		kind error
	}{{"2MB", nil}, {"", nil}, {"1GB", errdef.Invalid}, {"", nil}} {
		change := &runtime.LinuxContainerResources{CpuShares: 7}
		if step.size != "" {
			change.HugepageLimits = []*runtime.HugepageLimit{{PageSize: step.size, Limit: 4 << 20}}
		}
		if err := c.Update(t.Context(), change); !errors.Is(err, step.kind) {
			t.Errorf("%q: %v", step.size, err)
		}
		if h.file(file) != "4194304" || h.file(promised) != "4194304" {
			t.Errorf("after %q in force: %s, promised %s", step.size, h.file(file), h.file(promised))
		}
	}
}

// Of a controller that is there, a file that is not is the request's fault, and nothing of that request comes about.
func TestUpdateOfAFileThatTheCgroupLacks(t *testing.T) {
	h, m := start(t)
	m.deps.Host.Cgroup = fact.CgroupV2
	c := mustStart(t, m, h.request("web"))
	h.files()["memory.high"] = "max"
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": "max"}}); err != nil {
		t.Error(err)
	}
	for _, file := range []string{"memory.nonesuch", "memory.*"} {
		err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 5, Unified: map[string]string{"memory.high": "1", file: "1"}})
		wantKind(t, err, errdef.Invalid)
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("linux.unified: the container's cgroup has no file %q", file)) {
			t.Errorf("got %v", err)
		}
	}
	if h.file(sharesFile) != "1024" || c.Status().undo != nil || len(c.Status().Resources.GetUnified()) != 1 {
		t.Errorf("in force: %v; told: %v", h.files(), c.Status().Resources)
	}
}

// A host that cannot limit huge pages does not tell of such limits, neither of the request nor of an update.
func TestHugePagesThatCannotBeLimitedAreNotTold(t *testing.T) {
	h, m := start(t)
	m.deps.Host.Controllers = []string{"cpu", "memory"}
	pages := []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}
	r := h.request("web")
	r.Config.Linux.Resources = &runtime.LinuxContainerResources{CpuShares: 512, HugepageLimits: pages}
	c := mustStart(t, m, r)
	told := func(shares int64) {
		t.Helper()
		if got := c.Status().Resources; got.GetCpuShares() != shares || got.GetHugepageLimits() != nil {
			t.Errorf("told: %v", got)
		}
	}
	told(512)
	if err := c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 7, HugepageLimits: pages}); err != nil {
		t.Fatal(err)
	}
	told(7)
	if len(r.Config.Linux.Resources.HugepageLimits) != 1 {
		t.Errorf("the request has changed: %v", r.Config.Linux.Resources)
	}
}

// One update hangs: the container stops all the same, and the update that waits behind it ends with its client.
func TestAHangingUpdateHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		m := h.boot().open()
		defer closeManager(t, m)
		c := mustStart(t, m, h.request("web"))
		gate := h.hang("runtime update")
		var first error
		var wg sync.WaitGroup
		wg.Go(func() { first = c.Update(t.Context(), &runtime.LinuxContainerResources{CpuShares: 5}) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Update(ctx, &runtime.LinuxContainerResources{CpuShares: 6}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the second: %v", err)
		}
		if err := c.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
		close(gate) // the fake runtime takes no notice of its context
		wg.Wait()
		if !errors.Is(first, errdef.WrongState) {
			t.Errorf("the first: %v", first)
		}
		if err := m.RemovePod(t.Context(), testPod); err != nil {
			t.Error(err)
		}
		h.wantNothingLeft(m)
	})
}
