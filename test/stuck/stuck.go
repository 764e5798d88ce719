// Package stuck makes what hangs beside a container runtime server: a runtime that hangs at the verbs that it is told, a CNI
// plugin that sleeps, a volume of which every look hangs. The program that uses it plays the runtime and the plugin itself.
// It does not know who is troubled by them.
package stuck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The names by which a program is one of those played here.
const (
	RuntimeName = "stuck-runtime"
	PluginName  = "stuck-plugin"
)

// patience is how long what hangs does so.
const patience = 10 * time.Minute

// Everything is what Hang takes for all containers.
const Everything = "*"

// Verbs are those of a runtime.
var Verbs = []string{"create", "start", "state", "kill", "delete", "exec", "update"}

// Play plays the runtime or the plugin and ends the program if it was started by the name of one. It is to be the first
// thing that a main or TestMain does.
func Play() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case RuntimeName:
		err = playRuntime()
	case PluginName:
		err = playPlugin()
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Runtime is a runtime that hangs where it is told to, and else does what a real one does.
type Runtime struct {
	Path string
	dir  string // holds a file of ids for each verb at which it hangs, and one for each time that it does
}

// NewRuntime puts the runtime before another one, in a directory of its own.
func NewRuntime(dir, real string) (Runtime, error) {
	r := Runtime{filepath.Join(dir, RuntimeName), dir}
	real, err := exec.LookPath(real)
	if err != nil {
		return r, err
	}
	return r, errors.Join(os.Symlink(real, filepath.Join(dir, "real")), becomeSelf(r.Path))
}

// becomeSelf makes path a name of this program.
func becomeSelf(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return os.Symlink(self, path)
}

// Hang lets the runtime hang at a verb for the container id, or for Everything.
func (r Runtime) Hang(verb, id string) error {
	return os.WriteFile(filepath.Join(r.dir, verb), []byte(id), 0o600)
}

// Hangs tells whether it has come to that.
func (r Runtime) Hangs(verb string) bool {
	_, err := os.Stat(filepath.Join(r.dir, verb+".hangs"))
	return err == nil
}

// Heal lets no other call of the runtime hang.
func (r Runtime) Heal() error {
	var failed error
	for _, verb := range Verbs {
		for _, name := range []string{verb, verb + ".hangs"} {
			if err := os.Remove(filepath.Join(r.dir, name)); !errors.Is(err, fs.ErrNotExist) {
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}

// playRuntime takes the first argument that is a verb for the verb and the last one for the id, as runtimes do.
func playRuntime() error {
	dir := filepath.Dir(os.Args[0])
	at := slices.IndexFunc(os.Args, func(arg string) bool { return slices.Contains(Verbs, arg) })
	if at > 0 {
		verb := filepath.Join(dir, os.Args[at])
		if id, err := os.ReadFile(verb); err == nil && slices.Contains([]string{Everything, os.Args[len(os.Args)-1]}, string(id)) {
			if err := os.WriteFile(verb+".hangs", nil, 0o600); err != nil {
				return err
			}
			<-time.After(patience)
			return errors.New("it hung long enough")
		}
	}
	return syscall.Exec(filepath.Join(dir, "real"), os.Args, os.Environ())
}

// sleepy is what the name of a pod begins with that the plugin sleeps for.
const sleepy = "sleepy"

// SleepyPod is the name of a pod for whose network the plugin sleeps.
func SleepyPod(suffix string) string { return sleepy + suffix }

// NewPlugin puts the plugin into a directory, which is to be among those where plugins are looked for. It belongs at the end
// of a chain, which it does not change.
func NewPlugin(dir string) error { return becomeSelf(filepath.Join(dir, PluginName)) }

func playPlugin() error {
	var given struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = json.Unmarshal(stdin, &given)
	}
	if err != nil || os.Getenv("CNI_COMMAND") != "ADD" {
		return err
	}
	if strings.Contains(os.Getenv("CNI_ARGS"), "K8S_POD_NAME="+sleepy) {
		<-time.After(patience)
	}
	_, err = os.Stdout.Write(given.PrevResult)
	return err
}

// Playing are the processes that play what has this name.
func Playing(name string) ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		program, _, _ := strings.Cut(string(raw), "\x00")
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && filepath.Base(program) == name {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// End kills every process that plays something, as an operator would.
func End() error {
	var failed error
	for _, name := range []string{RuntimeName, PluginName} {
		pids, err := Playing(name)
		failed = errors.Join(failed, err)
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}
