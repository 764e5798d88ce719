package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// service plays a service manager: it hands out the datagrams that come.
func service(t *testing.T) (address string, said <-chan string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	all := make(chan string, 100)
	go func() { // ends with the test
		defer close(all)
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			all <- string(buf[:n])
		}
	}()
	return address, all
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestTheManagerIsToldAndChildrenAreNot(t *testing.T) {
	address, said := service(t)
	for name, value := range map[string]string{"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000000", "LISTEN_FDS": "1"} {
		t.Setenv(name, value)
	}
	m, err := findManager(quiet())
	if err != nil || m.rhythm != time.Minute {
		t.Fatalf("watched every %s, %v", m.rhythm, err)
	}
	for _, name := range managerVars {
		if value, there := os.LookupEnv(name); there {
			t.Errorf("children get %s=%s", name, value)
		}
	}
	m.say(sayReady)
	if got := <-said; got != sayReady {
		t.Errorf("told %q", got)
	}
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	if m, err = findManager(quiet()); err != nil || m.rhythm != 0 || m.address != "" {
		t.Errorf("the watchdog of another: %+v, %v", m, err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	t.Setenv("WATCHDOG_PID", "")
	if _, err = findManager(quiet()); err == nil {
		t.Error("a time that is none is taken")
	}
}

func TestTheWatchdogHearsOfACridThatAnswers(t *testing.T) {
	address, said := service(t)
	m := manager{log: quiet(), address: address, rhythm: 30 * time.Millisecond}
	var stuck atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.watched(ctx, func(context.Context) error {
			if stuck.Load() {
				return errors.New("no answer")
			}
			return nil
		}, func() string { return "3 pods" })
	}()
	for range 2 {
		if got := <-said; !strings.HasPrefix(got, sayAlive+"\n") || !strings.HasSuffix(got, "STATUS=3 pods") {
			t.Errorf("told %q", got)
		}
	}
	stuck.Store(true)
	for quiet := false; !quiet; { // one that was under way may still come
		select {
		case <-said:
		case <-time.After(10 * m.rhythm):
			quiet = true
		}
	}
	cancel()
	<-ended
	(manager{}).watched(t.Context(), nil, nil) // returns
	(manager{}).say(sayReady)
}

func TestOnlyAServerThatAnswersIsAlive(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "crid.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ask, closing, err := answers(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := ask(ctx); err == nil {
		t.Error("a socket that nobody serves passes for a crid that is alive")
	}
	if err := closing(); err != nil {
		t.Error(err)
	}
}
