package server

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stream"
)

// fakeStreams gives out URLs that say what they stand for.
type fakeStreams struct{}

func (fakeStreams) ExecURL(e stream.Exec) (string, error) { return fmt.Sprintf("http://x/%+v", e), nil }
func (fakeStreams) AttachURL(a stream.Attach) (string, error) {
	return fmt.Sprintf("http://x/%+v", a), nil
}
func (fakeStreams) PortForwardURL(p stream.PortForward) (string, error) {
	return fmt.Sprintf("http://x/%+v", p), nil
}

// withStates is a house with a container and a pod in each of two states.
func withStates(t *testing.T) *house {
	t.Helper()
	h := withPod(t)
	for id, state := range map[string]container.State{"runs": container.Running, "ended": container.Exited} {
		c := &fakeContainer{id: id, pod: "p"}
		c.status.State = state
		h.containers.byID[id] = c
	}
	h.pods.byID["over"] = &fakePod{id: "over", config: podConfig("over"), status: sandbox.Status{State: sandbox.NotReady}}
	return h
}

func TestStreamsAreAskedForWhole(t *testing.T) {
	h := withStates(t)
	e, err := h.runtime.Exec(t.Context(), &runtime.ExecRequest{ContainerId: "runs", Cmd: []string{"a", "b"}, Tty: true, Stdin: true})
	if err != nil || e.GetUrl() != "http://x/{Container:runs Cmd:[a b] Want:{Stdin:true Stdout:false Stderr:false TTY:true}}" {
		t.Errorf("%v, %v", e, err)
	}
	a, err := h.runtime.Attach(t.Context(), &runtime.AttachRequest{ContainerId: "runs", Stdout: true, Stderr: true})
	if err != nil || a.GetUrl() != "http://x/{Container:runs Want:{Stdin:false Stdout:true Stderr:true TTY:false}}" {
		t.Errorf("%v, %v", a, err)
	}
	p, err := h.runtime.PortForward(t.Context(), &runtime.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 65535}})
	if err != nil || p.GetUrl() != "http://x/{Pod:p Ports:[80 65535]}" {
		t.Errorf("%v, %v", p, err)
	}
}

func TestStreamsThatCannotBeAreRefused(t *testing.T) {
	h := withStates(t)
	exec := func(r *runtime.ExecRequest) error {
		_, err := h.runtime.Exec(t.Context(), r)
		return err
	}
	attach := func(r *runtime.AttachRequest) error {
		_, err := h.runtime.Attach(t.Context(), r)
		return err
	}
	forward := func(pod string, ports ...int32) error {
		_, err := h.runtime.PortForward(t.Context(), &runtime.PortForwardRequest{PodSandboxId: pod, Port: ports})
		return err
	}
	cmd := []string{"a"}
	for name, c := range map[string]struct {
		err  error
		want codes.Code
	}{
		"no command":               {exec(&runtime.ExecRequest{ContainerId: "runs", Stdout: true}), codes.InvalidArgument},
		"terminal and stderr":      {exec(&runtime.ExecRequest{ContainerId: "runs", Cmd: cmd, Tty: true, Stderr: true}), codes.InvalidArgument},
		"no stream":                {exec(&runtime.ExecRequest{ContainerId: "runs", Cmd: cmd, Tty: true}), codes.InvalidArgument},
		"exec: no id":              {exec(&runtime.ExecRequest{Cmd: cmd, Stdout: true}), codes.InvalidArgument},
		"exec: unknown":            {exec(&runtime.ExecRequest{ContainerId: "x", Cmd: cmd, Stdout: true}), codes.NotFound},
		"exec: ended":              {exec(&runtime.ExecRequest{ContainerId: "ended", Cmd: cmd, Stdout: true}), codes.FailedPrecondition},
		"attach: no stream":        {attach(&runtime.AttachRequest{ContainerId: "runs"}), codes.InvalidArgument},
		"attach: unknown":          {attach(&runtime.AttachRequest{ContainerId: "x", Stdin: true}), codes.NotFound},
		"attach: ended":            {attach(&runtime.AttachRequest{ContainerId: "ended", Stdin: true}), codes.FailedPrecondition},
		"forward: no port":         {forward("p", 0), codes.InvalidArgument},
		"forward: large port":      {forward("p", 80, 65536), codes.InvalidArgument},
		"forward: unknown":         {forward("x"), codes.NotFound},
		"forward: pod not running": {forward("over"), codes.FailedPrecondition},
	} {
		if status.Code(c.err) != c.want {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
}
