package integration

import (
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// terminal is a window in which somebody types a command.
type terminal struct {
	screen
	master, slave *os.File
	modes         unix.Termios // as they were in the beginning
}

func newTerminal(t *testing.T, columns, rows int) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil || errno != 0 {
		t.Fatal(err, errno)
	}
	w := &terminal{master: master, slave: os.NewFile(peer, "terminal")}
	w.modes = w.modesNow(t)
	w.resize(t, columns, rows)
	done := make(chan struct{})
	go func() { // ends when the last has closed the other end
		defer close(done)
		_, _ = io.Copy(&w.screen, master) // it always ends so
	}()
	t.Cleanup(func() {
		if err := w.slave.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if err := master.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *terminal) modesNow(t *testing.T) unix.Termios {
	t.Helper()
	modes, err := unix.IoctlGetTermios(int(w.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *modes
}

func (w *terminal) resize(t *testing.T, columns, rows int) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(w.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)}); err != nil {
		t.Fatal(err)
	}
}

func (w *terminal) types(t *testing.T, keys string) {
	t.Helper()
	if _, err := w.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// run begins `crid image` in the terminal; wait waits for its end, and tells its exit code. The terminal is then as it was.
func (w *terminal) run(t *testing.T, c *harness.Crid, args ...string) (wait func() int) {
	t.Helper()
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"--socket", c.Socket, "image"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.slave, w.slave, w.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() int {
		t.Helper()
		var ended *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &ended) {
			t.Fatal(err)
		}
		if w.modesNow(t) != w.modes {
			t.Errorf("the terminal is left as %+v, it was %+v", w.modesNow(t), w.modes)
		}
		return cmd.ProcessState.ExitCode()
	}
}

// back is what a drawing begins with: some rows up, and what is below is wiped away.
var back = regexp.MustCompile(`^\x1b\[(\d+)A\r\x1b\[J`)

// window plays the terminal: what is seen in the end of what was written. Lines that are wider than it take several rows, as in a
// window that was made narrow.
type window struct {
	lines []string
}

func (v *window) show(t *testing.T, text string, columns int) {
	t.Helper()
	text = strings.ReplaceAll(text, "\r\n", "\n")
	for text != "" {
		if up := back.FindStringSubmatch(text); up != nil {
			rows, _ := strconv.Atoi(up[1]) // digits they are
			for rows > 0 && len(v.lines) > 0 {
				rows -= max(1, (len(v.lines[len(v.lines)-1])+columns-1)/columns)
				v.lines = v.lines[:len(v.lines)-1]
			}
			if rows != 0 {
				t.Fatalf("a drawing begins %d rows off", rows)
			}
			text = text[len(up[0]):]
			continue
		}
		line, rest, _ := strings.Cut(text, "\n")
		if strings.ContainsAny(line, "\x1b\r") {
			t.Fatalf("this is drawn: %q", line)
		}
		v.lines, text = append(v.lines, line), rest
	}
}

// stallingSize is how large a layer is that stops, in bytes.
const stallingSize = 4 << 20

// stalling is the test registry as one whose large layers stop half-way until release is called. left is told of a client that has
// gone while it waited for one.
type stalling struct {
	address string
	resume  chan struct{}
	left    chan struct{}
	once    sync.Once
}

func stall(t *testing.T, registry string) *stalling {
	t.Helper()
	s := &stalling{resume: make(chan struct{}), left: make(chan struct{}, 1)}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	proxy.FlushInterval = -1
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodGet && r.ContentLength >= stallingSize && strings.Contains(r.Request.URL.Path, "/blobs/") {
			half := io.LimitReader(r.Body, r.ContentLength/2)
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(half, &waiting{s, r}, r.Body), r.Body}
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	t.Cleanup(s.release)
	s.address = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *stalling) release() { s.once.Do(func() { close(s.resume) }) }

// waiting gives nothing, and ends when the rest may come.
type waiting struct {
	s *stalling
	r *http.Response
}

func (w *waiting) Read([]byte) (int, error) {
	select {
	case <-w.s.resume:
		return 0, io.EOF
	case <-w.r.Request.Context().Done():
		select {
		case w.s.left <- struct{}{}:
		default: // it is told already
		}
		return 0, w.r.Request.Context().Err()
	}
}

// plainRegistry is the address of the registry with the test images.
func plainRegistry() string { return strings.TrimSuffix(harness.Ref(""), "/") }

// large is an image with a layer that stops, as the stalling registry serves it.
func large(t *testing.T, c *harness.Crid, s *stalling) (ref string) {
	t.Helper()
	content := make([]byte, stallingSize)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	ref = c.Image(nil, images.Text("large", string(content)))
	return s.address + "/" + strings.TrimPrefix(ref, harness.Ref(""))
}

func TestBarsOnATerminal(t *testing.T) {
	s := stall(t, plainRegistry())
	c := harness.Start(t, harness.Registry(s.address))
	ref := large(t, c, s)
	w, seen := newTerminal(t, 100, 24), &window{}
	wait := w.run(t, c, "pull", ref)
	eventually(t, "half a bar", func() bool {
		return strings.Contains(w.String(), "[=====") && strings.Contains(w.String(), "1 of 2 layers")
	})
	before := w.String()
	seen.show(t, before, 100)
	w.resize(t, 40, 24)
	s.release()
	if code := wait(); code != 0 {
		t.Fatalf("exit code %d\n%s", code, w.String())
	}
	id := strings.TrimSpace(well(t, c, "list", "--quiet"))
	w.await(t, id)
	seen.show(t, strings.TrimPrefix(w.String(), before), 40)
	if n := len(seen.lines); n != 4 || seen.lines[2] != "2 of 2 layers" || seen.lines[3] != id {
		t.Errorf("in the end there is seen\n%s", strings.Join(seen.lines, "\n"))
	}
	for _, line := range seen.lines[:3] {
		if len(line) >= 40 {
			t.Errorf("%q does not fit", line)
		}
	}
	archivesOnATerminal(t, c, ref, id)
	well(t, c, "rm", "--force", id)
}

// archivesOnATerminal saves the image and loads it again.
func archivesOnATerminal(t *testing.T, c *harness.Crid, ref, id string) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "saved.tar")
	for _, command := range []struct {
		args []string
		want []string // how the lines begin that are seen in the end
	}{
		{[]string{"save", "--output", archive, ref}, []string{"", "", "2 of 2 layers"}},
		{[]string{"rm", "--force", id}, []string{"removed"}},
		{[]string{"load", archive}, []string{"archive       [==============================]", ref, "", "", "2 of 2 layers", "loaded"}},
	} {
		w, seen := newTerminal(t, 100, 24), &window{}
		if code := w.run(t, c, command.args...)(); code != 0 {
			t.Fatalf("%v: exit code %d\n%s", command.args, code, w.String())
		}
		w.await(t, command.want[len(command.want)-1])
		seen.show(t, w.String(), 100)
		text := strings.Join(seen.lines, "\n")
		if len(seen.lines) != len(command.want) {
			t.Errorf("%v: in the end there is seen\n%s", command.args, text)
			continue
		}
		for i, line := range seen.lines {
			if !strings.HasPrefix(line, command.want[i]) || command.want[i] == "" && !strings.Contains(line, "[==============================]") {
				t.Errorf("%v: %q is seen in\n%s", command.args, line, text)
			}
		}
	}
}

func TestAnInterruptEndsAPull(t *testing.T) {
	s := stall(t, plainRegistry())
	c := harness.Start(t, harness.Registry(s.address))
	ref := large(t, c, s)
	w, seen := newTerminal(t, 100, 24), &window{}
	wait := w.run(t, c, "pull", ref)
	eventually(t, "half a bar", func() bool {
		return strings.Contains(w.String(), "[=====") && strings.Contains(w.String(), "1 of 2 layers")
	})
	w.types(t, "\x03")
	if code := wait(); code != 130 {
		t.Errorf("exit code %d", code)
	}
	w.await(t, "interrupted")
	seen.show(t, w.String(), 100)
	if n := len(seen.lines); n != 4 || !strings.Contains(seen.lines[3], "interrupted") {
		t.Errorf("in the end there is seen\n%s", strings.Join(seen.lines, "\n"))
	}
	select {
	case <-s.left:
	case <-c.Context().Done():
		t.Error("crid pulls on")
	}
	if all := storedImages(t, c); len(all) > 0 {
		t.Errorf("stored %v", all)
	}
	s.release()
	if code := newTerminal(t, 100, 24).run(t, c, "pull", "--quiet", ref)(); code != 0 {
		t.Errorf("pulled again: exit code %d", code)
	}
	well(t, c, "rm", ref)
}
