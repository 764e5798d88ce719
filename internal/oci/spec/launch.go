package spec

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
)

// LauncherPath is where the root filesystem of a container with a Launch has its launcher. The name is crid's own.
const LauncherPath = "/.crid-launch"

// Launch is what the launcher of a container is made of.
type Launch struct {
	Env  []string // assignments that the launcher puts in the place of those that it is given
	Path string   // the process's PATH: the runtime looks up the launcher, the launcher the command
}

// ViaLauncher lets a launcher set those environment variables whose values are not UTF-8: config.json is JSON, and
// neither runtime lets other bytes through. s keeps these variables with an empty value, and the launcher becomes
// its command. The answer is nil, and s unchanged, where all is UTF-8. It is for the finished configuration, after
// all edits. Invalid: a name that is not UTF-8, or something else at LauncherPath.
func ViaLauncher(s *specs.Spec) (*Launch, error) {
	l := &Launch{}
	env := slices.Clone(s.Process.Env)
	for i, assignment := range env {
		if utf8.ValidString(assignment) {
			continue
		}
		name, _, ok := strings.Cut(assignment, "=")
		if !ok || !utf8.ValidString(name) {
			return nil, fmt.Errorf("environment variable %q: its name is not UTF-8: %w", assignment, errdef.Invalid)
		}
		l.Env = append(l.Env, assignment)
		env[i] = name + "="
	}
	if launched(s.Process) {
		return nil, fmt.Errorf("command %s: the name is crid's own: %w", LauncherPath, errdef.Invalid)
	}
	if len(l.Env) == 0 {
		return nil, nil
	}
	for _, m := range s.Mounts {
		if within(LauncherPath, m.Destination) {
			return nil, fmt.Errorf("mount at %s: crid needs this place for environment variables that are not UTF-8: %w",
				m.Destination, errdef.Invalid)
		}
	}
	l.Path = variable(s.Process.Env, "PATH")
	s.Process.Env = env
	s.Process.Args = viaLauncher(s.Process.Args)
	return l, nil
}

// launched tells whether a process is executed by a launcher.
func launched(p *specs.Process) bool { return len(p.Args) > 0 && p.Args[0] == LauncherPath }

func viaLauncher(args []string) []string { return append([]string{LauncherPath}, args...) }

// variable is the value that a program finds under a name.
func variable(env []string, name string) string {
	for _, assignment := range env {
		if value, ok := strings.CutPrefix(assignment, name+"="); ok {
			return value
		}
	}
	return ""
}
