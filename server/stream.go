package server

import (
	"context"
	"fmt"
	"math"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stream"
)

// Streams gives out the URLs at which clients get what they asked for; *stream.Server does.
type Streams interface {
	ExecURL(e stream.Exec) (string, error)
	AttachURL(a stream.Attach) (string, error)
	PortForwardURL(p stream.PortForward) (string, error)
}

// Exec answers with a URL at which the client connects itself to a command.
func (s *runtimeService) Exec(_ context.Context, r *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	want, err := wanted(r)
	if err != nil {
		return nil, err
	}
	id, err := s.runningContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.streams.ExecURL(stream.Exec{Container: id, Cmd: r.GetCmd(), Want: want})
	return &runtime.ExecResponse{Url: url}, err
}

// Attach answers with a URL at which the client connects itself to a container's main process.
func (s *runtimeService) Attach(_ context.Context, r *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	want, err := wanted(r)
	if err != nil {
		return nil, err
	}
	id, err := s.runningContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.streams.AttachURL(stream.Attach{Container: id, Want: want})
	return &runtime.AttachResponse{Url: url}, err
}

// PortForward answers with a URL at which the client connects itself to ports of a pod.
func (s *runtimeService) PortForward(_ context.Context, r *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	for _, port := range r.GetPort() {
		if port < 1 || port > math.MaxUint16 {
			return nil, fmt.Errorf("port: %d is no port: %w", port, errdef.Invalid)
		}
	}
	pod, err := s.getPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if state := pod.Status().State; state != sandbox.Ready {
		return nil, fmt.Errorf("forward ports of pod %s: it is %s: %w", pod.ID(), state, errdef.WrongState)
	}
	url, err := s.streams.PortForwardURL(stream.PortForward{Pod: pod.ID(), Ports: r.GetPort()})
	return &runtime.PortForwardResponse{Url: url}, err
}

// wanted says which streams a client wants.
func wanted(r interface {
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}) (stream.Want, error) {
	w := stream.Want{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
	switch {
	case w.TTY && w.Stderr:
		return w, fmt.Errorf("tty and stderr: a terminal has one output, ask for stdout: %w", errdef.Invalid)
	case !w.Stdin && !w.Stdout && !w.Stderr:
		return w, fmt.Errorf("stdin, stdout, stderr: ask for one of them at least: %w", errdef.Invalid)
	}
	return w, nil
}

// runningContainer returns the whole id of a container that runs.
func (s *Server) runningContainer(id string) (string, error) {
	c, err := s.getContainer(id)
	if err != nil {
		return "", err
	}
	if state := c.Status().State; state != container.Running {
		return "", fmt.Errorf("container %s: it is %s: %w", c.ID(), state, errdef.WrongState)
	}
	return c.ID(), nil
}
