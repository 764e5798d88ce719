package storage

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

const (
	gunzipPipe  = 1 << 20 // bytes that lie between crid and the program
	gunzipGrace = 5 * time.Second
	nobodysID   = 65534
)

// gunzip decompresses by igzip of Intel's ISA-L where that is installed, which takes half of the processor's time, else by
// crid itself. pigz is slower than that.
func gunzip(ctx context.Context, blob *bufio.Reader) (io.ReadCloser, error) {
	program, err := exec.LookPath("igzip")
	if err != nil {
		return gzip.NewReader(blob)
	}
	g := &gunzipped{fed: make(chan struct{}), cmd: exec.CommandContext(ctx, program, "-d", "-c")}
	g.cmd.Env, g.cmd.Dir, g.cmd.WaitDelay, g.cmd.Stderr = []string{}, "/", gunzipGrace, &g.complaint
	if os.Geteuid() == 0 { // the data is a stranger's, and the program is written in C
		g.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodysID, Gid: nobodysID}}
	}
	in, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("run igzip: %w", err)
	}
	if g.out, err = g.cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("run igzip: %w", err)
	}
	for _, pipe := range []any{in, g.out} {
		if f, ok := pipe.(interface{ Fd() uintptr }); ok {
			_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, gunzipPipe) // a small one does as well
		}
	}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("run igzip: %w", err)
	}
	go func() { // ends with the blob, or with the program
		defer close(g.fed)
		_, _ = io.Copy(in, blob) // who reads what is left of the blob meets the error again
		_ = in.Close()
	}()
	return g, nil
}

// gunzipped is what the program writes.
type gunzipped struct {
	cmd       *exec.Cmd
	out       io.ReadCloser
	complaint bytes.Buffer
	fed       chan struct{} // closed when nothing reads the blob any more
	ended     bool
}

// Read tells at the end whether the program was content.
func (g *gunzipped) Read(p []byte) (int, error) {
	if g.ended {
		return 0, io.EOF
	}
	n, err := g.out.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if failed := g.end(); failed != nil {
		return 0, fmt.Errorf("igzip: %w: %s", failed, bytes.TrimSpace(g.complaint.Bytes()))
	}
	return 0, io.EOF
}

func (g *gunzipped) end() error {
	g.ended = true
	err := g.cmd.Wait()
	<-g.fed
	return err
}

// Close ends the program. It may be repeated.
func (g *gunzipped) Close() error {
	if !g.ended {
		_ = g.cmd.Process.Kill() // it may have ended
		_ = g.end()              // of what was killed
	}
	return nil
}
