package main

import (
	"context"
	"fmt"
	"time"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/oci"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stream"
)

// openStreams serves exec, attach and port-forward. Streams are the first to end when ctx does: the rest of crid's
// end waits for nobody at a terminal.
func openStreams(ctx context.Context, r *rooms) (*stream.Server, error) {
	c := r.cfg.Streaming
	idle, err := time.ParseDuration(c.IdleTimeout)
	if err != nil {
		return nil, fmt.Errorf("streaming.idle_timeout: %w", err)
	}
	s, err := stream.Open(ctx, stream.Config{
		Address:     c.Address,
		Port:        c.Port,
		TLS:         stream.TLS{Cert: c.TLSCert, Key: c.TLSKey, ClientCA: c.TLSClientCA},
		IdleTimeout: idle,
	}, stream.Deps{Containers: streamed{r.containers}, Pods: networks{r.pods}, Log: r.log})
	if err != nil {
		return nil, err
	}
	r.onClose("streams", s.Close)
	context.AfterFunc(ctx, s.End)
	return s, nil
}

// streamed is the room of containers as streams ask for it.
type streamed struct{ m *container.Manager }

func (a streamed) Exec(ctx context.Context, id string, cmd []string, terminal bool, s stream.Streams) (int, error) {
	c, err := a.m.Get(id)
	if err != nil {
		return 0, err
	}
	return c.Stream(ctx, cmd, terminal, oci.Streams(s))
}

func (a streamed) Attach(ctx context.Context, id string, s stream.Streams) error {
	c, err := a.m.Get(id)
	if err != nil {
		return err
	}
	return c.Attach(ctx, monitor.Streams(s))
}

// networks is the room of pods as streams ask for it.
type networks struct{ m *sandbox.Manager }

func (a networks) NetNS(id string) (string, error) {
	p, err := a.m.Get(id)
	if err != nil {
		return "", err
	}
	s := p.Status()
	if s.State != sandbox.Ready {
		return "", fmt.Errorf("pod %s is %s: %w", id, s.State, errdef.WrongState)
	}
	return s.NetNS, nil
}
