package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/crid/crid/internal/errdef"
)

// checkTimeout bounds what one client of the admin socket asks for: reading all layers takes minutes.
const checkTimeout = time.Hour

// startAdmin serves the socket on which the commands of this program talk to the crid that runs. It is root's, in a
// directory that crid alone has locked. Without it crid serves as well: only they cannot ask.
func startAdmin(ctx context.Context, r *rooms) (stop func() error) {
	l, err := listen(ctx, r.cfg.adminSocket(), 0o600)
	if err != nil {
		r.log.Warn("crid fsck cannot ask this crid", "err", err)
		return func() error { return nil }
	}
	s := &http.Server{
		Handler:           adminHandler(r.fsck),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	go serveDebug(s, l, func(err error) { r.log.Error("admin socket", "err", err) }) // ends by Close
	return s.Close
}

// adminHandler answers one check at a time: two that repair would report each other's doing.
func adminHandler(check func(context.Context, fsckRequest) (fsckReport, error)) http.Handler {
	turn := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /fsck", func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), checkTimeout)
		defer cancel()
		var ask fsckRequest
		if err := json.NewDecoder(io.LimitReader(req.Body, 1<<10)).Decode(&ask); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return
		}
		report, err := check(ctx, ask)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(report); err != nil {
			panic(http.ErrAbortHandler) // the client is gone; the connection ends here
		}
	})
	return mux
}

// askAdmin asks the crid that runs. Unavailable: nobody serves the socket.
func askAdmin(ctx context.Context, socket string, ask fsckRequest) (fsckReport, error) {
	var report fsckReport
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return report, fmt.Errorf("ask crid: %w: %w", errdef.Unavailable, err)
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	body, answer := io.Pipe()
	go func() { answer.CloseWithError(json.NewEncoder(answer).Encode(ask)) }() // ends with the request
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://crid/fsck", body)
	if err != nil {
		return report, errors.Join(err, conn.Close())
	}
	resp, err := client.Do(req)
	if err != nil {
		return report, fmt.Errorf("ask crid: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return report, errors.Join(fmt.Errorf("crid answers: %s", said), err)
	}
	if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
		return report, fmt.Errorf("read crid's answer: %w", err)
	}
	return report, nil
}
