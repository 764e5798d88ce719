package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/crid/crid/internal/errdef"
)

// Figure is one of the numbers that a cgroup tells of itself and all below it, beyond Usage.
type Figure int

// Times are in ns, memory in bytes. Those of the first group only grow.
const (
	UserTime Figure = iota
	SystemTime
	Periods // of a CPU quota
	ThrottledPeriods
	ThrottledTime
	LimitHits // of the memory limit
	OwnFaults // of this cgroup alone; v1
	OwnMajorFaults
	OOMKills // v1 forgets those of cgroups below that were removed

	Cache
	MappedFile
	KernelMemory
	PeakMemory
	Swap
	Tasks

	CPUShares // as v1 counts them, on v2 too
	CPUPeriod // µs
	CPUQuota  // µs in a period; only where there is a quota
	MemoryLimit
	MemoryReservation
	MemorySwapLimit // v1: of memory and swap together; v2: of swap
	TasksLimit
)

// Details is what a cgroup tells beyond Usage. What the host does not have, or this cgroup has not, is missing.
type Details struct {
	Figures   map[Figure]uint64 // a limit that is none is NoLimit
	Blocks    []Block
	HugePages []HugePages
}

// Block is what was done to a block device. It only grows.
type Block struct {
	Major, Minor uint32
	Operation    string // Read, Write, Discard; on v1 also Sync, Async, Total
	Bytes, Times uint64
}

// HugePages are those of one size.
type HugePages struct {
	Size  string  // as "2MB"
	Usage uint64  // bytes
	Peak  *uint64 // bytes; nil on v2, which does not tell
}

// term is where a figure stands in a file, and what it is multiplied by to become of the unit that Figure has.
type term struct {
	figure Figure
	scale  uint64
}

// sheet is a file of figures: of lines "key number", or with "" as key of one number alone.
type sheet struct {
	controller, file string
	terms            map[string]term
}

func alone(controller, file string, f Figure) sheet {
	return sheet{controller, file, map[string]term{"": {f, 1}}}
}

// tick is a clock tick in which v1 tells user and system time, ns.
const tick = 1e7

var sheetsV1 = []sheet{
	{"cpuacct", "cpuacct.stat", map[string]term{"user": {UserTime, tick}, "system": {SystemTime, tick}}},
	{"cpu", "cpu.stat", map[string]term{"nr_periods": {Periods, 1}, "nr_throttled": {ThrottledPeriods, 1}, "throttled_time": {ThrottledTime, 1}}},
	alone("cpu", "cpu.shares", CPUShares),
	alone("cpu", "cpu.cfs_period_us", CPUPeriod),
	alone("cpu", "cpu.cfs_quota_us", CPUQuota),
	{"memory", "memory.stat", map[string]term{
		"total_cache": {Cache, 1}, "total_mapped_file": {MappedFile, 1}, "total_swap": {Swap, 1},
		"pgfault": {OwnFaults, 1}, "pgmajfault": {OwnMajorFaults, 1},
	}},
	alone("memory", "memory.kmem.usage_in_bytes", KernelMemory),
	alone("memory", "memory.max_usage_in_bytes", PeakMemory),
	alone("memory", "memory.failcnt", LimitHits),
	alone("memory", "memory.limit_in_bytes", MemoryLimit),
	alone("memory", "memory.soft_limit_in_bytes", MemoryReservation),
	alone("memory", "memory.memsw.limit_in_bytes", MemorySwapLimit),
	alone("pids", "pids.current", Tasks),
	alone("pids", "pids.max", TasksLimit),
}

var sheetsV2 = []sheet{
	{"cpu", "cpu.stat", map[string]term{
		"user_usec": {UserTime, 1000}, "system_usec": {SystemTime, 1000},
		"nr_periods": {Periods, 1}, "nr_throttled": {ThrottledPeriods, 1}, "throttled_usec": {ThrottledTime, 1000},
	}},
	{"memory", "memory.stat", map[string]term{"file": {Cache, 1}, "file_mapped": {MappedFile, 1}, "kernel": {KernelMemory, 1}}},
	{"memory", "memory.events", map[string]term{"max": {LimitHits, 1}}},
	alone("memory", "memory.peak", PeakMemory),
	alone("memory", "memory.swap.current", Swap),
	alone("memory", "memory.max", MemoryLimit),
	alone("memory", "memory.min", MemoryReservation),
	alone("memory", "memory.swap.max", MemorySwapLimit),
	alone("pids", "pids.current", Tasks),
	alone("pids", "pids.max", TasksLimit),
}

// Details reads what else the cgroup at path tells. A cgroup that does not exist tells nothing.
func (t *Tree) Details(path string) (Details, error) {
	d := Details{Figures: map[Figure]uint64{}}
	cleaned, err := cleanGroup(path)
	if err != nil {
		return d, fmt.Errorf("read details: %w", err)
	}
	for _, read := range []func(string, *Details) error{t.sheets, t.swapLimit, t.bandwidth, t.kills, t.blocks, t.hugePages} {
		if err := read(cleaned, &d); err != nil && !gone(err) {
			return d, fmt.Errorf("read details of cgroup %s: %w", path, err)
		}
	}
	return d, nil
}

func (t *Tree) sheets(path string, d *Details) error {
	space := make([]byte, 16<<10)
	for unified, sheets := range map[bool][]sheet{false: sheetsV1, true: sheetsV2} {
		for _, s := range sheets {
			h, ok := t.with(s.controller)
			if !ok || h.unified != unified {
				continue
			}
			if err := s.read(filepath.Join(h.dir, path), space, d.Figures); err != nil && !gone(err) {
				return err
			}
		}
	}
	return nil
}

func (s sheet) read(dir string, space []byte, into map[Figure]uint64) error {
	file := filepath.Join(dir, s.file)
	raw, err := slurp(file, space)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(raw) {
		key, value, found := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !found {
			key, value = nil, key
		}
		term, wanted := s.terms[string(key)]
		if !wanted || string(value) == "-1" { // a CPU quota that is none
			continue
		}
		n, err := parseNumber(value)
		if err != nil {
			return fmt.Errorf("parse %s: %w", file, err)
		}
		if n = unlimited(n); n != NoLimit {
			n *= term.scale
		}
		into[term.figure] = n
	}
	return nil
}

// bandwidth reads those limits of CPUs that v2 tells in other forms than v1.
func (t *Tree) bandwidth(path string, d *Details) error {
	h, ok := t.with("cpu")
	if !ok || !h.unified {
		return nil
	}
	dir := filepath.Join(h.dir, path)
	weight, err := number(filepath.Join(dir, "cpu.weight"))
	if err != nil {
		return err
	}
	// The usual linear mapping of 1..10000 to 2..262144; the other way round runtimes have more than one.
	d.Figures[CPUShares] = 2 + (max(weight, 1)-1)*262142/9999
	var space [64]byte
	raw, err := slurp(filepath.Join(dir, "cpu.max"), space[:])
	if err != nil {
		return err
	}
	quota, period, _ := bytes.Cut(bytes.TrimSpace(raw), []byte(" "))
	if d.Figures[CPUPeriod], err = parseNumber(period); err != nil {
		return fmt.Errorf("parse cpu.max: %w", err)
	}
	if string(quota) == "max" {
		return nil
	}
	if d.Figures[CPUQuota], err = parseNumber(quota); err != nil {
		return fmt.Errorf("parse cpu.max: %w", err)
	}
	return nil
}

// swapLimit says that what the kernel cannot limit is not limited.
func (t *Tree) swapLimit(_ string, d *Details) error {
	_, limited := d.Figures[MemoryLimit]
	if _, has := d.Figures[MemorySwapLimit]; limited && !has {
		d.Figures[MemorySwapLimit] = NoLimit
	}
	return nil
}

func (t *Tree) kills(path string, d *Details) error {
	if _, ok := t.with("memory"); !ok {
		return nil
	}
	n, err := t.oomKills(path)
	if errors.Is(err, errdef.Unsupported) {
		return nil
	}
	if err == nil {
		d.Figures[OOMKills] = n
	}
	return err
}

func (t *Tree) hugePages(path string, d *Details) error {
	h, ok := t.with("hugetlb")
	if !ok {
		return nil
	}
	for _, size := range t.pageSizes {
		dir := filepath.Join(h.dir, path)
		pages := HugePages{Size: size}
		var err error
		if h.unified {
			pages.Usage, err = number(filepath.Join(dir, "hugetlb."+size+".current"))
		} else {
			pages.Peak = new(uint64)
			pages.Usage, err = number(filepath.Join(dir, "hugetlb."+size+".usage_in_bytes"))
			if err == nil {
				*pages.Peak, err = number(filepath.Join(dir, "hugetlb."+size+".max_usage_in_bytes"))
			}
		}
		if err != nil && !gone(err) {
			return err
		}
		if err == nil {
			d.HugePages = append(d.HugePages, pages)
		}
	}
	return nil
}

func (t *Tree) blocks(path string, d *Details) error {
	if h, ok := t.with("io"); ok && h.unified {
		return blocksV2(filepath.Join(h.dir, path, "io.stat"), d)
	}
	h, ok := t.with("blkio")
	if !ok {
		return nil
	}
	// Which of the two counts depends on the scheduler of the device.
	for _, policy := range []string{"blkio.throttle.", "blkio.bfq."} {
		if err := blocksV1(filepath.Join(h.dir, path, policy), d); err != nil && !gone(err) || len(d.Blocks) > 0 {
			return err
		}
	}
	return nil
}

// blocksV1 reads the two files that begin with prefix: lines "8:0 Read 4096", and a sum.
func blocksV1(prefix string, d *Details) error {
	for _, file := range []string{"io_service_bytes_recursive", "io_serviced_recursive"} {
		raw, err := os.ReadFile(prefix + file)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(raw) {
			words := bytes.Fields(line)
			if len(words) != 3 {
				continue
			}
			b := Block{Operation: string(words[1])}
			if _, err := fmt.Sscanf(string(words[0]), "%d:%d", &b.Major, &b.Minor); err != nil {
				return fmt.Errorf("parse %s%s: %w", prefix, file, err)
			}
			n, err := parseNumber(words[2])
			if err != nil {
				return fmt.Errorf("parse %s%s: %w", prefix, file, err)
			}
			i := slices.IndexFunc(d.Blocks, func(o Block) bool {
				return o.Major == b.Major && o.Minor == b.Minor && o.Operation == b.Operation
			})
			if i < 0 {
				i = len(d.Blocks)
				d.Blocks = append(d.Blocks, b)
			}
			if file == "io_serviced_recursive" {
				d.Blocks[i].Times = n
			} else {
				d.Blocks[i].Bytes = n
			}
		}
	}
	return nil
}

// blocksV2 reads lines "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0", in any order.
func blocksV2(file string, d *Details) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(raw) {
		words := bytes.Fields(line)
		if len(words) < 2 {
			continue // a device of which nothing is told
		}
		done := [...]Block{{Operation: "Read"}, {Operation: "Write"}, {Operation: "Discard"}}
		var major, minor uint32
		if _, err := fmt.Sscanf(string(words[0]), "%d:%d", &major, &minor); err != nil {
			return fmt.Errorf("parse %s: %w", file, err)
		}
		into := map[string]*uint64{
			"rbytes": &done[0].Bytes, "wbytes": &done[1].Bytes, "dbytes": &done[2].Bytes,
			"rios": &done[0].Times, "wios": &done[1].Times, "dios": &done[2].Times,
		}
		for _, word := range words[1:] {
			key, value, _ := bytes.Cut(word, []byte("="))
			if into[string(key)] == nil {
				continue
			}
			if *into[string(key)], err = parseNumber(value); err != nil {
				return fmt.Errorf("parse %s: %w", file, err)
			}
		}
		for _, b := range done {
			b.Major, b.Minor = major, minor
			d.Blocks = append(d.Blocks, b)
		}
	}
	return nil
}

// parseNumber reads a number or "max".
func parseNumber(text []byte) (uint64, error) {
	if string(text) == "max" {
		return NoLimit, nil
	}
	return strconv.ParseUint(string(text), 10, 64)
}
