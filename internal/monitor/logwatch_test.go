package monitor

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkLookAtLogs is a round of 60 containers of which nothing is wrong.
func BenchmarkLookAtLogs(b *testing.B) {
	l := New(Config{Dir: b.TempDir()}, nil)
	w := &logWatch{launcher: l, log: slog.Default(), looks: map[*Process]look{}}
	for i := range 60 {
		path := filepath.Join(b.TempDir(), "pods", "namespace_name_uid", fmt.Sprint(i), "0.log")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			b.Fatal(err)
		}
		p := &Process{id: fmt.Sprint(i), done: make(chan struct{})}
		l.procs[p.id] = p
		w.looks[p] = look{path: path}
	}
	for b.Loop() {
		w.round()
	}
}
