package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// NoLimit is a limit that is none.
const NoLimit = math.MaxUint64

// Usage is what a cgroup with all below it has used, and uses. What the host has no controller for is zero.
type Usage struct {
	CPU    CPU
	Memory Memory
	IO     *Pressure // nil on v1 and where the kernel does not measure it
}

// CPU is time spent on CPUs. It only grows.
type CPU struct {
	Usage    uint64    // ns
	Pressure *Pressure // nil on v1 and where the kernel does not measure it
}

// Memory is memory in bytes, and faults in numbers, which only grow.
type Memory struct {
	Usage                    uint64 // caches of files included
	InactiveFile, ActiveFile uint64 // caches of files
	RSS                      uint64 // memory that no file is behind
	Limit                    uint64 // the tightest of the cgroup and those above it, or NoLimit
	Faults, MajorFaults      uint64
	Swap                     uint64
	SwapLimit                uint64    // of swap alone, or NoLimit
	Pressure                 *Pressure // nil on v1 and where the kernel does not measure it
}

// WorkingSet is what the kubelet takes for memory in use: all but the file caches that the kernel would drop first.
func (m Memory) WorkingSet() uint64 { return less(m.Usage, m.InactiveFile) }

// Pressure is how long tasks had to wait for want of a resource: some of them, or all of them at once.
type Pressure struct{ Some, Full Stall }

// Stall is a time of waiting.
type Stall struct {
	Total                uint64  // ns; only grows
	Avg10, Avg60, Avg300 float64 // percent of the last so many seconds
}

// Usage reads what the cgroup at path uses. NotFound when it does not exist.
func (t *Tree) Usage(path string) (Usage, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return Usage{}, fmt.Errorf("read usage: %w", err)
	}
	var u Usage
	if u.CPU, err = t.cpu(cleaned); err == nil {
		u.Memory, err = t.memory(cleaned)
	}
	if h, ok := t.with("memory"); err == nil && ok && h.unified {
		u.IO, err = pressure(filepath.Join(h.dir, cleaned, "io.pressure"))
	}
	if err != nil {
		return Usage{}, usageError(path, err)
	}
	return u, nil
}

// Memory is the part of Usage that is about memory.
func (t *Tree) Memory(path string) (Memory, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return Memory{}, fmt.Errorf("read usage: %w", err)
	}
	m, err := t.memory(cleaned)
	if err != nil {
		return Memory{}, usageError(path, err)
	}
	return m, nil
}

func usageError(path string, err error) error {
	if gone(err) {
		err = fmt.Errorf("%w: %w", errdef.NotFound, err)
	}
	return fmt.Errorf("read usage of cgroup %s: %w", path, err)
}

// Members returns the processes in the cgroup at path and below it, as the one hierarchy has them that counts processes.
// A cgroup that does not exist has none. A process that lives outside crid's PID namespace appears as 0 on v2 and not
// at all on v1.
func (t *Tree) Members(path string) ([]int, error) {
	cleaned, err := cleanGroup(path)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	h := t.hierarchies[0]
	for _, controller := range [...]string{"pids", "memory"} {
		if found, ok := t.with(controller); ok {
			h = found
			break
		}
	}
	pids, err := members(filepath.Join(h.dir, cleaned))
	if err != nil {
		return nil, fmt.Errorf("list members of cgroup %s: %w", path, err)
	}
	return pids, nil
}

// with returns the hierarchy that has the controller.
func (t *Tree) with(controller string) (hierarchy, bool) {
	i := slices.IndexFunc(t.hierarchies, func(h hierarchy) bool { return h.has(controller) })
	if i < 0 {
		return hierarchy{}, false
	}
	return t.hierarchies[i], true
}

func (t *Tree) cpu(path string) (CPU, error) {
	if h, ok := t.with("cpuacct"); ok && !h.unified {
		ns, err := number(filepath.Join(h.dir, path, "cpuacct.usage"))
		return CPU{Usage: ns}, err
	}
	h, ok := t.with("cpu")
	if !ok || !h.unified {
		return CPU{}, nil
	}
	var us uint64
	err := table(filepath.Join(h.dir, path, "cpu.stat"), map[string]*uint64{"usage_usec": &us})
	if err != nil {
		return CPU{}, err
	}
	stalled, err := pressure(filepath.Join(h.dir, path, "cpu.pressure"))
	return CPU{Usage: us * 1000, Pressure: stalled}, err
}

func (t *Tree) memory(path string) (Memory, error) {
	h, ok := t.with("memory")
	if !ok {
		return Memory{Limit: NoLimit, SwapLimit: NoLimit}, nil
	}
	if h.unified {
		return h.memoryV2(path)
	}
	return memoryV1(filepath.Join(h.dir, path))
}

func memoryV1(dir string) (Memory, error) {
	usage, err := number(filepath.Join(dir, "memory.usage_in_bytes"))
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Usage: usage, Limit: NoLimit}
	withSwap := uint64(NoLimit)
	err = table(filepath.Join(dir, "memory.stat"), map[string]*uint64{
		"total_inactive_file": &m.InactiveFile, "total_active_file": &m.ActiveFile, "total_rss": &m.RSS,
		"total_pgfault": &m.Faults, "total_pgmajfault": &m.MajorFaults, "total_swap": &m.Swap,
		"hierarchical_memory_limit": &m.Limit, "hierarchical_memsw_limit": &withSwap,
	})
	m.Limit, m.SwapLimit = unlimited(m.Limit), unlimited(withSwap)
	if m.SwapLimit != NoLimit && m.Limit != NoLimit {
		m.SwapLimit = less(m.SwapLimit, m.Limit)
	}
	return m, err
}

// unlimited knows the number that v1 shows for "no limit", which depends on the size of a page.
func unlimited(limit uint64) uint64 {
	if limit >= math.MaxInt64&^0xffff {
		return NoLimit
	}
	return limit
}

func (h hierarchy) memoryV2(path string) (Memory, error) {
	dir := filepath.Join(h.dir, path)
	usage, err := number(filepath.Join(dir, "memory.current"))
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Usage: usage}
	err = table(filepath.Join(dir, "memory.stat"), map[string]*uint64{
		"inactive_file": &m.InactiveFile, "active_file": &m.ActiveFile, "anon": &m.RSS,
		"pgfault": &m.Faults, "pgmajfault": &m.MajorFaults,
	})
	if err != nil {
		return Memory{}, err
	}
	if m.Swap, err = number(filepath.Join(dir, "memory.swap.current")); err != nil && !gone(err) {
		return Memory{}, err // gone: the kernel does not count swap
	}
	if m.Limit, err = h.tightest(path, "memory.max"); err != nil {
		return Memory{}, err
	}
	if m.SwapLimit, err = h.tightest(path, "memory.swap.max"); err != nil {
		return Memory{}, err
	}
	m.Pressure, err = pressure(filepath.Join(dir, "memory.pressure"))
	return m, err
}

// tightest is the lowest value of a v2 limit's file in the cgroup and those above it.
func (h hierarchy) tightest(path, file string) (uint64, error) {
	low := uint64(NoLimit)
	for ; path != "/"; path = filepath.Dir(path) {
		n, err := number(filepath.Join(h.dir, path, file))
		if err != nil && !gone(err) {
			return 0, err
		}
		if err == nil {
			low = min(low, n)
		}
	}
	return low, nil
}

// number reads a file that holds one number or "max".
func number(file string) (uint64, error) {
	var space [64]byte
	raw, err := slurp(file, space[:])
	if err != nil {
		return 0, err
	}
	n, err := parseNumber(bytes.TrimSpace(raw))
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", file, err)
	}
	return n, nil
}

// table reads those lines "key number" of a file that want names. A key that is not there leaves its number alone.
func table(file string, want map[string]*uint64) error {
	var space [16 << 10]byte
	raw, err := slurp(file, space[:])
	if err != nil {
		return err
	}
	for line := range bytes.Lines(raw) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		into := want[string(key)]
		if into == nil {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return fmt.Errorf("parse %s: %w", file, err)
		}
		*into = n
	}
	return nil
}

// pressure reads a file of pressure stall information; nil when the kernel does not measure it.
func pressure(file string) (*Pressure, error) {
	var space [512]byte
	raw, err := slurp(file, space[:])
	if gone(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Pressure{}
	for line := range bytes.Lines(raw) {
		kind, s := "", Stall{}
		_, err := fmt.Sscanf(string(line), "%s avg10=%g avg60=%g avg300=%g total=%d", &kind, &s.Avg10, &s.Avg60, &s.Avg300, &s.Total)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		s.Total *= 1000 // the kernel tells µs
		if kind == "full" {
			p.Full = s
			continue
		}
		p.Some = s
	}
	return p, nil
}

// fullRead is less than what the kernel gives of one of its files in one read when there is more: that is about a page.
const fullRead = 2048

// slurp reads a small file of the kernel into space, without the costs of an os.File: stats read hundreds at a time. A
// file that does not fit is an error.
func slurp(file string, space []byte) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: file, Err: err}
	}
	n := 0
	for n < len(space) {
		more, readErr := unix.Read(fd, space[n:])
		if errors.Is(readErr, unix.EINTR) {
			continue
		}
		if err = readErr; err != nil {
			break
		}
		n += more
		if more < fullRead {
			break
		}
	}
	if err == nil && n == len(space) {
		err = unix.EFBIG
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return nil, &os.PathError{Op: "read", Path: file, Err: err}
	}
	return space[:n], nil
}

// less is a - b, and 0 where the two were read at moments at which b was larger.
func less(a, b uint64) uint64 { return a - min(a, b) }
