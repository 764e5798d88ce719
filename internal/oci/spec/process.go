package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// defaultPath is PATH where neither the image nor the CRI sets one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func setProcess(s *specs.Spec, in Input) error {
	args, err := processArgs(in.Config, in.Image)
	if err != nil {
		return err
	}
	dir, err := workingDir(in.Config, in.Image)
	if err != nil {
		return err
	}
	if err := checkMapped(in.User, UserMap(in.Pod.Config)); err != nil {
		return err
	}
	p := s.Process
	p.Args = args
	p.Cwd = dir
	p.Env = environment(in)
	p.Terminal = in.Config.GetTty()
	p.User = specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Additional}
	p.NoNewPrivileges = securityContext(in.Config).GetNoNewPrivs()
	p.OOMScoreAdj = oomScoreAdj(in.Config.GetLinux().GetResources().GetOomScoreAdj(), in.Host)
	return nil
}

// processArgs follows Kubernetes: a command replaces the image's entrypoint and drops its cmd, args replace
// the cmd.
func processArgs(c *runtime.ContainerConfig, image imgspec.ImageConfig) ([]string, error) {
	command, args := c.GetCommand(), c.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, fmt.Errorf("command and args are empty and image %s has neither entrypoint nor cmd: %w",
			imageName(c), errdef.Invalid)
	}
	return all, nil
}

// workingDir is the CRI's directory or else the image's. The runtime makes it when it does not exist.
func workingDir(c *runtime.ContainerConfig, image imgspec.ImageConfig) (string, error) {
	dir := c.GetWorkingDir()
	if dir == "" {
		return path.Join("/", image.WorkingDir), nil
	}
	if !path.IsAbs(dir) {
		return "", fmt.Errorf("working_dir %q is not absolute: %w", dir, errdef.Invalid)
	}
	return path.Clean(dir), nil
}

// environment joins, later ones winning: the defaults, the image's and the CRI's variables.
func environment(in Input) []string {
	env := newEnvironment("PATH=" + defaultPath)
	if in.Config.GetTty() {
		env.set("TERM=xterm")
	}
	if in.Pod.Hostname != "" {
		env.set("HOSTNAME=" + in.Pod.Hostname)
	}
	for _, v := range in.Image.Env {
		if name, _, ok := strings.Cut(v, "="); ok && name != "" { // the rest are no variables, and not every runtime takes them
			env.set(v)
		}
	}
	for _, kv := range in.Config.GetEnvs() {
		env.set(kv.GetKey() + "=" + string(kv.GetValue()))
	}
	if _, ok := env.at["HOME"]; !ok && in.User.Home != "" {
		env.set("HOME=" + in.User.Home)
	}
	return env.list
}

// variables keep the place of their first mention: with thousands of them order and speed stay as expected.
type variables struct {
	list []string
	at   map[string]int // name -> index in list
}

func newEnvironment(first ...string) *variables {
	v := &variables{at: map[string]int{}}
	for _, f := range first {
		v.set(f)
	}
	return v
}

func (v *variables) set(assignment string) {
	name, _, _ := strings.Cut(assignment, "=")
	if i, ok := v.at[name]; ok {
		v.list[i] = assignment
		return
	}
	v.at[name] = len(v.list)
	v.list = append(v.list, assignment)
}

// oomScoreAdj never goes below crid's own value where the kernel would refuse it.
func oomScoreAdj(want int64, host fact.Host) *int {
	n := int(want)
	if !host.RaiseLimits && n < host.OOMScoreAdj {
		n = host.OOMScoreAdj
	}
	return &n
}

// ExecProcess is the process of an exec in a container made from base: everything as the container's own
// process has it, its launcher included, but the command and the terminal. It shares slices with base, so neither
// may be edited.
func ExecProcess(base *specs.Spec, cmd []string, tty bool) *specs.Process {
	p := *base.Process
	p.Args = cmd
	if launched(base.Process) {
		p.Args = viaLauncher(cmd)
	}
	p.Terminal = tty
	p.ConsoleSize = nil
	if tty && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &p
}

// imageName is the image as a person named it, or else what the CRI asked for.
func imageName(c *runtime.ContainerConfig) string {
	if name := c.GetImage().GetUserSpecifiedImage(); name != "" {
		return name
	}
	return c.GetImage().GetImage()
}
