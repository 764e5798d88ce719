package integration

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/exec"

	"github.com/crid/crid/test/harness"
)

func TestExecStreams(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000")
		var stdout, stderr bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: strings.NewReader("in\n"), Stdout: &stdout, Stderr: &stderr}
		err := stream(c.Context(), t, execURL(t, c, ctr, o, "cat; echo err >&2; exit 42"), o)
		var exit exec.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 42 || stdout.String() != "in\n" || stderr.String() != "err\n" {
			t.Errorf("%v, %q, %q", err, &stdout, &stderr)
		}
		stdout.Reset()
		big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<18) // 4 MiB there and back
		o = remotecommand.StreamOptions{Stdin: bytes.NewReader(big), Stdout: &stdout}
		if err := stream(c.Context(), t, execURL(t, c, ctr, o, "cat"), o); err != nil || !bytes.Equal(stdout.Bytes(), big) {
			t.Errorf("%v, %d bytes of %d", err, stdout.Len(), len(big))
		}
		o = remotecommand.StreamOptions{Stdout: io.Discard}
		if err := stream(c.Context(), t, execURL(t, c, ctr, o, "kill -9 $$"), o); !errors.As(err, &exit) || exit.ExitStatus() != 137 {
			t.Errorf("killed: %v", err)
		}
	})
}

// sizes is a terminal whose size changes.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	if size, ok := <-s; ok {
		return &size
	}
	return nil
}

func TestExecAtATerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000")
		terminal := make(sizes, 1)
		defer close(terminal)
		terminal <- remotecommand.TerminalSize{Width: 91, Height: 31}
		o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: true}
		k := connect(t, execURL(t, c, ctr, o, `tty; echo $TERM; while read line; do case $line in size) stty size;; bye) exit 5;; esac; done`), true, terminal)
		k.screen.await(t, "/dev/pts/")
		k.screen.await(t, "xterm")
		for _, want := range []string{"31 91", "25 80"} {
			eventually(t, "the size "+want, func() bool { k.types("size\n"); return strings.Contains(k.screen.String(), want) })
			if want == "31 91" {
				terminal <- remotecommand.TerminalSize{Width: 80, Height: 25}
			}
		}
		k.types("bye\n") // and the keyboard stays open
		var exit exec.ExitError
		if err := k.wait(); !errors.As(err, &exit) || exit.ExitStatus() != 5 {
			t.Error(err)
		}
	})
}

func TestAVanishedClientTakesItsCommandAlong(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("sleep 1000")
		for _, tty := range []bool{false, true} {
			o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: tty}
			k := connect(t, execURL(t, c, ctr, o, "trap '' HUP TERM; echo begun; (setsid sleep 4441 &); sleep 4441"), tty, nil)
			k.screen.await(t, "begun")
			k.hangUp()
			eventually(t, "the end of the command", func() bool { return ctr.Exec("ps -o args | grep -c '[s]leep 4441' || true") == "0\n" })
			if err := k.wait(); err == nil {
				t.Error("the client did not vanish")
			}
		}
	})
}

// While a container is given its time to end, its commands go on; they end with it, and their clients hear of it.
func TestCommandsEndWithTheirContainer(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, tty := range []bool{false, true} {
			ctr := pod.Run("trap 'touch /told' TERM; while [ ! -e /end ]; do sleep 0.1; done", func(cfg *runtime.ContainerConfig) {
				cfg.Metadata.Name = "tty-" + strconv.FormatBool(tty)
			})
			o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Tty: tty}
			k := connect(t, execURL(t, c, ctr, o, "trap '' TERM HUP; echo begun; while read line; do echo got $line; [ $line = end ] && touch /end; done"), tty, nil)
			k.screen.await(t, "begun")
			stopped := make(chan error, 1)
			go func() { stopped <- c.Runtime.StopContainer(c.Context(), ctr.ID, 60) }() // ends with the container
			eventually(t, "the signal", func() bool { return ctr.Exec("test -e /told && echo told || true") == "told\n" })
			k.types("still\n")
			k.screen.await(t, "got still")
			k.types("end\n")
			var exit exec.ExitError
			if err := k.wait(); !errors.As(err, &exit) || exit.ExitStatus() != 137 {
				t.Errorf("tty %v: the command ended with %v", tty, err)
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if s := ctr.Status(); s.ExitCode != 0 {
				t.Errorf("the container was killed: %v", s)
			}
		}
	})
}

func TestExecByWebSocket(t *testing.T) {
	c := harness.Start(t)
	ctr := c.RunPod().Run("sleep 1000")
	o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard}
	terminal := dialWS(t, execURL(t, c, ctr, remotecommand.StreamOptions{Stdin: o.Stdin, Stdout: o.Stdout, Tty: true}, "tty; while read line; do stty size; done"))
	defer terminal.Close()
	if _, err := terminal.Write([]byte("\x04" + `{"Width":93,"Height":37}`)); err != nil {
		t.Fatal(err)
	}
	for said := ""; !strings.Contains(said, "37 93"); {
		if _, err := terminal.Write([]byte("\x00\n")); err != nil {
			t.Fatal(err)
		}
		var frame []byte
		if err := websocket.Message.Receive(terminal, &frame); err != nil {
			t.Fatalf("%v: %q", err, said)
		}
		said += string(frame[1:])
	}
	ws := dialWS(t, execURL(t, c, ctr, o, "read line; echo got $line; echo err >&2; exit 3"))
	defer ws.Close()
	if _, err := ws.Write([]byte("\x00hello\n")); err != nil {
		t.Fatal(err)
	}
	heard := map[byte]string{}
	for {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			break
		}
		heard[frame[0]] += string(frame[1:])
	}
	if heard[1] != "got hello\n" || heard[2] != "err\n" || !strings.Contains(heard[3], `"message":"3"`) {
		t.Errorf("%q", heard)
	}
}

func TestAttachByWebSocket(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, tty := range []bool{false, true} {
			ctr := pod.Run(talk, func(cfg *runtime.ContainerConfig) {
				cfg.Metadata.Name, cfg.Stdin, cfg.Tty = "tty-"+strconv.FormatBool(tty), true, tty
			})
			attached := func(line string) *websocket.Conn {
				ws := dialWS(t, attachURL(t, c, ctr, tty))
				if _, err := ws.Write([]byte("\x00" + line + "\n")); err != nil {
					t.Fatal(err)
				}
				hearWS(t, ws, 1, "got "+line)
				return ws
			}
			if err := attached("one").Close(); err != nil { // leaving does not end the container
				t.Error(err)
			}
			ws := attached("two")
			defer ws.Close()
			ctr.Stop(0)
			hearWS(t, ws, 3, `"status":"Success"`)
		}
	})
}

// talk answers every line until its stdin ends.
const talk = "while read line; do echo got $line; done; echo over; exit 4"

func TestAttachSurvivesARestart(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run(talk, func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })
		for i, restart := range []func(){func() {}, c.Restart, c.Crash} {
			restart()
			k := connect(t, attachURL(t, c, ctr, false), false, nil)
			line := "line " + strconv.Itoa(i)
			k.types(line + "\n")
			k.screen.await(t, "got "+line)
			if i > 0 && strings.Contains(k.screen.String(), "line 0") {
				t.Errorf("the past is repeated: %q", k.screen)
			}
			if i == 2 {
				break
			}
			if i == 0 {
				k.hangUp()
			} else if err := k.keyboard.Close(); err != nil { // the stdin stays, and the client goes, as in `echo | kubectl attach -i`
				t.Error(err)
			}
			if err := k.wait(); (err == nil) != (i > 0) {
				t.Errorf("the stream ended with %v", err)
			}
			if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Errorf("detaching ended the container: %v", s)
			}
		}
		ctr.Stop(0)
		if got := ctr.Text(); got != "got line 0\ngot line 1\ngot line 2\n" {
			t.Errorf("the log: %q", got)
		}
	})
}

func TestStdinOnce(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run(talk, func(cfg *runtime.ContainerConfig) { cfg.Stdin, cfg.StdinOnce = true, true })
		k := connect(t, attachURL(t, c, ctr, false), false, nil)
		k.types("x\n")
		k.screen.await(t, "got x")
		if err := k.keyboard.Close(); err != nil {
			t.Error(err)
		}
		if err := k.wait(); err != nil || k.screen.String() != "got x\nover\n" {
			t.Errorf("%v, %q", err, k.screen)
		}
		if s := ctr.Wait(); s.ExitCode != 4 {
			t.Errorf("%v", s)
		}
	})
}

func TestAttachToATerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("while read line; do [ $line = bye ] && exit 6; stty size; done", func(cfg *runtime.ContainerConfig) {
			cfg.Stdin, cfg.StdinOnce, cfg.Tty = true, true, true
		})
		terminal := make(sizes, 1)
		defer close(terminal)
		terminal <- remotecommand.TerminalSize{Width: 77, Height: 33}
		k := connect(t, attachURL(t, c, ctr, true), true, terminal)
		eventually(t, "the size", func() bool { k.types("x\n"); return strings.Contains(k.screen.String(), "33 77") })
		k.hangUp()
		if err := k.wait(); err == nil {
			t.Error("the stream ended by itself")
		}
		k = connect(t, attachURL(t, c, ctr, true), true, nil) // as `kubectl attach` after `kubectl run -it`
		k.types("bye\n")
		if err := k.wait(); err != nil || ctr.Wait().ExitCode != 6 {
			t.Errorf("%v, %v", err, ctr.Status())
		}
	})
}

func TestStreamsThatCannotBe(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	runs, created := pod.Run("sleep 1000"), pod.Create("true")
	ctx := c.Context()
	exec := func(id string, edit func(*runtime.ExecRequest)) error {
		r := &runtime.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}
		edit(r)
		_, err := c.Runtime.Exec(ctx, r)
		return err
	}
	_, attach := c.Runtime.Attach(ctx, &runtime.AttachRequest{ContainerId: created.ID, Stdout: true})
	_, forward := c.Runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: "none"})
	_, port := c.Runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: pod.ID, Port: []int32{70000}})
	for name, test := range map[string]struct {
		err  error
		want codes.Code
	}{
		"unknown":          {exec("none", func(*runtime.ExecRequest) {}), codes.NotFound},
		"not running":      {exec(created.ID, func(*runtime.ExecRequest) {}), codes.FailedPrecondition},
		"tty and stderr":   {exec(runs.ID, func(r *runtime.ExecRequest) { r.Tty, r.Stderr = true, true }), codes.InvalidArgument},
		"no stream":        {exec(runs.ID, func(r *runtime.ExecRequest) { r.Stdout = false }), codes.InvalidArgument},
		"no command":       {exec(runs.ID, func(r *runtime.ExecRequest) { r.Cmd = nil }), codes.InvalidArgument},
		"attach not begun": {attach, codes.FailedPrecondition},
		"no pod":           {forward, codes.NotFound},
		"no port":          {port, codes.InvalidArgument},
	} {
		if status.Code(test.err) != test.want {
			t.Errorf("%s: %v, want %v", name, test.err, test.want)
		}
	}
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	late := execURL(t, c, runs, o, "true")
	runs.Stop(0)
	if err := stream(ctx, t, late, o); err == nil || !strings.Contains(err.Error(), "exited") {
		t.Errorf("a container that ended meanwhile: %v", err)
	}
}

func TestStreamsOverTLS(t *testing.T) {
	dir := t.TempDir()
	config := "[streaming]\n"
	for _, name := range []string{"tls_cert", "tls_key", "tls_client_ca"} {
		config += name + " = \"" + filepath.Join(dir, name) + "\"\n"
	}
	install := func(cert, key []byte) {
		for name, content := range map[string][]byte{"tls_cert": cert, "tls_key": key, "tls_client_ca": cert} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cert, key := selfSigned(t)
	install(cert, key)
	c := harness.Start(t, harness.Config(config))
	ctr := c.RunPod().Run("sleep 1000")
	greeted := func(with rest.TLSClientConfig) error {
		var out bytes.Buffer
		o := remotecommand.StreamOptions{Stdout: &out}
		address := execURL(t, c, ctr, o, "echo hello")
		err := streamTLS(c.Context(), t, address, with, o)
		if !strings.HasPrefix(address, "https://127.0.0.1:") || (err == nil) != (out.String() == "hello\n") {
			t.Errorf("%s: %v, %q", address, err, &out)
		}
		return err
	}
	known := rest.TLSClientConfig{CAData: cert, CertData: cert, KeyData: key}
	if err := greeted(known); err != nil {
		t.Error(err)
	}
	if err := greeted(rest.TLSClientConfig{CAData: cert}); err == nil {
		t.Error("a client that is not known was served")
	}
	newCert, newKey := selfSigned(t) // as when a certificate is renewed under a crid that runs
	install(newCert, newKey)
	if err := greeted(rest.TLSClientConfig{CAData: newCert, CertData: newCert, KeyData: newKey}); err != nil {
		t.Errorf("with the new certificate: %v", err)
	}
	if err := greeted(rest.TLSClientConfig{CAData: newCert, CertData: cert, KeyData: key}); err == nil {
		t.Error("a client of the old authority was served")
	}
	if err := greeted(known); err == nil {
		t.Error("the old certificate is still shown")
	}
}

func TestStreamsEndWithTheDaemon(t *testing.T) {
	c := harness.Start(t)
	ctr := c.RunPod().Run("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })
	o := remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard}
	k := connect(t, execURL(t, c, ctr, o, "echo begun; sleep 4442"), false, nil)
	k.screen.await(t, "begun")
	a := connect(t, attachURL(t, c, ctr, false), false, nil)
	a.types("x\n")
	began := time.Now()
	if err := c.Node.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("crid took %v to stop with streams", took)
	}
	k.wait()
	a.wait()
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ctr.Exec("ps -o args | grep -c '[s]leep 4442' || true"); got != "0\n" {
		t.Errorf("%s commands live", got)
	}
}

// The figures that the harness looks for leaks after: what a stream leaves behind is found by numbers.
func TestStreamsLeaveNothing(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("n=0; while read line; do [ $line = x ] && n=$((n+1)) || echo heard $n; done", func(cfg *runtime.ContainerConfig) { cfg.Stdin = true })
		monitor := filepath.Join(c.RunRoot, "monitor", ctr.ID)
		attachOnce := func() { // to a container that says nothing
			k := connect(t, attachURL(t, c, ctr, false), false, nil)
			k.types("x\n")
			k.types("") // it is on its way
			k.hangUp()
			if err := k.wait(); err == nil {
				t.Fatal("the stream ended by itself")
			}
		}
		attachOnce()
		files, fds := names(t, monitor), names(t, filepath.Join("/proc", contents(t, monitor, "monitor.pid"), "fd"))
		for range 100 {
			attachOnce()
		}
		k := connect(t, attachURL(t, c, ctr, false), false, nil)
		words := regexp.MustCompile(`heard (9[1-9]|10[01])\n`) // who hangs up may take one along that is still on its way
		eventually(t, "the words of the clients", func() bool { k.types("tell\n"); return words.MatchString(k.screen.String()) })
		k.hangUp()
		if err := k.wait(); err == nil {
			t.Error("the stream ended by itself")
		}
		execMany(t, c, ctr)
		if now := names(t, monitor); len(now) != len(files) {
			t.Errorf("the monitor's directory has %v, had %v", now, files)
		}
		if now := names(t, filepath.Join("/proc", contents(t, monitor, "monitor.pid"), "fd")); len(now) > len(fds)+10 { // conmon has some in passing; clients would leave a hundred
			t.Errorf("the monitor holds %d descriptors, held %d", len(now), len(fds))
		}
		if got := ctr.Exec("ps -o pid | wc -l"); got != "5\n" { // the title, two shells, ps, wc
			t.Errorf("processes in the container: %s", got)
		}
	})
}

// Whoever leaves amid output, or a terminal, leaves no more behind than one who has heard nothing.
func TestLeavingAmidOutputLeavesNothing(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, tty := range []bool{false, true} {
			ctr := pod.Run("while :; do echo loud; usleep 100; done", func(cfg *runtime.ContainerConfig) {
				cfg.Metadata.Name, cfg.Stdin, cfg.Tty = "tty-"+strconv.FormatBool(tty), true, tty
			})
			attachOnce := func() {
				k := connect(t, attachURL(t, c, ctr, tty), tty, nil)
				k.screen.await(t, "loud")
				k.hangUp()
				if err := k.wait(); err == nil {
					t.Fatal("the stream ended by itself")
				}
			}
			attachOnce()
			monitor := filepath.Join(c.RunRoot, "monitor", ctr.ID)
			held := filepath.Join("/proc", contents(t, monitor, "monitor.pid"), "fd")
			files, fds := names(t, monitor), names(t, held)
			for range 20 {
				attachOnce()
			}
			if now := names(t, monitor); len(now) != len(files) {
				t.Errorf("tty %v: the monitor's directory has %v, had %v", tty, now, files)
			}
			// conmon notices at its next write that a client has gone.
			eventually(t, "the monitor to let go of its clients", func() bool { return len(names(t, held)) <= len(fds) })
		}
	})
}

// execMany runs 1000 commands, or a tenth of that with runc, which is slow: with and without input, some at terminals.
func execMany(t *testing.T, c *harness.Crid, ctr *harness.Container) {
	t.Helper()
	many := 250
	if strings.HasSuffix(t.Name(), "/runc") {
		many = 25
	}
	var clients sync.WaitGroup
	for worker := range 4 {
		clients.Go(func() {
			for i := range many {
				var out bytes.Buffer
				o, shell := remotecommand.StreamOptions{Stdout: &out, Tty: i%10 == worker}, "echo hello"
				if i%10 == 9 {
					o.Stdin, shell = strings.NewReader("hello\n"), "cat"
				}
				if err := stream(c.Context(), t, execURL(t, c, ctr, o, shell), o); err != nil || strings.TrimSpace(out.String()) != "hello" {
					t.Errorf("exec: %v, %q", err, &out)
					return
				}
			}
		})
	}
	clients.Wait()
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func contents(t *testing.T, dir, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}
