package oci

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/test/bundle"
	"github.com/crid/crid/test/isolate"
)

// stream runs a shell command with s, at a terminal or not. What it returns waits for the end.
func (b box) stream(ctx context.Context, terminal bool, s Streams, shell string) (wait func() (int, error)) {
	p := bundle.Process("sh", "-c", shell)
	p.Terminal = terminal
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	go func() { // ends with the command
		code, err := b.r.Stream(ctx, b.id, Exec{Process: p, Cgroup: b.cgroup}, s)
		ended <- end{code, err}
	}()
	return func() (int, error) {
		b.t.Helper()
		select {
		case e := <-ended:
			return e.code, e.err
		case <-time.After(20 * time.Second):
			b.t.Fatalf("%s did not end", shell)
			return 0, nil
		}
	}
}

func TestStdinEndsWithTheClients(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		stdout, stderr := bundle.NewScreen(), bundle.NewScreen()
		in, typed := io.Pipe()
		wait := b.stream(t.Context(), false, Streams{Stdin: in, Stdout: stdout, Stderr: stderr}, "cat; echo over >&2; exit 3")
		for _, line := range []string{"one\n", "two\n"} {
			if _, err := io.WriteString(typed, line); err != nil {
				t.Fatal(err)
			}
			stdout.Await(t, line)
		}
		if err := typed.Close(); err != nil {
			t.Error(err)
		}
		code, err := wait()
		if err != nil || code != 3 || stdout.String() != "one\ntwo\n" || stderr.String() != "over\n" {
			t.Errorf("%d, %v, %q, %q", code, err, stdout, stderr)
		}
	})
}

func TestOpenStdinHoldsNobody(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, terminal := range []bool{false, true} {
			in, typed := io.Pipe()
			stdout, began := bundle.NewScreen(), time.Now()
			code, err := b.stream(t.Context(), terminal, Streams{Stdin: in, Stdout: stdout}, "echo done; exit 4")()
			if err != nil || code != 4 || strings.TrimSpace(stdout.String()) != "done" || time.Since(began) > 5*time.Second {
				t.Errorf("terminal %v: %d, %v, %q after %v", terminal, code, err, stdout, time.Since(began))
			}
			if err := typed.Close(); err != nil { // as the owner of the stream does
				t.Error(err)
			}
		}
	})
}

// What was typed for a command that did not read it must not hold the client's other streams.
func TestUnreadInputIsTaken(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		in, typed := io.Pipe()
		stdout := bundle.NewScreen()
		wait := b.stream(t.Context(), false, Streams{Stdin: in, Stdout: stdout}, "echo deaf; sleep 0.5")
		stdout.Await(t, "deaf")
		if _, err := io.Copy(typed, io.LimitReader(zeros{}, 4<<20)); err != nil {
			t.Error(err)
		}
		if code, err := wait(); err != nil || code != 0 {
			t.Errorf("%d, %v", code, err)
		}
		if err := typed.Close(); err != nil {
			t.Error(err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestATerminal(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		in, typed := io.Pipe()
		stdout, sizes := bundle.NewScreen(), make(chan fact.WindowSize)
		wait := b.stream(t.Context(), true, Streams{Stdin: in, Stdout: stdout, Resize: sizes},
			`echo at $(readlink /proc/self/fd/0); while read line; do case $line in size) echo now $(busybox stty size);; end) exit 5;; *) echo got $line;; esac; done`)
		stdout.Await(t, "at /dev/pts/")
		for size, want := range map[fact.WindowSize]string{{Rows: 33, Columns: 111}: "now 33 111", {Rows: 20, Columns: 50}: "now 20 50"} {
			sizes <- size
			for limit := time.Now().Add(10 * time.Second); !strings.Contains(stdout.String(), want); {
				if time.Now().After(limit) {
					t.Fatalf("%q did not appear, but %q", want, stdout)
				}
				if _, err := io.WriteString(typed, "size\n"); err != nil {
					t.Fatal(err)
				}
				select {
				case <-stdout.Wrote():
				case <-time.After(time.Second):
					t.Fatalf("nothing more after %q", stdout)
				}
			}
		}
		if _, err := io.WriteString(typed, "hello\nend\n"); err != nil {
			t.Fatal(err)
		}
		code, err := wait()
		if err != nil || code != 5 || strings.Count(stdout.String(), "hello") != 2 || !strings.Contains(stdout.String(), "got hello\r\n") {
			t.Errorf("%d, %v, %q", code, err, stdout)
		}
		if err := typed.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The size that a client tells first is in force soon, whoever starts when.
func TestAnEarlySizeOfATerminalCounts(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		sizes, stdout := make(chan fact.WindowSize, 1), bundle.NewScreen()
		sizes <- fact.WindowSize{Rows: 41, Columns: 142}
		code, err := b.stream(t.Context(), true, Streams{Stdout: stdout, Resize: sizes},
			`while [ "$(busybox stty size)" != "41 142" ]; do sleep 0.05; done`)()
		if err != nil || code != 0 {
			t.Errorf("%d, %v, %q", code, err, stdout)
		}
	})
}

func TestWhatStaysAtATerminalHoldsNobody(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		began := time.Now()
		code, err := b.stream(t.Context(), true, Streams{Stdout: bundle.NewScreen()}, "trap '' HUP; setsid sleep 4334 & sleep 1.5; exit 6")()
		if err != nil || code != 6 || time.Since(began) > 10*time.Second {
			t.Errorf("%d, %v after %v", code, err, time.Since(began))
		}
	})
}

// slow takes its time for the first piece.
type slow struct {
	bundle.Screen
	late chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.late
	return s.Screen.Write(p)
}

func TestASlowReaderMissesNothing(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, terminal := range []bool{false, true} {
			stdout := &slow{late: make(chan struct{})}
			wait := b.stream(t.Context(), terminal, Streams{Stdout: stdout}, "exec 2>/dev/null; yes | head -c 50000; sleep 4335 & exit 7")
			timer := time.AfterFunc(2500*time.Millisecond, func() { close(stdout.late) }) // far longer than output is awaited
			defer timer.Stop()
			code, err := wait()
			if got := strings.Count(stdout.String(), "y"); err != nil || code != 7 || got != 25000 {
				t.Errorf("terminal %v: %d, %v, %d lines", terminal, code, err, got)
			}
		}
	})
}

// gone is a client that reads no more.
type gone struct{ ctx context.Context }

func (g gone) Write([]byte) (int, error) {
	<-g.ctx.Done()
	return 0, context.Cause(g.ctx)
}

func TestAClientThatVanishesTakesItsCommandAlong(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, terminal := range []bool{false, true} {
			ctx, vanish := context.WithCancel(t.Context())
			in, typed := io.Pipe()
			started := bundle.NewScreen()
			wait := b.stream(ctx, terminal, Streams{Stdin: in, Stdout: started, Stderr: gone{ctx}}, "echo started; echo x >&2; (setsid sleep 4336 &); trap '' HUP TERM INT; sleep 4336; sleep 4336")
			started.Await(t, "started")
			vanish()
			if _, err := wait(); !errors.Is(err, context.Canceled) {
				t.Errorf("terminal %v: %v", terminal, err)
			}
			if n := isolate.Running(t, "sleep 4336"); n > 0 {
				t.Errorf("terminal %v: %d processes live", terminal, n)
			}
			if err := typed.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestACommandThatCannotRun(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		for _, terminal := range []bool{false, true} {
			p := bundle.Process("/no/such")
			p.Terminal = terminal
			_, err := b.r.Stream(t.Context(), b.id, Exec{Process: p, Cgroup: b.cgroup}, Streams{Stdout: bundle.NewScreen()})
			if err == nil || !strings.Contains(err.Error(), "/no/such") {
				t.Errorf("terminal %v: %v", terminal, err)
			}
		}
	})
}

func TestAReaderThatLeavesEndsAnEndlessWriter(t *testing.T) {
	each(t, func(t *testing.T, b box) {
		r, w := io.Pipe()
		wait := b.stream(t.Context(), false, Streams{Stdout: w}, "yes; true")
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := wait(); err != nil {
			t.Error(err)
		}
	})
}

// What a command writes at a terminal just before it ends is not lost.
func TestTheLastWordsAtATerminal(t *testing.T) {
	ways := map[string]int32{"crun": bySocket, "runc": byCopying}
	each(t, func(t *testing.T, b box) {
		for i := range 40 {
			stdout := bundle.NewScreen()
			code, err := b.stream(t.Context(), true, Streams{Stdout: stdout}, "echo last words; exit 8")()
			// runc leaves ends of lines to the terminal that it copies to, but tells the other a moment too late.
			text := strings.Replace(stdout.String(), "\r\r\n", "\r\n", 1)
			if err != nil || code != 8 || text != "last words\r\n" {
				t.Fatalf("%d: %d, %v, %q", i, code, err, stdout)
			}
		}
		if way := b.r.way.Load(); way != ways[b.r.cfg.Name] {
			t.Errorf("terminals come the way %d", way)
		}
		if left, err := filepath.Glob(filepath.Join(b.r.cfg.Root, ".console*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}
