package server

import (
	"context"
	"errors"
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxOutput bounds both streams of ExecSync together, in bytes: with its frame the answer stays below the 16
// MiB that the kubelet takes in one message.
const maxOutput = 16<<20 - 64<<10

// ExecResult is how a command in a container ended.
type ExecResult struct {
	ExitCode       int // 128+n when signal n ended it
	Stdout, Stderr []byte
}

// ExecSync runs a command in a container. A command that fails is an answer; one that runs into its timeout
// is an error, by which time all of it is dead.
func (s *runtimeService) ExecSync(ctx context.Context, r *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	c, err := s.getContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	result, err := c.Exec(ctx, r.GetCmd(), timeout, maxOutput)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return nil, fmt.Errorf("command timed out after %s: %w", timeout, err)
	}
	if err != nil {
		return nil, err
	}
	stdout, stderr := trim(result.Stdout, result.Stderr, maxOutput)
	return &runtime.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(result.ExitCode)}, nil
}

// trim cuts the ends of two streams so that they have at most limit bytes together. What one does not need
// of its half, the other may have.
func trim(a, b []byte, limit int) ([]byte, []byte) {
	half := limit / 2
	a = a[:min(len(a), max(half, limit-len(b)))]
	b = b[:min(len(b), limit-len(a))]
	return a, b
}
