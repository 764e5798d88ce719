package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// stuck is the command line of a program that was told to hang.
const stuck = "sleep 987654"

// wrapper stands in for a program. The file order may tell it, once, what to do at a verb: to be killed before or after
// the work, or to hang instead of it or after it. Besides, conmon may be killed as soon as it has written its pid file (begun), or
// once the container is created (late): its work goes on behind the process that crid started. One that hangs waits for the
// word to begin first, as conmon does, which a crid that dies before does not give.
const wrapper = `#!/bin/sh
verb=${CNI_COMMAND:-none}
for arg in "$@"; do
	case $arg in
	create|start|delete|exec|update|state) [ "$verb" = none ] && verb=$arg ;;
	--conmon-pidfile=*) verb=monitor monitor=${arg#*=} ;;
	--container-pidfile=*) container=${arg#*=} ;;
	esac
done
mode=none
[ -e %[1]s/order ] && read -r wanted what < %[1]s/order
if [ "$wanted" = "$verb" ]; then
	mode=$what
	mv %[1]s/order %[1]s/obeyed
fi
case $mode in
none) exec %[2]s "$@" ;;
before) kill -9 $$ ;;
hang) [ "$verb" != monitor ] || [ "$(head -c 1 <&"$_OCI_STARTPIPE" | wc -c)" = 1 ] || exit 1; exec ` + stuck + ` ;;
after) %[2]s "$@"; kill -9 $$ ;;
linger) %[2]s "$@"; exec ` + stuck + ` ;;
begun) %[2]s "$@"; kill -9 $(cat "$monitor") ;;
late) %[2]s "$@"; (while ! [ -s "$container" ]; do sleep 0.01; done; kill -9 $(cat "$monitor")) >/dev/null 2>&1 & ;;
esac
`

// faulty is a crid whose programs can be told to fail, and a pod that must not notice.
type faulty struct {
	*harness.Crid
	t     *testing.T
	dir   string
	other *harness.Container
}

func startFaulty(t *testing.T) *faulty {
	t.Helper()
	dir, err := os.MkdirTemp(isolate.Scratch(), "faulty-")
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{t: t, dir: dir}
	f.wrap("crun", "")
	f.wrap("runc", "")
	f.wrap("conmon", "")
	f.wrap("bridge", "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni")
	f.Crid = harness.Start(t, harness.Quiet(), harness.Runtime("crun"), harness.Config(fmt.Sprintf(
		"conmon = \"%[1]s/conmon\"\n[runtimes.crun]\npath = \"%[1]s/crun\"\n[runtimes.runc]\npath = \"%[1]s/runc\"\n[network]\nbin_dirs = [%[1]q, \"/opt/cni/bin\", \"/usr/lib/cni\", \"/usr/libexec/cni\"]", dir)))
	f.other = f.RunPod().Run("exec sleep 1000")
	f.other.Exec("until grep -q ^sleep /proc/1/cmdline; do sleep 0.01; done") // by this name it is known from now on
	return f
}

// wrap puts a wrapper before a program that is found in path, by default the environment's.
func (f *faulty) wrap(name, path string) {
	f.t.Helper()
	var real string
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); real == "" && exec.Command("test", "-x", file).Run() == nil {
			real = file
		}
	}
	if path == "" {
		var err error
		if real, err = exec.LookPath(name); err != nil {
			f.t.Fatal(err)
		}
	}
	if real == "" {
		f.t.Fatalf("%s is in none of %s", name, path)
	}
	if err := os.WriteFile(filepath.Join(f.dir, name), fmt.Appendf(nil, wrapper, f.dir, real), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// order tells the program that does verb what to do there, once.
func (f *faulty) order(verb, mode string) {
	f.t.Helper()
	err := os.Remove(filepath.Join(f.dir, "obeyed"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "order"), []byte(verb+" "+mode+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// obeyed fails the test when the program was not run.
func (f *faulty) obeyed() {
	f.t.Helper()
	if _, err := os.Stat(filepath.Join(f.dir, "obeyed")); err != nil {
		f.t.Errorf("the program was not run: %v", err)
	}
}

// unharmed looks whether the other pod goes on, and whether crid answers.
func (f *faulty) unharmed() {
	f.t.Helper()
	if s := f.other.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		f.t.Errorf("another pod's container is %v", s)
	}
	f.other.Exec("true")
}

// unstick ends the programs that hang, as an operator would.
func (f *faulty) unstick() {
	f.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")) != stuck {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			f.t.Fatal(err)
		}
	}
}

// fault is a verb of a program that crid runs, and the call that makes it do so.
type fault struct {
	verb    string
	what    string // for whom, where that is not all
	handler string // "" = crun
	modes   []string
	set     func(f *faulty, pod *harness.Pod) (call func(ctx context.Context) error)
	fails   bool // the call answers with an error when the program is killed
	final   bool // it cannot be repeated then: what it is about has ended
	alone   bool // the end of the client's patience ends the program too
}

// The modes, besides those of the wrapper: crash kills crid while the program hangs.
var allModes = []string{"before", "after", "hang", "crash"}

var faults = []fault{
	{verb: "ADD", modes: allModes, fails: true, set: func(f *faulty, _ *harness.Pod) func(context.Context) error {
		cfg := f.PodConfig()
		return func(ctx context.Context) error {
			_, err := f.Runtime.RunPodSandbox(ctx, cfg, "")
			return err
		}
	}},
	{verb: "DEL", modes: allModes, set: func(f *faulty, pod *harness.Pod) func(context.Context) error {
		return func(ctx context.Context) error { return f.Runtime.StopPodSandbox(ctx, pod.ID) }
	}},
	{verb: "monitor", modes: []string{"before", "begun", "hang", "crash"}, fails: true, set: createCall},
	{verb: "monitor", modes: []string{"late"}, set: createCall},
	{verb: "create", modes: allModes, fails: true, set: createCall},
	{verb: "create", handler: "runc", modes: []string{"after", "crash"}, fails: true, set: createCall},
	{verb: "start", modes: allModes, fails: true, final: true, set: startCall},
	{verb: "start", handler: "runc", modes: []string{"after"}, fails: true, final: true, set: startCall},
	{verb: "delete", modes: allModes, set: deleteCall},
	{verb: "delete", handler: "runc", modes: []string{"after", "crash"}, set: deleteCall},
	{verb: "exec", modes: allModes, fails: true, alone: true, set: execCall},
	{verb: "exec", handler: "runc", modes: []string{"after", "hang"}, fails: true, alone: true, set: execCall},
	{verb: "exec", what: "at a terminal", modes: allModes, fails: true, alone: true, set: terminalCall},
	{verb: "exec", what: "at a terminal", handler: "runc", modes: []string{"after", "crash"}, fails: true, alone: true, set: terminalCall},
	{verb: "update", modes: allModes, fails: true, set: updateCall},
	{verb: "update", handler: "runc", modes: []string{"after"}, fails: true, set: updateCall},
}

func createCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	cfg := pod.ContainerConfig("sleep 1000")
	f.Pull(strings.TrimPrefix(cfg.Image.Image, harness.Ref("")))
	return func(ctx context.Context) error {
		_, err := f.Runtime.CreateContainer(ctx, pod.ID, cfg, pod.Config)
		return err
	}
}

func startCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	ctr := pod.Create("sleep 1000")
	return func(ctx context.Context) error { return f.Runtime.StartContainer(ctx, ctr.ID) }
}

func deleteCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	ctr := pod.Run("sleep 1000")
	return func(ctx context.Context) error { return f.Runtime.RemoveContainer(ctx, ctr.ID) }
}

func execCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	ctr := pod.Run("sleep 1000")
	return func(ctx context.Context) error {
		_, _, err := f.Runtime.ExecSync(ctx, ctr.ID, []string{"true"}, 0)
		return err
	}
}

func terminalCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	ctr := pod.Run("sleep 1000")
	return func(ctx context.Context) error {
		screen, err := atTerminal(ctx, f.Crid, ctr.ID, "echo", "done")
		// The client takes a connection that ends for a command that does. Runc may put a second carriage return.
		if err == nil && strings.TrimSpace(screen) != "done" {
			err = fmt.Errorf("on the screen: %q", screen)
		}
		return err
	}
}

func updateCall(f *faulty, pod *harness.Pod) func(context.Context) error {
	ctr := pod.Run("sleep 1000")
	change := &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{CpuShares: 512}}
	return func(ctx context.Context) error { return f.Runtime.UpdateContainerResources(ctx, ctr.ID, change) }
}

// pod runs a pod by a handler.
func (f *faulty) pod(handler string) *harness.Pod {
	f.t.Helper()
	cfg := f.PodConfig()
	id, err := f.Runtime.RunPodSandbox(f.Context(), cfg, handler)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.Pod(id, cfg)
}

func TestForeignProgramsKilledOrHanging(t *testing.T) {
	f := startFaulty(t)
	for _, fault := range faults {
		for _, mode := range fault.modes {
			name := strings.Join([]string{fault.handler, fault.verb, fault.what, mode}, " ")
			before := f.Mark()
			call := fault.set(f, f.pod(fault.handler))
			switch mode {
			case "hang":
				f.order(fault.verb, "hang")
				f.hanging(name, fault, call)
			case "crash":
				f.order(fault.verb, "hang")
				f.crashing(name, call)
			default:
				f.order(fault.verb, mode)
				f.killed(name, fault, call)
			}
			f.obeyed()
			f.leaves(name, before)
		}
	}
}

// leaves looks whether the other pod goes on and nothing is left behind by the others.
func (f *faulty) leaves(name string, before harness.Mark) {
	f.t.Helper()
	f.unharmed()
	f.removeOthers()
	for _, left := range f.LeftSince(before) {
		f.t.Errorf("%s: left behind: %s", name, left)
	}
	if f.t.Failed() {
		f.t.Fatalf("%s was the last", name)
	}
}

// A crid that finds a container of which it is unknown whether it was started asks the runtime, which may fail, too.
func TestARuntimeKilledOrHangingWhenAskedWhetherAContainerRuns(t *testing.T) {
	f := startFaulty(t)
	for _, mode := range []string{"before", "hang"} {
		before := f.Mark()
		ctr := f.RunPod().Create("sleep 1000")
		f.order("start", "linger")
		answer := make(chan error, 1)
		ctx := f.Context()
		go func() { answer <- f.Runtime.StartContainer(ctx, ctr.ID) }() // ends with crid
		eventually(t, "a start that hangs", func() bool { return isolate.Running(t, stuck) == 1 })
		f.order("state", mode)
		f.Crash()
		if err := <-answer; err == nil {
			t.Error("the call succeeded")
		}
		if mode == "hang" {
			eventually(t, "a runtime that hangs", func() bool { return isolate.Running(t, stuck) == 1 })
			f.unharmed()
			f.unstick()
		}
		eventually(t, mode+": the container to be RUNNING", func() bool { return ctr.Status().State == runtime.ContainerState_CONTAINER_RUNNING })
		if err := f.Runtime.StartContainer(f.Context(), ctr.ID); err != nil {
			t.Errorf("%s: the call again: %v", mode, err)
		}
		ctr.Exec("true")
		f.obeyed()
		f.leaves("state "+mode, before)
	}
}

// killed plays a program that is killed at its verb.
func (f *faulty) killed(name string, fault fault, call func(context.Context) error) {
	f.t.Helper()
	began := time.Now()
	err := call(f.Context())
	if (err != nil) != fault.fails {
		f.t.Errorf("%s: %v", name, err)
	}
	if err != nil && !strings.Contains(err.Error(), "killed") {
		f.t.Errorf("%s: the error does not say what happened: %v", name, err)
	}
	if took := time.Since(began); took > soon {
		f.t.Errorf("%s: the answer took %v", name, took)
	}
	err = call(f.Context())
	if (err != nil) != fault.final {
		f.t.Errorf("%s, the call again: %v", name, err)
	}
}

// soon bounds an answer about a program that was killed, the undoing of its work included.
const soon = 10 * time.Second

// patience is how long the client of a hanging program waits.
const patience = 500 * time.Millisecond

// hanging plays a program that hangs at its verb: the client's patience ends, what it tries again joins, nobody else
// notices, and once somebody ends the program all is as if it had been killed.
func (f *faulty) hanging(name string, fault fault, call func(context.Context) error) {
	f.t.Helper()
	for try := range 2 {
		if fault.alone && try > 0 {
			break
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := call(ctx)
		<-ctx.Done() // crid may have noticed the end of the client's patience first
		cancel()
		if status.Code(err) != codes.DeadlineExceeded && !fault.alone || err == nil {
			f.t.Errorf("%s: %v", name, err)
		}
	}
	if fault.alone {
		eventually(f.t, name+": the program's end with its client", func() bool { return isolate.Running(f.t, stuck) == 0 })
	} else if n := isolate.Running(f.t, stuck); n != 1 {
		f.t.Errorf("%s: %d programs hang, of two calls that are one", name, n)
	}
	f.unharmed()
	f.unstick()
	var err error
	for range 2 { // the first may share the outcome of the program that hung
		if err = call(f.Context()); err == nil {
			break
		}
	}
	if (err != nil) != fault.final {
		f.t.Errorf("%s, the call again: %v", name, err)
	}
}

// crashing kills crid while a program hangs: the next crid has it no more, and the call succeeds when it is repeated.
func (f *faulty) crashing(name string, call func(context.Context) error) {
	f.t.Helper()
	answer := make(chan error, 1)
	ctx := f.Context()
	go func() { answer <- call(ctx) }() // ends with crid
	eventually(f.t, name+": a program that hangs", func() bool { return isolate.Running(f.t, stuck) == 1 })
	f.Crash()
	if err := <-answer; err == nil {
		f.t.Errorf("%s: the call succeeded", name)
	}
	if err := call(f.Context()); err != nil {
		f.t.Errorf("%s, the call again: %v", name, err)
	}
	eventually(f.t, name+": the end of the program that hangs", func() bool { return isolate.Running(f.t, stuck) == 0 })
}

// removeOthers removes all pods but the one that goes on.
func (f *faulty) removeOthers() {
	f.t.Helper()
	pods, err := f.Runtime.ListPodSandbox(f.Context(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, pod := range pods {
		if pod.Id == f.otherPod() {
			continue
		}
		if err := f.Runtime.RemovePodSandbox(f.Context(), pod.Id); err != nil {
			f.t.Errorf("remove pod: %v", err)
		}
	}
}

func (f *faulty) otherPod() string {
	f.t.Helper()
	list, err := f.Runtime.ListContainers(f.Context(), &runtime.ContainerFilter{Id: f.other.ID})
	if err != nil || len(list) != 1 {
		f.t.Fatalf("another pod's container: %v, %v", list, err)
	}
	return list[0].PodSandboxId
}
