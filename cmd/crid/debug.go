package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"time"
)

// counts is what a look for leaks compares.
type counts struct {
	Goroutines int   `json:"goroutines"`
	FDs        int   `json:"fds"`
	Pods       int   `json:"pods"`
	Containers int   `json:"containers"`
	InFlight   int64 `json:"inFlight"`
}

// debugServer answers on the debug socket: Go's profiles below /debug/pprof/, counts at /counts.
func debugServer(count func() (counts, error)) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/counts", func(w http.ResponseWriter, _ *http.Request) {
		now, err := count()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(now); err != nil {
			panic(http.ErrAbortHandler) // the client is gone; the connection ends here
		}
	})
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}

// serveDebug runs s on l until s is closed.
func serveDebug(s *http.Server, l net.Listener, report func(error)) {
	if err := s.Serve(l); err != http.ErrServerClosed {
		report(fmt.Errorf("serve %s: %w", l.Addr(), err))
	}
}

// ownCounts counts what belongs to the process itself.
func ownCounts() (counts, error) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return counts{}, fmt.Errorf("count file descriptors: %w", err)
	}
	return counts{Goroutines: runtime.NumGoroutine(), FDs: len(fds) - 1}, nil // one is the directory itself
}
