package stats

import (
	"sync"
	"time"
)

// forgetAfter is how long something is remembered that nobody asks for.
const forgetAfter = 10 * time.Minute

// memory remembers values by key for as long as they are asked for. The zero value is empty.
type memory[T any] struct {
	mu     sync.Mutex // guards the rest; held for access only
	values map[string]remembered[T]
	swept  time.Time
}

type remembered[T any] struct {
	value T
	asked time.Time
}

// get returns the value of key, made when there is none.
func (m *memory[T]) get(key string, first func() T) T {
	return m.update(key, func(old T, known bool) T {
		if known {
			return old
		}
		return first()
	})
}

// update replaces the value of key by what change makes of it, which must not wait, and returns that.
func (m *memory[T]) update(key string, change func(old T, known bool) T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.sweep(now)
	old, known := m.values[key]
	fresh := remembered[T]{change(old.value, known), now}
	m.values[key] = fresh
	return fresh.value
}

// sweep drops what nobody has asked for, now and then.
func (m *memory[T]) sweep(now time.Time) {
	if m.values == nil {
		m.values, m.swept = map[string]remembered[T]{}, now
	}
	if now.Sub(m.swept) < forgetAfter/2 {
		return
	}
	m.swept = now
	for key, r := range m.values {
		if now.Sub(r.asked) > forgetAfter {
			delete(m.values, key)
		}
	}
}

// rate is how fast CPU time is used, and the reading from which the next is reckoned.
type rate struct {
	at        time.Time
	usage     uint64 // ns
	nanoCores uint64
}

// rateSpan is the shortest time over which a rate is taken; whoever asks again sooner gets the same.
const rateSpan = time.Second

// nanoCores is the CPU time used per second since the reading before, or since the beginning when this is the first.
func (r *Reader) nanoCores(key string, now, since time.Time, usage uint64) uint64 {
	return r.rates.update(key, func(old rate, known bool) rate {
		if !known || usage < old.usage {
			old = rate{at: since}
		}
		span := now.Sub(old.at)
		if span < rateSpan && known {
			return old
		}
		cores := uint64(float64(usage-old.usage) / max(span.Seconds(), rateSpan.Seconds()/10))
		return rate{now, usage, cores}
	}).nanoCores
}

// growing is a count that begins anew when part of what it counts is gone. Its total does not fall.
type growing struct {
	mu         sync.Mutex // guards the rest; held for access only
	last, gone uint64
}

func (g *growing) total(now uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now < g.last {
		g.gone += g.last - now
	}
	g.last = now
	return g.gone + now
}
