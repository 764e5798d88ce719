package server

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/admin"
)

const (
	// maxReceive bounds one request; a pod's configuration is bounded further by maxConfig.
	maxReceive = 16 << 20
	// maxSend is larger than what the kubelet takes: a list that does not fit there is the client's to
	// complain of, and crictl may ask for more.
	maxSend = 64 << 20
	// stopGrace bounds the end: calls that still run by then are cut off. The rooms need the rest of ten seconds.
	stopGrace = 7 * time.Second
	// cutGrace is how long the cutting off is waited for.
	cutGrace = 200 * time.Millisecond
)

// Serve answers calls on l until ctx ends, then stops in order: streams end first, running calls get seven
// seconds, the rest is cut off; one that does not heed that is left to the end of the process. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	options := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.gate.unary),
		grpc.ChainStreamInterceptor(s.gate.stream),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if s.gate.calls != nil {
		options = append(options, grpc.StatsHandler(s.gate.calls))
	}
	g := grpc.NewServer(options...)
	runtime.RegisterRuntimeServiceServer(g, &runtimeService{Server: s})
	runtime.RegisterImageServiceServer(g, &imageService{Server: s})
	admin.RegisterAdminServer(g, newAdminService(s))

	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // ends with GracefulStop or Stop below, by an error of l, or with the process
	select {
	case err := <-served:
		s.endStreams()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.endStreams()
	go g.GracefulStop() // ends when the calls did
	select {
	case <-served:
		return nil
	case <-time.After(s.grace):
	}
	s.log.Warn("calls still run at the end of the grace and are cut off", "grace", s.grace, "calls", s.Active())
	go g.Stop() // waited for below: in some versions of grpc it waits for a lock that GracefulStop holds
	select {
	case <-served:
	case <-time.After(cutGrace):
		s.log.Warn("calls go on after they were cut off", "calls", s.Active())
	}
	return nil
}

// Active is the number of calls in progress.
func (s *Server) Active() int64 { return s.gate.active.Load() }
