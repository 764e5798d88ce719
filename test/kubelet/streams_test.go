package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// logRotation has the kubelet rotate a log that grows past 10 KiB, and looks for every line in what it keeps.
func logRotation(t *testing.T, k *kubelet) {
	pod := k.ready(t, newPod("rotation", shell("main", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done")))
	dir := filepath.Join(k.dir, "logs", "default_rotation-"+nodeName+"_"+string(pod.UID), "main")
	var files []string
	k.wait(t, "a rotation", func() (err error) {
		if files, err = filepath.Glob(filepath.Join(dir, "0.log*")); err == nil && len(files) < 2 {
			err = fmt.Errorf("files %v", files)
		}
		return err
	})
	var text strings.Builder
	for _, file := range append(files[1:], files[0]) { // the rotated ones bear a time, the present one none
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(raw)
	}
	next := 0
	for line := range strings.Lines(text.String()) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		n, err := strconv.Atoi(strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]))
		if err != nil || n != next {
			t.Fatalf("a gap in the log: %q, want line %d", line, next)
		}
		next++
	}
	if next < 100 {
		t.Errorf("only %d lines", next)
	}
	k.remove(t, "rotation")
}

// logs are read whole, from the end, since a while, with times, and followed.
func logs(t *testing.T, k *kubelet) {
	k.ready(t, newPod("logs", shell("main", "for i in 1 2 3; do echo line $i; done; echo wrong >&2; sleep 1; "+forever)))
	k.says(t, "logs", "main", "up")
	if text := k.logs(t, "logs", "main", "tailLines=2"); text != "wrong\nup\n" {
		t.Errorf("the last two lines are %q", text)
	}
	if text := k.logs(t, "logs", "main", "timestamps=true", "limitBytes=10"); !strings.HasPrefix(text, "20") || len(text) != 10 {
		t.Errorf("the first bytes with times are %q", text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address("/containerLogs/default/logs-"+nodeName+"/main?follow=true&tailLines=1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	k.exec(t, "logs", "main", "sh", "-c", "echo later > /proc/1/fd/1")
	followed := make([]byte, len("up\nlater\n"))
	if _, err := io.ReadFull(resp.Body, followed); err != nil || string(followed) != "up\nlater\n" {
		t.Errorf("followed: %q, %v", followed, err)
	}
}

// execs run commands with input, both outputs, an exit code and a terminal.
func execs(t *testing.T, k *kubelet) {
	k.ready(t, newPod("exec", shell("main", forever)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, failed bytes.Buffer
	err := k.stream(ctx, call{"exec", "main", []string{"sh", "-c", "cat; echo wrong >&2; exit 7"}},
		remotecommand.StreamOptions{Stdin: strings.NewReader("to be told"), Stdout: &out, Stderr: &failed})
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 7 || out.String() != "to be told" || failed.String() != "wrong\n" {
		t.Errorf("exec: %v, stdout %q, stderr %q", err, out.String(), failed.String())
	}
	out.Reset()
	err = k.stream(ctx, call{"exec", "main", []string{"sh", "-c", "tty; stty size"}},
		remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: size{132, 43}.once()})
	if err != nil || !strings.Contains(out.String(), "/dev/pts/") || !strings.Contains(out.String(), "43 132") {
		t.Errorf("exec at a terminal: %v, %q", err, out.String())
	}
	resp, err := k.client.Post(address("/run/default/exec-"+nodeName+"/main?cmd=hostname"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if raw, err := io.ReadAll(resp.Body); err != nil || string(raw) != "exec-"+nodeName+"\n" {
		t.Errorf("run: %q, %v", raw, err)
	}
}

// size is that of a terminal, told once.
type size struct{ width, height uint16 }

func (s size) once() remotecommand.TerminalSizeQueue { return &sizes{left: []size{s}} }

type sizes struct{ left []size }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		return nil
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &remotecommand.TerminalSize{Width: next.width, Height: next.height}
}

// attaches joins a container that reads its input, and leaves it running.
func attaches(t *testing.T, k *kubelet) {
	k.ready(t, newPod("attach", shell("main", "echo up; while read line; do echo got $line; done; "+forever, func(c *v1.Container) { c.Stdin = true })))
	k.says(t, "attach", "main", "up")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	in, write := io.Pipe()
	read, out := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { // ends when the input ends
		err := k.stream(ctx, call{"attach", "main", nil}, remotecommand.StreamOptions{Stdin: in, Stdout: out})
		if err != nil {
			t.Error("attach:", err)
		}
		out.Close()
	})
	if _, err := io.WriteString(write, "hello\n"); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, len("got hello\n"))
	if _, err := io.ReadFull(read, answer); err != nil || string(answer) != "got hello\n" {
		t.Errorf("attached: %q, %v", answer, err)
	}
	cancelled := write.Close()
	go io.Copy(io.Discard, read) // ends with the attach
	wg.Wait()
	if cancelled != nil {
		t.Error(cancelled)
	}
	k.is(t, "attach", "still ready", isReady)
}

// portForwards gets to a port of a pod, several times over one forward.
func portForwards(t *testing.T, k *kubelet) {
	pod := k.ready(t, newPod("forward", web("main", func(c *v1.Container) { c.Args = []string{"-listen", "127.0.0.1:8080"} })))
	u, err := url.Parse(address("/portForward/default/" + pod.Name))
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var said bytes.Buffer
	forward, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{"0:8080"}, stop, ready, io.Discard, &said)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with stop
		if err := forward.ForwardPorts(); err != nil {
			t.Error("forward:", err)
		}
	})
	defer wg.Wait()
	defer close(stop)
	select {
	case <-ready:
	case <-time.After(podLimit):
		t.Fatal("the forward is not ready")
	}
	ports, err := forward.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if text := k.fetch(t, fmt.Sprintf("http://127.0.0.1:%d", ports[0].Local)); text != "hello from forward-"+nodeName+"\n" {
			t.Errorf("forwarded: %q", text)
		}
	}
	if said.Len() > 0 {
		t.Errorf("the forward complains: %s", said.String())
	}
}
