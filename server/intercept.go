package server

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

// gate stands before every call: it counts, logs, survives panics and gives errors their codes.
type gate struct {
	log    *slog.Logger
	steps  step.Watch    // told of every call
	calls  stats.Handler // sees every call before the gate does; nil = none
	active atomic.Int64
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, call grpc.UnaryHandler) (resp any, err error) {
	ctx, done := g.enter(ctx, info.FullMethod, req)
	defer func() {
		err = done(resp, err, recover())
		if err != nil {
			resp = nil
		}
	}()
	failpoint.Hit("server/call/came")
	resp, err = call(ctx, req)
	failpoint.Hit("server/call/done")
	return resp, err
}

func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, call grpc.StreamHandler) (err error) {
	_, done := g.enter(s.Context(), info.FullMethod, nil) // what a stream does has no steps
	defer func() { err = done(nil, err, recover()) }()
	return call(srv, s)
}

// enter notes the beginning of a call; what it returns notes the end and says what the client gets.
func (g *gate) enter(ctx context.Context, fullMethod string, req any) (within context.Context, done func(resp any, err error, panicked any) error) {
	method, start := path.Base(fullMethod), time.Now()
	g.active.Add(1)
	within, end := g.steps.Begin(ctx, step.Step{Kind: step.Call, Verb: method})
	return within, func(resp any, err error, panicked any) (answer error) {
		defer g.active.Add(-1)
		defer func() { end(outcome(answer)) }()
		attrs := append([]slog.Attr{slog.Duration("took", time.Since(start))}, identify(req, resp)...)
		if panicked != nil {
			attrs = append(attrs, slog.Any("panic", panicked), slog.String("stack", string(debug.Stack())))
			g.log.LogAttrs(ctx, slog.LevelError, method, attrs...)
			return internal(method)
		}
		err = toStatus(err)
		level := levelOf(method)
		if err != nil {
			attrs = append(attrs, slog.Any("err", err))
			level = max(level, g.gravity(ctx, err))
		}
		g.log.LogAttrs(ctx, level, method, attrs...)
		return err
	}
}

// gravity is debug where the client went away by itself, or crid does: that is no news.
func (g *gate) gravity(ctx context.Context, err error) slog.Level {
	if ctx.Err() == context.Canceled || isUnimplemented(err) || errors.Is(err, errDraining) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// levelOf is info for what changes something, debug for what only reads.
func levelOf(method string) slog.Level {
	for _, verb := range []string{"Run", "Stop", "Remove", "Create", "Start", "Pull", "Load", "Tag", "Prune", "Fsck", "Reopen", "UpdateContainer", "UpdatePod"} {
		if rest, ok := strings.CutPrefix(method, verb); ok && rest != "timeConfig" {
			return slog.LevelInfo
		}
	}
	return slog.LevelDebug
}

// identify says which objects a call is about. It knows a few getters and nothing else, so that neither
// credentials nor environments can reach the log.
func identify(req, resp any) []slog.Attr {
	var attrs []slog.Attr
	for _, message := range []any{req, resp} {
		if m, ok := message.(interface{ GetPodSandboxId() string }); ok && m.GetPodSandboxId() != "" {
			attrs = append(attrs, slog.String("pod", m.GetPodSandboxId()))
		}
		if m, ok := message.(interface{ GetContainerId() string }); ok && m.GetContainerId() != "" {
			attrs = append(attrs, slog.String("container", m.GetContainerId()))
		}
		if m, ok := message.(interface{ GetRef() string }); ok && m.GetRef() != "" {
			attrs = append(attrs, slog.String("image", m.GetRef()))
		}
		if m, ok := message.(imageRequest); ok && m.GetImage() != nil {
			attrs = append(attrs, slog.String("image", m.GetImage().GetImage()))
		}
	}
	return attrs
}
