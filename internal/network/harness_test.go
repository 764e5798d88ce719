package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crid/crid/test/isolate"
)

// TestMain plays a CNI plugin when libcni started the binary as one, else runs the tests in namespaces of their own,
// with an environment of which plugins must not get all.
func TestMain(m *testing.M) {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		syscall.Exit(playPlugin(command)) // not os.Exit, which lingers for a second under the race detector
	}
	isolate.Tests(func() int {
		if err := errors.Join(os.Setenv("NOTIFY_SOCKET", "/must/not/pass"), os.Setenv("CNI_STRAY", "must-not-pass")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	})
}

// call is one run of the played plugin, as it is written to its log.
type call struct {
	Plugin string
	Env    map[string]string
	Stdin  map[string]any
}

// script is what the played plugin does; it is read from the file <plugin>.json beside its binary.
type script struct {
	Fail   map[string]string `json:"fail"`   // command -> what it answers before it exits with 1
	Stderr string            `json:"stderr"` // written at every failure
	Hang   map[string]bool   `json:"hang"`   // commands that never end, nor does a child with the same pipes
	Daemon bool              `json:"daemon"` // every command leaves a child behind that keeps the pipes
	Result string            `json:"result"` // of ADD
}

// playPlugin is a CNI plugin that writes down how it was called. It does as the script beside it says.
func playPlugin(command string) int {
	dir, plugin := filepath.Split(os.Args[0])
	c := call{Plugin: plugin, Env: map[string]string{}}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		c.Env[k] = v
	}
	if err := json.NewDecoder(os.Stdin).Decode(&c.Stdin); err != nil && err != io.EOF {
		return 9
	}
	line, err := json.Marshal(c)
	if err != nil {
		return 9
	}
	log, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 9
	}
	if _, err := log.Write(append(line, '\n')); err != nil {
		return 9
	}
	var s script
	if raw, err := os.ReadFile(filepath.Join(dir, plugin+".json")); err == nil && json.Unmarshal(raw, &s) != nil {
		return 9
	}
	return s.play(command, dir)
}

func (s script) play(command, dir string) int {
	if s.Hang[command] || s.Daemon {
		child := exec.Command("sleep", "60")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if child.Start() != nil {
			return 9
		}
		pid := filepath.Join(dir, "child")
		if os.WriteFile(pid+".new", []byte(strconv.Itoa(child.Process.Pid)), 0o600) != nil || os.Rename(pid+".new", pid) != nil {
			return 9
		}
		if s.Hang[command] {
			child.Wait()
		}
	}
	if answer, ok := s.Fail[command]; ok {
		fmt.Fprint(os.Stdout, answer)
		fmt.Fprint(os.Stderr, s.Stderr)
		return 1
	}
	switch {
	case command != "ADD":
	case s.Result != "":
		fmt.Print(s.Result)
	default:
		fmt.Print(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.9.8.7/24","interface":0}]}`)
	}
	return 0
}

// plugs is a directory of played plugins and one of configuration, with a CNI that uses them.
type plugs struct {
	t    *testing.T
	bin  string
	conf string
	cni  *CNI
}

func newPlugs(t *testing.T, plugins ...string) *plugs {
	t.Helper()
	p := &plugs{t: t, bin: t.TempDir(), conf: filepath.Join(t.TempDir(), "cni", "net.d")}
	for _, name := range plugins {
		p.install(name)
	}
	p.cni = p.open()
	return p
}

// open makes another CNI on the same directories, as a restart of crid does.
func (p *plugs) open() *CNI {
	cni := New(Config{ConfDir: p.conf, BinDirs: []string{"/nonexistent", p.bin}, CacheDir: filepath.Join(p.bin, "cache")})
	cni.up = func(string) error { return nil } // no namespace is made for played plugins
	return cni
}

func (p *plugs) install(name string) {
	p.t.Helper()
	self, err := os.Executable()
	must(p.t, err)
	must(p.t, os.Symlink(self, filepath.Join(p.bin, name)))
}

func (p *plugs) script(plugin string, s script) {
	p.t.Helper()
	raw, err := json.Marshal(s)
	must(p.t, err)
	must(p.t, os.WriteFile(filepath.Join(p.bin, plugin+".json"), raw, 0o600))
}

// write puts a file into the configuration directory in one step.
func (p *plugs) write(name, content string) {
	p.t.Helper()
	must(p.t, os.MkdirAll(p.conf, 0o755))
	temp := filepath.Join(p.t.TempDir(), name)
	must(p.t, os.WriteFile(temp, []byte(content), 0o600))
	must(p.t, os.Rename(temp, filepath.Join(p.conf, name)))
}

// watch starts the CNI and stops it at the end.
func (p *plugs) watch() {
	p.t.Helper()
	must(p.t, p.cni.Watch(p.t.Context()))
}

// calls are the runs of plugins so far, as "plugin COMMAND", with their details; the log starts anew.
func (p *plugs) calls() (names []string, all []call) {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.bin, "calls"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	must(p.t, err)
	for line := range strings.Lines(string(raw)) {
		var c call
		must(p.t, json.Unmarshal([]byte(line), &c))
		names, all = append(names, c.Plugin+" "+c.Env["CNI_COMMAND"]), append(all, c)
	}
	must(p.t, os.Remove(filepath.Join(p.bin, "calls")))
	return names, all
}

// child is the pid of what the last plugin to hang, or to leave a daemon, has started.
func (p *plugs) child() int {
	p.t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.bin, "child"))
	must(p.t, err)
	pid, err := strconv.Atoi(string(raw))
	must(p.t, err)
	return pid
}

// prepare is Prepare of a plain request.
func (p *plugs) prepare(id string) Request {
	p.t.Helper()
	r, err := p.cni.Prepare(Request{ID: id, NetNS: "/nonexistent/" + id, Args: PodArgs("default", "web", "uid-1", id)})
	must(p.t, err)
	return r
}

// conflist makes a configuration list of plugins by type.
func conflist(name, version string, plugins ...string) string {
	var types []string
	for _, p := range plugins {
		types = append(types, fmt.Sprintf(`{"type":%q}`, p))
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, strings.Join(types, ","))
}

// waitFor waits until the condition holds; the CNI publishes without telling anybody, so this looks again and
// again.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error is %v; want kind %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}
