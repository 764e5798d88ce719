package hooks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/test/golden"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// simple is a hook of /bin/true, told apart by its only argument.
func simple(mark, when string) string {
	return fmt.Sprintf(`{"version": "1.0.0", "hook": {"path": "/bin/true", "args": [%q]}, "when": %s, "stages": ["poststop"]}`, mark, when)
}

// marks are the arguments of what h adds to a container.
func marks(t *testing.T, h *Hooks, annotations map[string]string, bindMounts bool) []string {
	t.Helper()
	s := &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/web", "--serve"}}}
	if err := h.Inject(s, annotations, bindMounts); err != nil {
		t.Fatal(err)
	}
	if s.Hooks == nil {
		return nil
	}
	var all []string
	for _, hook := range s.Hooks.Poststop {
		all = append(all, hook.Args[0])
	}
	return all
}

func TestConditions(t *testing.T) {
	annotations := map[string]string{"example.com/gpu": "yes", "other": "no"}
	for _, c := range []struct {
		when  string
		binds bool
		want  bool
	}{
		{`{"always": true}`, false, true},
		{`{"always": false}`, false, false},
		{`{"always": false, "commands": [".*"]}`, false, false},
		{`{"hasBindMounts": true}`, true, true},
		{`{"hasBindMounts": true}`, false, false},
		{`{"hasBindMounts": false}`, false, false},
		{`{"annotations": {"^example\\.com/gpu$": "^yes$"}}`, false, true},
		{`{"annotations": {"^example": "^no$"}}`, false, false},
		{`{"annotations": {"gpu": "yes", "other": "no"}}`, false, true},
		{`{"annotations": {"gpu": "yes", "third": ".*"}}`, false, false},
		{`{"commands": ["^/bin/", "/web$"]}`, false, true},
		{`{"commands": ["^web$"]}`, false, false},
		{`{"always": true, "commands": ["serve"]}`, false, false},
		{`{"always": true, "hasBindMounts": true, "commands": ["web"], "annotations": {"gpu": ""}}`, true, true},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "x.json"), simple("x", c.when))
		if got := marks(t, New([]string{dir}), annotations, c.binds); (len(got) == 1) != c.want {
			t.Errorf("%s with bind mounts %v: got %v", c.when, c.binds, got)
		}
	}
}

func TestOrderPrecedenceAndChanges(t *testing.T) {
	base := t.TempDir()
	usr, etc := filepath.Join(base, "usr"), filepath.Join(base, "etc")
	h := New([]string{usr, etc})
	if got := marks(t, h, nil, false); got != nil {
		t.Errorf("without directories: %v", got)
	}
	always := `{"always": true}`
	write(t, filepath.Join(usr, "B.json"), simple("b", always))
	write(t, filepath.Join(usr, "c.json"), simple("c of usr", always))
	write(t, filepath.Join(etc, "a.json"), simple("a", always))
	write(t, filepath.Join(etc, "c.json"), simple("c of etc", always))
	write(t, filepath.Join(etc, "README"), "no hook")
	if got := marks(t, h, nil, false); !slices.Equal(got, []string{"a", "b", "c of etc"}) {
		t.Errorf("got %v", got)
	}
	write(t, filepath.Join(usr, "B.json"), simple("B", always)) // as long as before
	if err := os.Remove(filepath.Join(etc, "c.json")); err != nil {
		t.Fatal(err)
	}
	if got := marks(t, h, nil, false); !slices.Equal(got, []string{"a", "B", "c of usr"}) {
		t.Errorf("after changes: %v", got)
	}
}

func TestStages(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "x.json"), `{"version": "1.0.0", "when": {"always": true},
		"hook": {"path": "/bin/true", "args": ["true", "a"], "env": ["A=b"], "timeout": 3},
		"stages": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]}`)
	s := &specs.Spec{Hooks: &specs.Hooks{Poststart: []specs.Hook{{Path: "/first"}}}}
	if err := New([]string{dir}).Inject(s, nil, false); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "stages", s)
}

func TestFaultsNameTheFile(t *testing.T) {
	good := simple("x", `{"always": true}`)
	for _, c := range []struct{ name, text, want string }{
		{"no JSON", `{"version": `, "unexpected end"},
		{"type", strings.Replace(good, `"always": true`, `"always": "yes"`, 1), "when.always"},
		{"trailing", good + "{}", "after top-level value"},
		{"version", strings.Replace(good, "1.0.0", "0.1.0", 1), "only 1.0.0"},
		{"no stages", strings.Replace(good, `["poststop"]`, `[]`, 1), "stages"},
		{"stage", strings.Replace(good, `["poststop"]`, `["prestop"]`, 1), `"prestop"`},
		{"relative", strings.Replace(good, "/bin/true", "bin/true", 1), "hook.path"},
		{"missing program", strings.Replace(good, "/bin/true", "/bin/no-such", 1), "/bin/no-such"},
		{"no program", strings.Replace(good, "/bin/true", "/etc/passwd", 1), "no program"},
		{"timeout", strings.Replace(good, `"args"`, `"timeout": 0, "args"`, 1), "hook.timeout"},
		{"environment", strings.Replace(good, `"args"`, `"env": ["A"], "args"`, 1), "hook.env[0]"},
		{"no condition", simple("x", `{}`), "when: no condition"},
		{"annotation key", simple("x", `{"annotations": {"(": ""}}`), "when.annotations"},
		{"annotation value", simple("x", `{"annotations": {"a": "("}}`), "when.annotations[a]"},
		{"command", simple("x", `{"commands": ["("]}`), "when.commands[0]"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "x.json")
		write(t, path, c.text)
		h := New([]string{dir})
		err := h.Inject(&specs.Spec{}, nil, false)
		if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s and %q", c.name, err, path, c.want)
		}
		if again := h.Check(); again == nil || h.Fault() != again.Error() {
			t.Errorf("%s: at the second look %v, told as %q", c.name, again, h.Fault())
		}
		write(t, path, good)
		if err := h.Check(); err != nil || h.Fault() != "" {
			t.Errorf("%s: mended: %v, told as %q", c.name, err, h.Fault())
		}
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "late")
	write(t, filepath.Join(dir, "x.json"), strings.Replace(good, "/bin/true", program, 1))
	h := New([]string{dir})
	if err := h.Check(); err == nil {
		t.Error("a program that is not there")
	}
	write(t, program, "#!/bin/sh\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); err != nil || h.Fault() != "" {
		t.Errorf("its program is installed: %v, told as %q", err, h.Fault())
	}
	in := `{"version": "1.0.0", "hook": {"path": "/in/container"}, "when": {"always": true}, "stages": ["startContainer"]}`
	if _, err := parse([]byte(in)); err != nil {
		t.Errorf("a program of the container: %v", err)
	}
}

// The directories are Podman's too: what is meant for it keeps no container from being made.
func TestFilesForPodman(t *testing.T) {
	dir := t.TempDir()
	good := simple("x", `{"always": true}`)
	write(t, filepath.Join(dir, "a.json"), strings.Replace(good, `"when"`, `"comment": "of a later schema", "when"`, 1))
	write(t, filepath.Join(dir, "b.json"), strings.Replace(good, `["poststop"]`, `["precreate"]`, 1))
	write(t, filepath.Join(dir, "c.json"), strings.Replace(good, `["poststop"]`, `["precreate", "poststop"]`, 1))
	h := New([]string{dir})
	if got := marks(t, h, nil, false); !slices.Equal(got, []string{"x", "x"}) || h.Fault() != "" {
		t.Errorf("got %q, %s", got, h.Fault())
	}
	ignored := h.Ignored()
	if len(ignored) != 2 || !strings.Contains(ignored[0], filepath.Join(dir, "b.json")) || !strings.Contains(ignored[1], `"precreate"`) {
		t.Errorf("told as ignored: %q", ignored)
	}
}
