package stats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/cgroup"
	"github.com/crid/crid/internal/errdef"
)

// node is what is measured, as a test wants it.
type node struct {
	mu         sync.Mutex // guards the rest
	usage      map[string]cgroup.Usage
	details    map[string]cgroup.Details
	interfaces []Interface
	layer      Layer
	layerErr   error
	slow       time.Duration // of each measurement of a layer
	measured   int           // layers
	log        strings.Builder
}

func newNode() *node {
	return &node{
		usage: map[string]cgroup.Usage{"/p/crid-a": used(1), "/p/crid-b": used(2), "/p/crid-pause": used(4), "/p": used(100)},
		layer: Layer{Mountpoint: "/rootfs", Bytes: 4096, Inodes: 3},
	}
}

// used is a usage whose every figure is some multiple of n.
func used(n uint64) cgroup.Usage {
	return cgroup.Usage{
		CPU: cgroup.CPU{Usage: n * 1e9},
		Memory: cgroup.Memory{Usage: n * 1000, InactiveFile: n * 100, RSS: n * 10, Limit: n * 2000, Faults: n * 3, MajorFaults: n * 2,
			Swap: n * 5, SwapLimit: n * 50},
	}
}

func (n *node) Usage(path string) (cgroup.Usage, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	u, ok := n.usage[path]
	if !ok {
		return u, fmt.Errorf("cgroup %s: %w", path, errdef.NotFound)
	}
	return u, nil
}

func (n *node) Details(path string) (cgroup.Details, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.details[path], nil
}

func (n *node) Members(string) ([]int, error) { return []int{os.Getpid(), 1 << 30}, nil } // the latter has ended

func (n *node) Layer(ctx context.Context, _ string) (Layer, error) {
	timer := time.NewTimer(n.slow)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return Layer{}, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.measured++
	return n.layer, n.layerErr
}

func (n *node) reader(t *testing.T) *Reader {
	t.Helper()
	r := New(Deps{
		Cgroups:    n,
		Layer:      n.Layer,
		Interfaces: func(string) ([]Interface, error) { return n.interfaces, nil },
		Log:        slog.New(slog.NewTextHandler(&n.log, nil)),
	})
	t.Cleanup(r.Close)
	return r
}

func (n *node) change(path string, edit func(*cgroup.Usage)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	u := n.usage[path]
	edit(&u)
	n.usage[path] = u
}

func one(id string) Container {
	return Container{Attributes: &cri.ContainerAttributes{Id: id}, Cgroup: "/p/crid-" + id, Since: time.Now().Add(-10 * time.Second)}
}

func pod(cgroup string, containers ...Container) Pod {
	return Pod{Attributes: &cri.PodSandboxAttributes{Id: "p"}, Cgroup: cgroup, NetNS: "/ns", Since: time.Now().Add(-time.Second), Containers: containers}
}

// holes are the fields of m, and of what it holds, that are nil or a timestamp of 0.
func holes(m protoreflect.Message, path string) (found []string) {
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		name := path + "." + string(f.Name())
		switch {
		case f.Name() == "timestamp" && m.Get(f).Int() <= 0:
			found = append(found, name)
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				found = append(found, holes(m.Get(f).List().Get(j).Message(), name)...)
			}
		case f.Kind() != protoreflect.MessageKind || f.IsMap() || f.Name() == "windows" || f.Name() == "metadata":
		case !m.Has(f):
			found = append(found, name)
		default:
			found = append(found, holes(m.Get(f).Message(), name)...)
		}
	}
	return found
}

func holesOf(m proto.Message) string { return strings.Join(holes(m.ProtoReflect(), ""), " ") }

func TestNothingIsNil(t *testing.T) {
	n := newNode()
	n.interfaces = []Interface{{Name: "eth0"}, {Name: "net1"}}
	r := n.reader(t)
	c, err := r.Container(t.Context(), one("a"))
	if got := holesOf(c); err != nil || got != ".cpu.psi .memory.psi .io" { // v1 has no pressure
		t.Errorf("v1: %q, %v", got, err)
	}
	for path := range n.usage {
		n.change(path, func(u *cgroup.Usage) {
			u.CPU.Pressure, u.Memory.Pressure, u.IO = &cgroup.Pressure{}, &cgroup.Pressure{}, &cgroup.Pressure{}
		})
	}
	p, err := r.Pod(t.Context(), pod("/p", one("a"), one("b")))
	if got := holesOf(p); err != nil || got != "" {
		t.Errorf("v2: %q, %v", got, err)
	}
}

func TestFigures(t *testing.T) {
	n := newNode()
	n.usage["/p/crid-a"] = cgroup.Usage{
		CPU:    cgroup.CPU{Usage: 5e9, Pressure: &cgroup.Pressure{Some: cgroup.Stall{Total: 7, Avg10: 1.5}}},
		Memory: cgroup.Memory{Usage: 1000, InactiveFile: 400, RSS: 300, Limit: 2000, Faults: 9, MajorFaults: 8, Swap: 50, SwapLimit: 80},
	}
	got, err := n.reader(t).Container(t.Context(), one("a"))
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]uint64{
		"cpu":          {got.Cpu.UsageCoreNanoSeconds.Value, 5e9},
		"working set":  {got.Memory.WorkingSetBytes.Value, 600},
		"available":    {got.Memory.AvailableBytes.Value, 1400},
		"usage":        {got.Memory.UsageBytes.Value, 1000},
		"rss":          {got.Memory.RssBytes.Value, 300},
		"faults":       {got.Memory.PageFaults.Value, 9},
		"major faults": {got.Memory.MajorPageFaults.Value, 8},
		"swap":         {got.Swap.SwapUsageBytes.Value, 50},
		"swap left":    {got.Swap.SwapAvailableBytes.Value, 30},
		"written":      {got.WritableLayer.UsedBytes.Value, 4096},
		"inodes":       {got.WritableLayer.InodesUsed.Value, 3},
		"waited":       {got.Cpu.Psi.Some.Total, 7},
		"rate, about":  {(got.Cpu.UsageNanoCores.Value + 5e6) / 1e7, 50}, // 5 s of 10 s
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %d, want %d", name, pair[0], pair[1])
		}
	}
	if got.Attributes.Id != "a" || got.WritableLayer.FsId.Mountpoint != "/rootfs" || got.Cpu.Psi.Some.Avg10 != 1.5 {
		t.Errorf("got %v", got)
	}
	n.change("/p/crid-a", func(u *cgroup.Usage) { u.Memory.Limit = cgroup.NoLimit })
	got, err = n.reader(t).Container(t.Context(), one("a"))
	if err != nil || got.Memory.AvailableBytes.Value < 1<<20 {
		t.Errorf("without a limit there are %d bytes left, %v", got.GetMemory().GetAvailableBytes().GetValue(), err)
	}
}

func TestWhatIsGone(t *testing.T) {
	n := newNode()
	r := n.reader(t)
	if _, err := r.Container(t.Context(), one("x")); !errors.Is(err, errdef.NotFound) {
		t.Errorf("a container without its cgroup: %v", err)
	}
	ended := Container{Attributes: &cri.ContainerAttributes{Id: "a"}}
	if s, err := r.Container(t.Context(), ended); err != nil || s.Cpu != nil || s.WritableLayer == nil {
		t.Errorf("one that has ended: %v, %v", s, err)
	}
	if all := r.Containers(t.Context(), []Container{one("x"), one("a"), one("y"), one("b")}); len(all) != 2 || all[0].Attributes.Id != "a" || all[1].Attributes.Id != "b" {
		t.Errorf("list: %v", all)
	}
	if all := r.Pods(t.Context(), []Pod{pod("/gone", one("x"))}); len(all) != 1 || all[0].Linux.Cpu != nil || all[0].Linux.Process == nil {
		t.Errorf("pods: %v", all)
	}
	if n.log.Len() > 0 {
		t.Errorf("logged: %s", n.log.String())
	}
}

func TestAPodIsItsCgroupOrTheSumOfItsContainers(t *testing.T) {
	n := newNode()
	n.interfaces = []Interface{{Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 2, RxErrors: 3, TxBytes: 4, TxErrors: 5}}
	r := n.reader(t)
	hidden := one("pause")
	hidden.Hidden = true
	p, err := r.Pod(t.Context(), pod("/p", one("a"), one("b"), hidden))
	if err != nil || p.Linux.Cpu.UsageCoreNanoSeconds.Value != 100e9 || len(p.Linux.Containers) != 2 || p.Linux.Process.ProcessCount.Value != 6 {
		t.Errorf("with a cgroup: %v, %v", p, err)
	}
	net := p.Linux.Network
	if net.DefaultInterface.Name != "eth0" || net.DefaultInterface.TxErrors.Value != 5 || len(net.Interfaces) != 1 || net.Interfaces[0].RxBytes.Value != 1 {
		t.Errorf("network: %v", net)
	}
	shared := pod("", one("a"), one("b"), hidden)
	shared.NetNS = ""
	if p, err = r.Pod(t.Context(), shared); err != nil || p.Linux.Network != nil {
		t.Errorf("network of the host: %v, %v", p.GetLinux().GetNetwork(), err)
	}
	if cpu, ws := p.Linux.Cpu.UsageCoreNanoSeconds.Value, p.Linux.Memory.WorkingSetBytes.Value; cpu != 7e9 || ws != 2700 {
		t.Errorf("sum: %d ns, a working set of %d", cpu, ws)
	}
	n.change("/p/crid-a", func(u *cgroup.Usage) { u.CPU.Usage += 10e9 })
	p, err = r.Pod(t.Context(), pod("", one("a")))
	if err != nil || p.Linux.Cpu.UsageCoreNanoSeconds.Value != 17e9 || p.Linux.Memory.UsageBytes.Value != 1000 {
		t.Errorf("after a container was removed, the sum must not fall: %v, %v", p, err)
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		r := n.reader(t)
		cores := func(after time.Duration) uint64 {
			t.Helper()
			timer := time.NewTimer(after)
			<-timer.C
			s, err := r.Container(t.Context(), one("a"))
			if err != nil {
				t.Fatal(err)
			}
			return s.Cpu.UsageNanoCores.Value
		}
		if got := cores(0); got != 1e8 {
			t.Errorf("first: %d; 1 s of 10 s was used", got)
		}
		n.change("/p/crid-a", func(u *cgroup.Usage) { u.CPU.Usage += 1e9 })
		if got := cores(time.Millisecond); got != 1e8 {
			t.Errorf("again at once: %d", got)
		}
		if got := cores(2*time.Second - time.Millisecond); got != 5e8 {
			t.Errorf("2 s later: %d", got)
		}
		if got := cores(time.Second); got != 0 {
			t.Errorf("idle: %d", got)
		}
	})
}

func TestLayersAreMeasuredNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.slow = time.Second
		r := n.reader(t)
		ask := func(after time.Duration, bytes uint64, times int) {
			t.Helper()
			timer := time.NewTimer(after)
			<-timer.C
			s, err := r.Container(t.Context(), one("a"))
			if err != nil {
				t.Fatal(err)
			}
			usage := s.WritableLayer
			n.mu.Lock()
			defer n.mu.Unlock()
			if usage.GetUsedBytes().GetValue() != bytes || n.measured != times {
				t.Errorf("got %v, measured %d times; want %d bytes, %d times", usage, n.measured, bytes, times)
			}
			n.layer.Bytes++
		}
		ask(0, 4096, 1)
		ask(30*time.Second, 4096, 1)
		ask(31*time.Second, 4096, 1) // old enough: it is begun
		ask(2*time.Second, 4099, 2)
		ask(time.Hour, 4100, 3) // too old to be told
		n.slow = time.Minute
		ask(5*time.Minute, 4100, 3) // too slow to be waited for
		ask(10*time.Second, 4100, 3)
		ask(time.Minute, 4103, 4)
	})
}

// File trees without end must not keep a list waiting, nor all the others in it.
func TestSlowLayersHoldAListOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.slow = time.Minute
		r := n.reader(t)
		var all []Container
		for i := range 50 {
			id := fmt.Sprint(i)
			n.usage["/p/crid-"+id] = used(1)
			all = append(all, one(id))
		}
		began := time.Now()
		list := r.Containers(t.Context(), all)
		if took := time.Since(began); took > layerPatience || len(list) != 50 || list[0].WritableLayer != nil || list[0].Cpu == nil {
			t.Errorf("%d of 50 after %v, the first: %v", len(list), took, list[0])
		}
		r.Close()
		synctest.Wait()
	})
}

func TestALayerThatCannotBeMeasuredIsLeftOut(t *testing.T) {
	n := newNode()
	n.layerErr = errors.New("input/output error")
	s, err := n.reader(t).Container(t.Context(), one("a"))
	if err != nil || s.WritableLayer != nil || s.Cpu == nil || !strings.Contains(n.log.String(), "input/output error") {
		t.Errorf("%v, %v; logged %s", s, err, n.log.String())
	}
}

func TestWhatNobodyAsksForIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		r := n.reader(t)
		for i := range 100 {
			r.nanoCores(fmt.Sprint(i), time.Now(), time.Now(), 1)
		}
		timer := time.NewTimer(2 * forgetAfter)
		<-timer.C
		r.nanoCores("x", time.Now(), time.Now(), 1)
		if len(r.rates.values) != 1 {
			t.Errorf("%d are remembered", len(r.rates.values))
		}
	})
}
