package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What systemd is told, by sd_notify(3).
const (
	sayReady    = "READY=1"
	sayStopping = "STOPPING=1"
	sayAlive    = "WATCHDOG=1"
	sayStatus   = "STATUS="
)

// manager is the service manager that crid has been started by, if it wants to be told of crid's life. The zero value is
// none.
type manager struct {
	log     *slog.Logger
	address string        // of a datagram socket
	rhythm  time.Duration // crid is restarted when it has not said for so long that it is alive; 0 = it is not watched
}

// managerVars are meant for crid alone: what crid runs must not speak for it, and a runtime would hand them to containers.
var managerVars = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}

// findManager reads the environment and clears it of what it has read.
func findManager(log *slog.Logger) (manager, error) {
	m := manager{log: log, address: os.Getenv("NOTIFY_SOCKET")}
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	if usec != "" && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n, err := strconv.ParseInt(usec, 10, 64)
		if err != nil || n <= 0 {
			return manager{}, fmt.Errorf("WATCHDOG_USEC=%q is no time", usec)
		}
		m.rhythm = time.Duration(n) * time.Microsecond
	}
	for _, name := range managerVars {
		if err := os.Unsetenv(name); err != nil {
			return manager{}, fmt.Errorf("clear the environment: %w", err)
		}
	}
	return m, nil
}

// say tells the manager; a manager that does not listen is nothing to stop for.
func (m manager) say(what string) {
	if m.address == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.address, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(what))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		m.log.Warn("the service manager was not told", "what", what, "err", err)
	}
}

// watched says again and again that crid is alive, as long as alive answers in time, with the status; until ctx ends.
func (m manager) watched(ctx context.Context, alive func(context.Context) error, status func() string) {
	if m.address == "" || m.rhythm == 0 {
		return
	}
	step := m.rhythm / 3 // once may be late, or lost
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, step)
		err := alive(ask)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.log.Error("crid does not answer itself; it is restarted unless that ends", "within", m.rhythm, "err", err)
		default:
			m.say(sayAlive + "\n" + sayStatus + status())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// answers returns a function that asks whoever serves the socket for its version, as a client does.
func answers(socket string) (ask func(context.Context) error, closing func() error, err error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("be a client of crid: %w", err)
	}
	client := runtime.NewRuntimeServiceClient(conn)
	return func(ctx context.Context) error {
		_, err := client.Version(ctx, &runtime.VersionRequest{}, grpc.WaitForReady(true))
		return err
	}, conn.Close, nil
}
