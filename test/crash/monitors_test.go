package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// monitored is a call that is under way when the monitor of its container is killed or stopped.
type monitored struct {
	name  string
	shell string // of the container
	call  func(ctx context.Context, m *monitorCase) error
	ready func(m *monitorCase) bool // the call has begun; nil = it is begun while the monitor is stopped
	// killed and stopped judge the call's answer.
	killed, stopped func(err error) error
}

// monitorCase is one container with the process that monitors it.
type monitorCase struct {
	*harness.Crid
	t       *testing.T
	pod     *harness.Pod
	ctr     *harness.Container
	monitor int
	mark    string // in the command line of a command of exec
}

// marks makes commands of exec differ.
var marks = 300000

func succeeds(err error) error { return err }

func fails(code codes.Code, words string) func(error) error {
	return func(err error) error {
		if status.Code(err) != code || !strings.Contains(err.Error(), words) {
			return fmt.Errorf("got %w, want %v and %q", err, code, words)
		}
		return nil
	}
}

// ends takes any answer: it has come.
func ends(error) error { return nil }

var monitoredCalls = []monitored{
	{name: "ReopenContainerLog", shell: "while :; do echo line; sleep 0.01; done",
		call:   func(ctx context.Context, m *monitorCase) error { return m.Runtime.ReopenContainerLog(ctx, m.ctr.ID) },
		killed: fails(codes.FailedPrecondition, "the monitor has ended"), stopped: fails(codes.Unavailable, "is it stopped")},
	{name: "StopContainer", shell: "trap '' TERM; touch /tmp/up; while :; do sleep 0.05; done",
		call:   func(ctx context.Context, m *monitorCase) error { return m.Runtime.StopContainer(ctx, m.ctr.ID, 1) },
		killed: succeeds, stopped: succeeds},
	{name: "RemovePodSandbox", shell: "trap '' TERM; touch /tmp/up; while :; do sleep 0.05; done",
		call:   func(ctx context.Context, m *monitorCase) error { return m.Runtime.RemovePodSandbox(ctx, m.pod.ID) },
		killed: succeeds, stopped: succeeds},
	{name: "Attach", shell: "while :; do echo line; sleep 0.01; done", call: attach,
		ready: func(*monitorCase) bool { return true }, killed: ends, stopped: ends},
	{name: "ExecSync", shell: "sleep 1000",
		call: func(ctx context.Context, m *monitorCase) error {
			_, _, err := m.Runtime.ExecSync(ctx, m.ctr.ID, []string{"sleep", m.mark}, 0)
			return err
		},
		ready: (*monitorCase).runs, killed: fails(codes.Unknown, ""), stopped: succeeds},
	{name: "Exec at a terminal", shell: "sleep 1000",
		call: func(ctx context.Context, m *monitorCase) error {
			_, err := atTerminal(ctx, m.Crid, m.ctr.ID, "sleep", m.mark)
			return err
		},
		ready: (*monitorCase).runs, killed: ends, stopped: succeeds},
}

func (m *monitorCase) runs() bool { return isolate.Running(m.t, "sleep "+m.mark) > 0 }

// attach listens to the container until there is no more, or for some time: a monitor that is stopped says nothing.
func attach(ctx context.Context, m *monitorCase) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := m.Runtime.Attach(ctx, &runtime.AttachRequest{ContainerId: m.ctr.ID, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	return stream(ctx, resp.Url, remotecommand.StreamOptions{Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)})
}

// newCase runs the container of a call.
func (call monitored) newCase(t *testing.T, c *harness.Crid) *monitorCase {
	t.Helper()
	marks++
	m := &monitorCase{Crid: c, t: t, pod: c.RunPod(), mark: fmt.Sprintf("2.%d", marks)}
	m.ctr = m.pod.Run(call.shell)
	if strings.Contains(call.shell, "/tmp/up") {
		m.ctr.Exec("while ! [ -e /tmp/up ]; do sleep 0.02; done")
	}
	files, err := filepath.Glob(filepath.Join(c.RunRoot, "*", m.ctr.ID, "monitor.pid"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the monitor's directory: %v, %v", files, err)
	}
	raw, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if m.monitor, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
		t.Fatal(err)
	}
	if call.name == "ReopenContainerLog" {
		log := m.ctr.Status().LogPath
		grows(t, log)
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *monitorCase) signal(sig syscall.Signal) {
	m.t.Helper()
	if err := syscall.Kill(m.monitor, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		m.t.Fatal(err)
	}
}

// begin makes the call once the monitor is stopped, or stops the monitor once the call has begun.
func (call monitored) begin(m *monitorCase) (answer chan error) {
	m.t.Helper()
	answer = make(chan error, 1)
	ctx := m.Context()
	begin := func() {
		go func() { answer <- call.call(ctx, m) }() // ends with the call
	}
	if call.ready == nil {
		m.signal(syscall.SIGSTOP)
		begin()
		return answer
	}
	begin()
	eventually(m.t, call.name+" to begin", func() bool { return call.ready(m) })
	m.signal(syscall.SIGSTOP)
	return answer
}

// A monitor that is killed takes its container with it, whatever was asked of that: it is told, and nothing is left.
func TestMonitorsKilledAmidCalls(t *testing.T) {
	c := harness.Start(t, harness.Quiet())
	for _, call := range monitoredCalls {
		m := call.newCase(t, c)
		answer := call.begin(m)
		<-time.After(100 * time.Millisecond) // for the call to come to what it waits for
		m.signal(syscall.SIGKILL)
		began := time.Now()
		if err := call.killed(<-answer); err != nil {
			t.Errorf("%s: %v", call.name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: the answer took %v", call.name, took)
		}
		if call.name == "RemovePodSandbox" {
			continue
		}
		if s := m.ctr.Wait(); !strings.Contains(s.Message, "its monitor ended without recording the exit") {
			t.Errorf("%s: the container ended with %d, %s: %q", call.name, s.ExitCode, s.Reason, s.Message)
		}
		if err := m.Runtime.StopContainer(m.Context(), m.ctr.ID, 1); err != nil {
			t.Errorf("%s: then stop: %v", call.name, err)
		}
		m.pod.Remove()
	}
}

// A monitor that hangs holds up what only it can do, and that not for ever; what does not need it goes on, and the
// container does once the monitor does.
func TestMonitorsHangingAmidCalls(t *testing.T) {
	c := harness.Start(t, harness.Quiet())
	cases := make([]*monitorCase, len(monitoredCalls))
	var all sync.WaitGroup
	for i, call := range monitoredCalls {
		cases[i] = call.newCase(t, c)
		answer := call.begin(cases[i])
		all.Go(func() { // ends with the call
			began := time.Now()
			if err := call.stopped(<-answer); err != nil {
				t.Errorf("%s: %v", call.name, err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("%s: the answer took %v", call.name, took)
			}
		})
	}
	all.Wait()
	for i, call := range monitoredCalls {
		m := cases[i]
		switch call.name {
		case "RemovePodSandbox":
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", m.monitor)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the monitor of the removed pod: %v", err)
			}
			continue
		case "StopContainer":
			if s := m.ctr.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED {
				t.Errorf("the stopped container is %v", s)
			}
		case "ReopenContainerLog":
			log := m.ctr.Status().LogPath
			if err := os.Rename(log+".1", log); err != nil { // as the kubelet does
				t.Fatal(err)
			}
			old := lines(t, log)
			m.signal(syscall.SIGCONT)
			eventually(t, "the log to go on", func() bool { return lines(t, log) > old })
		default:
			m.signal(syscall.SIGCONT)
			m.ctr.Exec("true")
			consistent(t, c, m.ctr)
		}
		m.pod.Remove()
	}
}
