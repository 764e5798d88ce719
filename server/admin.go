package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/crid/crid/internal/admin"
)

// checkTimeout bounds a check: reading all layers takes minutes.
const checkTimeout = time.Hour

// Admin is what the commands of crid may ask for, besides what the CRI has.
type Admin struct {
	Library Library
	Fsck    func(ctx context.Context, repair, contents bool) (report any, err error)
}

// adminService is crid's own service, beside the CRI's.
type adminService struct {
	admin.UnimplementedAdminServer
	*Server
	checks chan struct{} // holds one while somebody checks: two that repair would report each other's doing
}

func newAdminService(s *Server) *adminService {
	return &adminService{Server: s, checks: make(chan struct{}, 1)}
}

// Fsck answers with the report as JSON, under the names that the command shows it with.
func (s *adminService) Fsck(ctx context.Context, r *admin.FsckRequest) (*admin.FsckResponse, error) {
	ctx, cancel := s.untilEnding(ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, checkTimeout)
	defer stop()
	select {
	case s.checks <- struct{}{}:
		defer func() { <-s.checks }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	report, err := s.admin.Fsck(ctx, r.GetRepair(), r.GetContents())
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(report)
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	return &admin.FsckResponse{Report: raw}, nil
}

// untilEnding is ctx until crid is told to end: what may last does not hold that up. cancel must be called.
func (s *Server) untilEnding(ctx context.Context) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	go func() { // ends with ctx
		select {
		case <-s.ending:
			end(errDraining)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { end(nil) }
}
