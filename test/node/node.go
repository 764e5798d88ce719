// Package node starts the programs of a one-machine cluster for the tests, the demo and the benchmarks: a crid
// on directories of its own, and a registry. It expects to run isolated (package isolate) and does not know
// what is done with them.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis"
	remote "k8s.io/cri-client/pkg"

	"github.com/crid/crid/test/isolate"
)

// startLimit is how long a program may take until it answers, on a busy machine.
const startLimit = 30 * time.Second

// Options say how a crid differs from the default of its tests.
type Options struct {
	Name     string   // of its directory below the scratch directory
	Binary   string   // crid
	Registry string   // host:port of a plain-HTTP registry; docker.io is mirrored there too
	Mirrors  []string // hosts whose images the registry has too, below a path that begins with the host
	Runtime  string   // default_runtime; empty = crid's own choice
	Config   string   // a drop-in of crid.toml
	Conflist string   // CNI network; empty = Conflist's; "none" = no network is configured
	Quiet    bool     // log only what is worth an operator's attention
	Env      []string // of crid, beside this program's
	CPUs     int      // how many processors crid and what it starts may use; 0 = all
	Slice    string   // crid is a unit of systemd, and this the slice of pods; empty = a child, with the cgroupfs driver
	Output   *os.File
}

// Node is a crid that answers, and clients for it.
type Node struct {
	Dir     string // holds root, the log and all configuration
	RunRoot string
	Socket  string
	Debug   string // the debug socket
	Cgroup  string // cgroup parent
	Runtime cri.RuntimeService
	Images  cri.ImageManagerService

	options Options
	cmd     *exec.Cmd
	exited  chan struct{} // closed when cmd has ended; then exit says how
	exit    error
}

// Start writes a configuration for a crid of its own, starts it and returns once it answers.
func Start(ctx context.Context, o Options) (*Node, error) {
	root, runroot := Places(o.Name)
	n := &Node{
		Dir: filepath.Dir(root), RunRoot: runroot, options: o,
		Cgroup: filepath.Join(isolate.CgroupParent(), o.Name),
	}
	if o.Slice != "" {
		n.Cgroup = o.Slice
	}
	n.Socket, n.Debug = filepath.Join(n.RunRoot, "crid.sock"), filepath.Join(n.RunRoot, "debug.sock")
	if err := n.configure(); err != nil {
		return nil, fmt.Errorf("configure crid: %w", err)
	}
	return n, n.Again(ctx)
}

// Places are where the crid of a name has its roots.
func Places(name string) (root, runroot string) {
	return filepath.Join(isolate.Scratch(), name, "root"), filepath.Join("/run", name)
}

// Root is crid's durable root.
func (n *Node) Root() string { return filepath.Join(n.Dir, "root") }

// ConfigFile is the path of the crid.toml that it was started with.
func (n *Node) ConfigFile() string { return filepath.Join(n.Dir, "crid.toml") }

// CNIDir is where the node's network is configured.
func (n *Node) CNIDir() string { return filepath.Join(n.Dir, "cni") }

// Leases is where the network's addresses are kept, a file each.
func (n *Node) Leases() string { return filepath.Join(n.Dir, "leases") }

// PID is crid's.
func (n *Node) PID() int {
	if n.options.Slice != "" {
		return n.unitPID()
	}
	return n.cmd.Process.Pid
}

// Again starts crid on the same directories, after Stop or Kill.
func (n *Node) Again(ctx context.Context) error {
	if n.options.Slice != "" {
		return n.startUnit(ctx)
	}
	n.cmd = exec.Command(n.options.Binary, "--config", n.ConfigFile())
	n.cmd.Stdout, n.cmd.Stderr = n.options.Output, n.options.Output
	n.cmd.Env = append(os.Environ(), n.options.Env...)
	if err := startOn(n.options.CPUs, n.cmd); err != nil {
		return fmt.Errorf("start crid: %w", err)
	}
	n.exited = make(chan struct{})
	go func() { // ends with crid
		n.exit = n.cmd.Wait()
		close(n.exited)
	}()
	if err := n.Connect(ctx); err != nil {
		return errors.Join(err, n.Kill())
	}
	return nil
}

// startOn starts a program on the first few of the processors that this one may use.
func startOn(cpus int, cmd *exec.Cmd) error {
	if cpus == 0 {
		return cmd.Start()
	}
	runtime.LockOSThread() // whose processors the program inherits
	defer runtime.UnlockOSThread()
	var own, few unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		return err
	}
	for cpu := 0; few.Count() < min(cpus, own.Count()); cpu++ {
		if own.IsSet(cpu) {
			few.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &few); err != nil {
		return err
	}
	return errors.Join(cmd.Start(), unix.SchedSetaffinity(0, &own))
}

// Connect waits until crid answers, or has ended.
func (n *Node) Connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, isolate.Patient(startLimit))
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := n.dial(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-n.exited:
			return fmt.Errorf("crid ended at once: %w", n.exit)
		case <-ctx.Done():
			return fmt.Errorf("connect to crid: %w", err)
		case <-tick.C:
		}
	}
}

// dial connects both clients once. A killed crid leaves its socket, and a child that it was forking may hold the
// socket open until it runs its own program: only an answer tells that the new crid is there.
func (n *Node) dial(ctx context.Context) error {
	conn, err := net.Dial("unix", n.Socket)
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	runtimes, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + n.Socket).
		WithConnectionTimeout(isolate.Patient(startLimit)).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return err
	}
	images, err := remote.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + n.Socket).
		WithConnectionTimeout(isolate.Patient(startLimit)).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return errors.Join(err, runtimes.Close(ctx))
	}
	n.Runtime, n.Images = runtimes, images
	return nil
}

// Stop asks crid to end and waits; its containers stay.
func (n *Node) Stop() error {
	return n.end(syscall.SIGTERM)
}

// Kill ends crid without asking it.
func (n *Node) Kill() error {
	err := n.end(syscall.SIGKILL)
	var status *exec.ExitError
	if errors.As(err, &status) {
		return nil
	}
	return err
}

func (n *Node) end(sig syscall.Signal) error {
	if n.Runtime != nil {
		n.Runtime.Close(context.Background())
	}
	if n.Images != nil {
		n.Images.Close(context.Background())
	}
	if n.options.Slice != "" {
		return n.endUnit(context.Background(), sig == syscall.SIGTERM)
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal crid: %w", err)
	}
	select {
	case <-n.exited:
		return n.exit
	case <-time.After(isolate.Patient(startLimit)):
		return fmt.Errorf("crid (pid %d) did not end within %v of %v", n.PID(), startLimit, sig)
	}
}

// Exited tells when crid has ended by itself.
func (n *Node) Exited() <-chan struct{} { return n.exited }

// Registry starts a registry from binary, on a free port of the loopback, with its data in dir. It ends with
// the isolation. More of its configuration may be in env.
func Registry(ctx context.Context, binary, dir string, env ...string) (address string, err error) {
	address, err = freePort()
	if err != nil {
		return "", err
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n", dir, address)
	name := filepath.Join(isolate.Scratch(), "registry-"+strings.TrimPrefix(address, "127.0.0.1:"))
	file := name + ".yml"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return "", fmt.Errorf("configure registry: %w", err)
	}
	cmd := exec.Command(binary, "serve", file)
	cmd.Env = slices.Concat(os.Environ(), []string{"OTEL_TRACES_EXPORTER=none"}, env)
	log, err := os.Create(name + ".log")
	if err != nil {
		return "", err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start registry: %w", err)
	}
	if err := log.Close(); err != nil {
		return "", err
	}
	return address, untilServed(ctx, "http://"+address+"/v2/")
}

// freePort is an address of the loopback that nobody serves on right now. The isolation has no other programs
// that could take it before the registry does.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// untilServed waits until url answers.
func untilServed(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, isolate.Patient(startLimit))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", url, err)
		case <-tick.C:
		}
	}
}
