package launch

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

// shownArgs is the first argument of a test binary that is to tell what it was executed with.
const shownArgs = "show"

// shown is what a command tells of itself. Bytes, since JSON knows only UTF-8.
type shown struct{ Args, Env [][]byte }

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == shownArgs {
		show()
		return
	}
	os.Exit(m.Run())
}

func show() {
	if err := json.NewEncoder(os.Stdout).Encode(shown{toBytes(os.Args), toBytes(os.Environ())}); err != nil {
		panic(err)
	}
}

func toBytes(list []string) (all [][]byte) {
	for _, s := range list {
		all = append(all, []byte(s))
	}
	return all
}

// machine runs the launchers of one architecture.
type machine struct {
	arch     string
	emulator string // none for the native one
	dir      string // with bin/tool, which is executable, and others that are not
}

// eachMachine runs a test for each architecture that can run here.
func eachMachine(t *testing.T, test func(t *testing.T, m machine)) {
	for arch, emulators := range map[string][]string{
		"amd64": {"qemu-x86_64-static", "qemu-x86_64"},
		"arm64": {"qemu-aarch64-static", "qemu-aarch64"},
	} {
		t.Run(arch, func(t *testing.T) {
			m := machine{arch: arch, dir: t.TempDir()}
			for _, name := range emulators {
				if path, err := exec.LookPath(name); err == nil {
					m.emulator = path
				}
			}
			switch {
			case arch == runtime.GOARCH:
				m.emulator = ""
			case m.emulator == "":
				t.Skipf("none of %v is installed", emulators)
			}
			m.furnish(t)
			test(t, m)
		})
	}
}

func (m machine) furnish(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "closed/tool", "", 0o644)
	m.write(t, "text/tool", "no program", 0o755)
	m.write(t, "file", "", 0o644)
	if err := os.MkdirAll(filepath.Join(m.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(m.dir, "bin/tool")); err != nil {
		t.Fatal(err)
	}
}

func (m machine) write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
		t.Fatal(err)
	}
}

// command is a launcher made by a plan, ready to run in m.dir.
func (m machine) command(t *testing.T, p Plan, args ...string) *exec.Cmd {
	t.Helper()
	raw, err := Make(m.arch, p)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "launcher")
	if err := os.WriteFile(path, raw, 0o500); err != nil {
		t.Fatal(err)
	}
	args = append([]string{path}, args...)
	cmd := exec.CommandContext(t.Context(), path)
	if m.emulator != "" {
		cmd.Path, args = m.emulator, append([]string{m.emulator}, args...)
	}
	cmd.Args, cmd.Dir, cmd.Env = args, m.dir, []string{}
	return cmd
}

// run answers what the command was executed with.
func (m machine) run(t *testing.T, cmd *exec.Cmd) (args, env []string) {
	t.Helper()
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, problems.String())
	}
	var s shown
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	for _, a := range s.Args {
		args = append(args, string(a))
	}
	for _, e := range s.Env {
		env = append(env, string(e))
	}
	return args, env
}

// order sorts environments where the order means nothing: an emulator has one of its own.
func (m machine) order(envs ...[]string) {
	for _, env := range envs {
		if m.emulator != "" {
			slices.Sort(env)
		}
	}
}

func TestVariablesAreReplacedInPlace(t *testing.T) {
	eachMachine(t, func(t *testing.T, m machine) {
		all := make([]byte, 0, 255)
		for b := 1; b < 256; b++ {
			all = append(all, byte(b))
		}
		odd, long := "ODD="+string(all), "LONG="+strings.Repeat("\xff", 100_000)
		cmd := m.command(t, Plan{Env: []string{odd, long, "EMPTY=", "ABSENT=\xff", "A=1\xfe"}}, "bin/tool", shownArgs)
		cmd.Env = []string{"FIRST=1", "ODD=", "ODDER=2", "OD=3", "A=", "LONG=", "EMPTY=was", "LAST=\u20ac"}
		_, env := m.run(t, cmd)
		want := []string{"FIRST=1", odd, "ODDER=2", "OD=3", "A=1\xfe", long, "EMPTY=", "LAST=\u20ac"}
		m.order(env, want)
		if !slices.Equal(env, want) {
			t.Errorf("got %.600q\nwant %.600q", env, want)
		}
	})
}

func TestManyVariables(t *testing.T) {
	eachMachine(t, func(t *testing.T, m machine) {
		var p Plan
		var given, want []string
		for i := range 3000 {
			given = append(given, fmt.Sprintf("V%d=", i), fmt.Sprintf("K%d=x", i))
			p.Env = append(p.Env, fmt.Sprintf("V%d=\xff%[1]d", i))
			want = append(want, p.Env[i], given[2*i+1])
		}
		cmd := m.command(t, p, "bin/tool", shownArgs)
		cmd.Env = given
		_, env := m.run(t, cmd)
		m.order(env, want)
		if !slices.Equal(env, want) {
			t.Errorf("got %.300q", env)
		}
	})
}

func TestCommandsAreFound(t *testing.T) {
	eachMachine(t, func(t *testing.T, m machine) {
		bin := filepath.Join(m.dir, "bin")
		for _, c := range []struct{ name, command, path string }{
			{"absolute", filepath.Join(bin, "tool"), ""},
			{"relative", "./bin/tool", ""},
			{"in the PATH", "tool", bin},
			{"with a slash at the end", "tool", bin + "/"},
			{"in a relative directory", "tool", "bin"},
			{"behind one that does not exist", "tool", "/no/such:/:" + bin},
			{"behind a file", "tool", m.dir + "/file:" + bin},
			{"behind one that may not be executed", "tool", m.dir + "/closed:" + bin + ":/bin"},
			{"behind a long one", "tool", "/" + strings.Repeat("x", 200) + ":" + bin},
		} {
			t.Run(c.name, func(t *testing.T) {
				args, env := m.run(t, m.command(t, Plan{Path: c.path}, c.command, shownArgs, "", "c d", "\xff"))
				if want := []string{c.command, shownArgs, "", "c d", "\xff"}; !slices.Equal(args, want) || len(env) != 0 {
					t.Errorf("executed with %q, environment %q; want %q", args, env, want)
				}
			})
		}
		t.Run("in the working directory", func(t *testing.T) {
			cmd := m.command(t, Plan{Path: "/no/such:"}, "tool", shownArgs)
			cmd.Dir = bin
			if args, _ := m.run(t, cmd); args[0] != "tool" {
				t.Errorf("executed as %q", args)
			}
		})
	})
}

func TestFailuresAreExplained(t *testing.T) {
	eachMachine(t, func(t *testing.T, m machine) {
		long := strings.Repeat("n", 5000)
		for _, c := range []struct {
			name, command, path, want string
			code                      int
		}{
			{"absent", "/no/such", "/bin", "crid: exec /no/such: not found\n", NotFound},
			{"below a file", "./file/x", "", "crid: exec ./file/x: not found\n", NotFound},
			{"not in the PATH", "nonesuch", "/usr/bin:/bin:/no/such", "crid: exec nonesuch: not found\n", NotFound},
			{"no PATH", "tool", "", "crid: exec tool: not found\n", NotFound},
			{"not executable", "closed/tool", "", "crid: exec closed/tool: permission denied\n", NotExecutable},
			{"not executable in the PATH", "tool", "closed:/bin", "crid: exec tool: permission denied\n", NotExecutable},
			{"a directory", "/", "", "crid: exec /: permission denied\n", NotExecutable},
			{"no program", "tool", "text:bin", "crid: exec tool: exec format error\n", NotExecutable},
			{"too long a name", long, "/bin", "crid: exec " + long + ": cannot be executed\n", NotExecutable},
			{"empty", "", "/no/such", "crid: exec : not found\n", NotFound},
		} {
			t.Run(c.name, func(t *testing.T) { m.fails(t, m.command(t, Plan{Path: c.path}, c.command, "x"), c.code, c.want) })
		}
		t.Run("no command", func(t *testing.T) { m.fails(t, m.command(t, Plan{}), NotFound, "") })
		t.Run("too much", func(t *testing.T) {
			huge := Plan{Env: []string{"A=" + strings.Repeat("\xff", 200_000)}}
			cmd := m.command(t, huge, "./bin/tool")
			cmd.Env = []string{"A="}
			m.fails(t, cmd, NotExecutable, "crid: exec ./bin/tool: argument list too long\n")
		})
	})
}

func (m machine) fails(t *testing.T, cmd *exec.Cmd, code int, want string) {
	t.Helper()
	var problems bytes.Buffer
	cmd.Stderr = &problems
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != code || problems.String() != want {
		t.Errorf("%v, it says %.200q; want exit code %d and %.200q", err, problems.String(), code, want)
	}
}

func TestFilesAreSoundELF(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		raw, err := Make(arch, Plan{Env: []string{"A=\xff"}, Path: "/bin"})
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if f.Type != elf.ET_EXEC || f.Machine != machine || len(raw) > 1200 {
			t.Errorf("%s: %d bytes, %+v", arch, len(raw), f.FileHeader)
		}
		if !bytes.Contains(raw, []byte("A=\xff\x00")) || !bytes.Contains(raw, []byte("/bin/\x00")) {
			t.Errorf("%s: it does not hold its plan", arch)
		}
	}
}

func TestMakeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, arch string
		plan       Plan
		kind       error
	}{
		{"an unknown architecture", "riscv64", Plan{}, errdef.Unsupported},
		{"a variable without a value", "amd64", Plan{Env: []string{"A"}}, errdef.Invalid},
		{"a variable without a name", "amd64", Plan{Env: []string{"=A"}}, errdef.Invalid},
		{"a NUL byte", "arm64", Plan{Env: []string{"A=\x00"}}, errdef.Invalid},
	} {
		if _, err := Make(c.arch, c.plan); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
