package server

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxReceive bounds one request; a pod's configuration is bounded further by maxConfig.
	maxReceive = 16 << 20
	// maxSend is larger than what the kubelet takes: a list that does not fit there is the client's to
	// complain of, and crictl may ask for more.
	maxSend = 64 << 20
	// stopGrace bounds the end: calls that still run by then are cut off. The rooms need the rest of ten seconds.
	stopGrace = 8 * time.Second
)

// Serve answers calls on l until ctx ends, then stops in order: streams end first, running calls get eight
// seconds, the rest is cut off. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.ChainUnaryInterceptor(s.gate.unary),
		grpc.ChainStreamInterceptor(s.gate.stream),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	runtime.RegisterRuntimeServiceServer(g, &runtimeService{Server: s})
	runtime.RegisterImageServiceServer(g, &imageService{Server: s})

	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // ends with GracefulStop or Stop below, or by an error of l
	select {
	case err := <-served:
		s.endStreams()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	s.endStreams()
	stopped := make(chan struct{})
	go func() { // ends when the calls did, at the latest after Stop cut them off
		g.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(stopGrace):
		s.log.Warn("calls still ran at the end of the grace and were cut off", "grace", stopGrace, "calls", s.Active())
		g.Stop()
	}
	<-served
	return nil
}

// Active is the number of calls in progress.
func (s *Server) Active() int64 { return s.gate.active.Load() }
