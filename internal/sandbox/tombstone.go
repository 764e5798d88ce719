package sandbox

import (
	"context"
	"time"

	"github.com/crid/crid/internal/network"
)

// Tombstone is a network attachment that could not be undone when its pod was stopped. It is retried until
// it can, across restarts of crid. Removing its record by hand gives it up.
type Tombstone struct {
	Key      Key             `json:"key"` // of the pod, for humans
	Request  network.Request `json:"request"`
	Since    time.Time       `json:"since"`
	Attempts int             `json:"attempts"` // failed so far
	Error    string          `json:"error"`    // of the last attempt
}

// How often and how many at once tombstones are retried.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
	diggers    = 4
)

// Tombstones returns the network attachments that wait to be undone, for Status verbose and metrics, in no
// order. It never waits.
func (m *Manager) Tombstones() []Tombstone {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Tombstone, 0, len(m.graves))
	for _, t := range m.graves {
		all = append(all, t)
	}
	return all
}

// entomb records that req must still be undone and begins to retry. An error means that it is not on record yet.
func (m *Manager) entomb(p *Pod, req network.Request, cause error) error {
	t := Tombstone{Key: p.key, Request: req, Since: time.Now(), Attempts: 1, Error: cause.Error()}
	m.bury(t, backoff(t.Attempts))
	return m.deps.Tombstones.Keep(req.ID, t)
}

// bury retries t in the background, first after delay, unless that is going on already.
func (m *Manager) bury(t Tombstone, delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.graves[t.Request.ID]
	m.graves[t.Request.ID] = t
	if known || m.closed {
		return
	}
	m.work.Add(1)
	go func() { // ends when the network is detached, or with Close
		defer m.work.Done()
		for m.pause(delay) && !m.dig(t.Request) {
			delay = m.postpone(t.Request.ID)
		}
	}()
}

// pause waits; false means that crid is shutting down.
func (m *Manager) pause(delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return m.open() == nil
	case <-m.closing:
		return false
	}
}

// dig tries once to undo the attachment and to delete its tombstone.
func (m *Manager) dig(req network.Request) bool {
	select {
	case m.digging <- struct{}{}:
		defer func() { <-m.digging }()
	case <-m.closing:
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.deps.Config.DelTimeout)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-m.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := m.deps.Network.Del(ctx, req)
	if err == nil {
		err = m.deps.Tombstones.Delete(req.ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.graves, req.ID)
		return true
	}
	t := m.graves[req.ID]
	t.Attempts++
	t.Error = err.Error()
	m.graves[req.ID] = t
	return false
}

// postpone keeps the failure of an attempt and says when to try again.
func (m *Manager) postpone(id string) time.Duration {
	m.mu.Lock()
	t := m.graves[id]
	m.mu.Unlock()
	if err := m.deps.Tombstones.Keep(id, t); err != nil {
		m.deps.Log.Warn("tombstone is not up to date", "pod", id, "err", err)
	}
	m.deps.Log.Warn("network of a stopped pod is still attached", "pod", id, "attempts", t.Attempts, "err", t.Error)
	return backoff(t.Attempts)
}

// backoff doubles with each failed attempt.
func backoff(attempts int) time.Duration {
	d := firstRetry
	for i := 1; i < attempts && d < lastRetry; i++ {
		d *= 2
	}
	return min(d, lastRetry)
}
