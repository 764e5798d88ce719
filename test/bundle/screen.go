package bundle

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// Screen keeps what is written to it, for a test that waits for something to appear.
type Screen struct {
	mu    sync.Mutex // guards text
	text  bytes.Buffer
	wrote chan struct{} // holds a token when there is something new
}

// NewScreen makes an empty one.
func NewScreen() *Screen { return &Screen{wrote: make(chan struct{}, 1)} }

// Write keeps p. It never fails.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	select {
	case s.wrote <- struct{}{}:
	default:
	}
	return len(p), nil
}

// String is all that was written so far.
func (s *Screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Await waits up to ten seconds until words were written, and fails t if they were not.
func (s *Screen) Await(t *testing.T, words string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for !strings.Contains(s.String(), words) {
		select {
		case <-s.wrote:
		case <-limit:
			t.Fatalf("%q did not appear, but %.2000q", words, s)
		}
	}
}

// Wrote holds a token when there is something new since it was last read.
func (s *Screen) Wrote() <-chan struct{} { return s.wrote }
