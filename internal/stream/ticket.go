package stream

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/crid/crid/internal/errdef"
)

const (
	// ticketLife is how long a URL counts.
	ticketLife = time.Minute
	// maxTickets bounds the URLs that nobody has used yet.
	maxTickets = 1000
)

// tickets keeps what URLs stand for until they are used.
//
// The package that brings the protocols has such a cache in a server of its own, but that server does not tell a
// port-forward whose connection it is on, and so not when its client is gone.
type tickets struct {
	mu      sync.Mutex // guards byToken; nothing waits under it
	byToken map[string]ticket
}

type ticket struct {
	what    any
	expires time.Time
}

func newTickets() *tickets { return &tickets{byToken: map[string]ticket{}} }

// issue returns the token that stands for what: 130 random bits. errdef.Exhausted when too many are unused.
func (t *tickets) issue(what any) (string, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for token, old := range t.byToken {
		if now.After(old.expires) {
			delete(t.byToken, token)
		}
	}
	if len(t.byToken) >= maxTickets {
		return "", fmt.Errorf("%d URLs have not been used yet, try again in a minute: %w", maxTickets, errdef.Exhausted)
	}
	token := rand.Text()
	t.byToken[token] = ticket{what, now.Add(ticketLife)}
	return token, nil
}

// redeem returns what the token stands for, once and in time.
func (t *tickets) redeem(token string) (what any, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.byToken[token]
	delete(t.byToken, token)
	if !ok || time.Now().After(found.expires) {
		return nil, false
	}
	return found.what, true
}
