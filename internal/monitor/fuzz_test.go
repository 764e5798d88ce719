package monitor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzStat reads any bytes as /proc/PID/stat, in which a process chooses its own name.
func FuzzStat(f *testing.F) {
	self, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add(bytes.Replace(self, []byte("("), []byte("(a) S 1 \n) Z 2 ("), 1))
	f.Add([]byte(")"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, raw []byte) {
		// Whatever stands before the last parenthesis says nothing.
		s, err := parseStat(raw)
		again, errAgain := parseStat(append([]byte("1 (x) Z 9 9 ) "), raw...))
		if bytes.ContainsRune(raw, ')') && (s != again || (err == nil) != (errAgain == nil)) {
			t.Errorf("%+v, %v became %+v, %v", s, err, again, errAgain)
		}
	})
}

// FuzzExitRecord reads any bytes as an exit record: a code that no process can have is none.
func FuzzExitRecord(f *testing.F) {
	for _, s := range []string{"0", "137", "-1", "", "256", "999999999999999999999", "1\n", "0x1", "+3", "\x00"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	l := New(Config{Dir: dir, ExitDir: dir}, nil)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, "a"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if exit, found := l.recorded("a"); found && (exit.Code < 0 || exit.Code > 255) {
			t.Errorf("%q is the code %d", raw, exit.Code)
		}
	})
}

// FuzzCreated reads any bytes as a monitor's answer to the runtime's create, and as what it had to say.
func FuzzCreated(f *testing.F) {
	for _, s := range []string{`{"data":42}` + "\n", `{"data":-1,"message":"no"}`, `{"data":0}`, "", "not json\n", `{"data":"x"}`, `{"data":1e99}`} {
		f.Add([]byte(s), []byte("[conmon:e]: no\n\n"))
	}
	f.Fuzz(func(t *testing.T, answer, said []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends when all is written, or with the reader
			_, _ = w.Write(answer)
			_ = w.Close()
		}()
		b := &birth{sync: r}
		b.output.Write(said)
		pid, err := b.created(t.Context())
		if (pid > 0) == (err != nil) || err != nil && err.Error() == "" {
			t.Errorf("pid %d, error %v", pid, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzPackets sends any packet as a monitor does to those who are attached: what it holds arrives as it is, at one of
// the two streams.
func FuzzPackets(f *testing.F) {
	f.Add([]byte("\x02out"), []byte("\x03err"))
	f.Add([]byte{2}, []byte{0xff, 1, 2})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		ours, theirs := packetPair(t)
		l := &listener{packets: make(chan packet, kept), left: t.Context().Done(), dropped: make(chan struct{})}
		h := &hub{listeners: []*listener{l}}
		h.link = &link{conn: ours, ended: make(chan struct{})}
		var out, errs, wantOut, wantErrs bytes.Buffer
		for _, p := range [][]byte{first, second} {
			if len(p) == 0 || len(p) > maxPacket {
				continue // ends the connection; conmon sends no longer ones
			}
			if _, err := theirs.Write(p); err != nil {
				t.Fatal(err)
			}
			into := &wantOut
			if p[0] == fromStderr {
				into = &wantErrs
			}
			into.Write(p[1:])
		}
		if err := theirs.Close(); err != nil {
			t.Error(err)
		}
		h.read(h.link, t.Context().Done())
		if err := l.show(context.Background(), Streams{Stdout: &out, Stderr: &errs}); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(out.Bytes(), wantOut.Bytes()) || !bytes.Equal(errs.Bytes(), wantErrs.Bytes()) {
			t.Errorf("stdout %q, stderr %q; want %q and %q", out.Bytes(), errs.Bytes(), wantOut.Bytes(), wantErrs.Bytes())
		}
	})
}

// packetPair is a connection that keeps packets apart, and the other end of it.
func packetPair(t *testing.T) (*net.UnixConn, io.WriteCloser) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "packets")
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn), os.NewFile(uintptr(fds[1]), "monitor")
}
