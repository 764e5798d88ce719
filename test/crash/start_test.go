package crash

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

var startScenarios = []scenario{
	{name: "the first start", set: firstStart, cases: func(trace []string) []point { return ofStart(trace, 1) }},
	{name: "a start amid life", set: startAmidLife, options: []harness.Option{moodyNetwork},
		cases: func(trace []string) []point { return ofStart(trace, 4) }},
}

// opening is how the points begin that each start passes, be there anything or not, unless it clears what was left.
var opening = []string{"crid/", "storage/", "ns/prepare/", "ns/hold/", "ns/bind/", "pause/", "state/open/", "state/reserve/"}

// ofStart picks the first hit of each point from where crid began, without what clients asked; of the points that each
// start passes, one in so many.
func ofStart(trace []string, one int) []point {
	var cases []point
	seen, opened := map[string]bool{}, 0
	for _, name := range trace[slices.Index(trace, "crid/lock/dir-made"):] {
		if seen[name] || strings.HasPrefix(name, "server/") {
			continue
		}
		seen[name] = true
		begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if slices.ContainsFunc(opening, begins) && !strings.HasSuffix(name, "/cleared") {
			if opened++; opened%one != 0 {
				continue
			}
		}
		cases = append(cases, point{name, 1})
	}
	return cases
}

// starting is the call of a start. The crid that died is started again by the matrix itself.
func starting(c *harness.Crid, first func() error) func() error {
	began := false
	return func() error {
		if began {
			return nil
		}
		began = true
		return errors.Join(first(), c.Again(c.Context()))
	}
}

// firstStart starts crid on a machine where it never was.
func firstStart(t *testing.T, c *harness.Crid) act {
	return act{
		insist: true,
		call:   starting(c, func() error { return errors.Join(c.Stop(), os.RemoveAll(c.Root()), os.RemoveAll(c.RunRoot)) }),
		after: func() {
			c.RunPod(onHost)
			c.Pull(images.Files)
		},
	}
}

// moody stands in for the plugin bridge: while the file that is named after a verb is there, ADD hangs and DEL fails.
const moody = `#!/bin/sh
if [ -e %[1]s/$CNI_COMMAND ]; then
	case $CNI_COMMAND in
	ADD) touch %[1]s/adding; exec ` + stuck + ` ;;
	DEL) echo '{"cniVersion": "1.0.0", "code": 100, "msg": "not now"}'; exit 1 ;;
	esac
fi
for dir in /opt/cni/bin /usr/lib/cni /usr/libexec/cni; do
	[ -x $dir/bridge ] && exec $dir/bridge
done
`

func moodyDir() string { return filepath.Join(isolate.Scratch(), "moody") }

// moodyNetwork makes moody the plugin of crid's network.
func moodyNetwork(o *node.Options) {
	dir := moodyDir()
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "bridge"), fmt.Appendf(nil, moody, dir), 0o755))
	if err != nil {
		panic(err)
	}
	o.Config += fmt.Sprintf("[network]\nbin_dirs = [%q, \"/opt/cni/bin\", \"/usr/lib/cni\", \"/usr/libexec/cni\"]\n", dir)
}

// mood sets or ends what moody does at a verb.
func mood(verb string, set bool) error {
	file := filepath.Join(moodyDir(), verb)
	if set {
		return os.WriteFile(file, nil, 0o600)
	}
	if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// startAmidLife starts crid where there are a pod with a container in each state, one that was stopped, the network of one
// that could not be detached, one that is half made, and what else a crash may have left.
func startAmidLife(t *testing.T, c *harness.Crid) act {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(errors.Join(mood("ADD", false), mood("DEL", false), mood("adding", false)))
	pod := c.RunPod()
	running, created, exited := pod.Run("sleep 1000"), pod.Create("sleep 1000"), pod.Run("exit 3")
	exited.Wait()
	stopped := c.RunPod(onHost)
	stopped.Stop()
	stranded := c.RunPod()
	must(mood("DEL", true))
	stranded.Stop()
	must(c.Runtime.RemovePodSandbox(c.Context(), stranded.ID))
	must(mood("ADD", true))
	half := c.PodConfig()
	ctx := c.Context()
	over := make(chan struct{})
	go func() { // ends with crid
		_, _ = c.Runtime.RunPodSandbox(ctx, half, "")
		close(over)
	}()
	eventually(t, "a plugin that hangs", func() bool { _, err := os.Stat(filepath.Join(moodyDir(), "adding")); return err == nil })
	return act{
		insist: true,
		call: starting(c, func() error {
			err := c.Kill()
			<-over
			return errors.Join(err, mood("ADD", false), mood("DEL", false), plantRemains(c))
		}),
		between: func() { consistent(t, c, running) },
		after: func() {
			works(t, pod)
			running.Exec("true")
			if s := created.Status(); s.State != runtime.ContainerState_CONTAINER_CREATED {
				t.Errorf("the created container is %v", s)
			}
			if s := exited.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 {
				t.Errorf("the container that ended with 3 is %v", s)
			}
			if s := stopped.Status(); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the stopped pod is %v", s.State)
			}
			eventually(t, "the end of the pod that was half made", func() bool { return len(named(t, c, half)) == 0 })
			created.Start()
		},
	}
}

// plantRemains leaves what a crash leaves: a record, a console's socket, crun's copy of itself and a pull that were cut short, and
// credentials that a pull had taken.
func plantRemains(c *harness.Crid) error {
	consoles, err := filepath.Glob(filepath.Join(c.RunRoot, "runtimes/*"))
	if err == nil && len(consoles) == 0 {
		err = errors.New("the runtimes have no directory")
	}
	for _, dir := range consoles {
		clone := filepath.Join(dir, "crun.Abc123")
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, ".console-cut-short"), nil, 0o600),
			os.WriteFile(clone, nil, 0o600), unix.Mount("/bin/sh", clone, "", unix.MS_BIND, ""))
	}
	for _, path := range []string{"state/pods/.tmp-cut-short", "storage/crid-scratch/cut-short"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.Root(), path), []byte("{"), 0o600))
	}
	auth := filepath.Join(c.Dir, "auth")
	return errors.Join(err, os.MkdirAll(auth, 0o700), os.WriteFile(filepath.Join(auth, ".crid-taken-"+rand.Text()+"team-0.json"), []byte("{}"), 0o600))
}
