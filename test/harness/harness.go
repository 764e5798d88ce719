// Package harness gives an integration test a real crid with a real registry, and asserts at its end that
// nothing is left: processes, mounts, namespaces, links, cgroups, leases, directories, goroutines, fds.
package harness

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

// binDir, in the environment, is where `make test` built crid, registry and web; default bin/ of the module.
const binDir = "CRID_BIN"

// callLimit bounds each call of a test, so that a hanging crid fails one test and not the run.
const callLimit = time.Minute

// registry is the address of the registry that Main started; it holds test/images.
var registry string

// Main is the body of a TestMain: it runs the tests isolated, with a registry that holds the test images.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "integration tests are left out: they need root")
		if os.Getenv(isolate.DemandRoot) == "1" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	isolate.Run(withImages(m))
}

// MainOnHost is Main for tests of what only a host of their own has.
func MainOnHost(m *testing.M) { isolate.OnHost(withImages(m)) }

func withImages(m *testing.M) func() int {
	return func() int {
		if err := serveImages(); err != nil {
			fmt.Fprintln(os.Stderr, "integration tests:", err)
			return 1
		}
		return m.Run()
	}
}

func serveImages() error {
	ctx, cancel := context.WithTimeout(context.Background(), isolate.Patient(2*time.Minute))
	defer cancel()
	var err error
	if registry, err = node.Registry(ctx, Binary("registry"), Images()); err != nil {
		return err
	}
	return images.Builder{Web: Binary("web")}.Push(ctx, registry)
}

// Binary is the path of one of the programs that `make build-test` builds.
func Binary(name string) string {
	dir := os.Getenv(binDir)
	if dir == "" {
		dir = moduleRoot() + "/bin"
	}
	return filepath.Join(dir, name)
}

func moduleRoot() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// Images is the data directory of the registry with the test images.
func Images() string { return filepath.Join(isolate.Scratch(), "registry") }

// Ref is the reference under which the registry serves one of the images of package images.
func Ref(image string) string { return registry + "/" + image }

// Crid is a running crid and what a test needs to talk to it.
type Crid struct {
	*node.Node
	t      *testing.T
	log    string
	before snapshot
	onHost bool // not isolated
}

// Option changes how Start starts crid.
type Option func(*node.Options)

// Runtime makes name the default handler.
func Runtime(name string) Option { return func(o *node.Options) { o.Runtime = name } }

// Config adds lines to a drop-in of crid.toml.
func Config(lines string) Option { return func(o *node.Options) { o.Config += lines + "\n" } }

// Registry makes address the registry behind the mirrors instead of the one with the test images.
func Registry(address string) Option { return func(o *node.Options) { o.Registry = address } }

// Mirrors lets pulls from hosts go to the registry, below a path that begins with the host's name.
func Mirrors(hosts ...string) Option { return func(o *node.Options) { o.Mirrors = hosts } }

// Quiet logs warnings and errors only.
func Quiet() Option { return func(o *node.Options) { o.Quiet = true } }

// CPUs lets crid and what it starts use a few processors only.
func CPUs(n int) Option { return func(o *node.Options) { o.CPUs = n } }

// Program starts another binary than bin/crid, with more in its environment.
func Program(binary string, env ...string) Option {
	return func(o *node.Options) { o.Binary, o.Env = binary, append(o.Env, env...) }
}

// Serve serves the data directory of a registry and returns its address. More of the configuration may be in env.
func Serve(t *testing.T, data string, env ...string) string {
	t.Helper()
	address, err := node.Registry(t.Context(), Binary("registry"), data, env...)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// Conflist replaces the CNI network; node.NoNetwork leaves none.
func Conflist(json string) Option { return func(o *node.Options) { o.Conflist = json } }

// Slice makes crid a unit of systemd with the systemd driver, whose pods are in the slice.
func Slice(name string) Option { return func(o *node.Options) { o.Slice = name } }

// Start starts a crid for t. When t ends, its pods are removed, crid is stopped, and whatever is left behind
// fails t. crid's log is shown when t failed.
func Start(t *testing.T, options ...Option) *Crid {
	t.Helper()
	o := node.Options{Name: shortName(t), Binary: Binary("crid"), Registry: registry}
	for _, option := range options {
		option(&o)
	}
	c := &Crid{t: t, log: filepath.Join(isolate.Scratch(), o.Name+".log"), before: snap(t, isolate.CgroupParent()), onHost: o.Slice != ""}
	output, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	o.Output = output
	t.Cleanup(func() { c.showLog(output) })
	if c.Node, err = node.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	c.before.counts = c.counts()
	t.Cleanup(c.end)
	return c
}

// For is the same crid for a test within the one that it was started for.
func (c *Crid) For(t *testing.T) *Crid {
	within := *c
	within.t = t
	return &within
}

// shortName makes a name of a test that fits a link name (15 bytes) and a socket path.
func shortName(t *testing.T) string {
	sum := uint32(2166136261) // FNV-1a: short and different for different tests
	for _, b := range []byte(t.Name()) {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return fmt.Sprintf("t%08x", sum)
}

// Context is bounded by the limit of one call.
func (c *Crid) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), isolate.Patient(callLimit))
	c.t.Cleanup(cancel)
	return ctx
}

// Client is a client on a connection of its own, which outlives crid until t ends.
func (c *Crid) Client() runtime.RuntimeServiceClient {
	c.t.Helper()
	return runtime.NewRuntimeServiceClient(c.Connection())
}

// ImageClient is such a client for images.
func (c *Crid) ImageClient() runtime.ImageServiceClient {
	c.t.Helper()
	return runtime.NewImageServiceClient(c.Connection())
}

// Connection is a connection of its own, which outlives crid until t ends.
func (c *Crid) Connection() *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return conn
}

// ExecSync runs a command and returns the whole answer, exit code and streams apart.
func (c *Crid) ExecSync(r *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	c.t.Helper()
	return c.Client().ExecSync(c.Context(), r)
}

// Restart stops crid and starts it again on the same directories.
func (c *Crid) Restart() {
	c.t.Helper()
	if err := c.Node.Stop(); err != nil {
		c.t.Fatal("stop crid:", err)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		c.t.Fatal("start crid again:", err)
	}
}

// Crash kills crid and starts it again on the same directories.
func (c *Crid) Crash() {
	c.t.Helper()
	if err := c.Node.Kill(); err != nil {
		c.t.Fatal("kill crid:", err)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		c.t.Fatal("start crid again:", err)
	}
}

// Log is what crid logged so far.
func (c *Crid) Log() string {
	c.t.Helper()
	raw, err := os.ReadFile(c.log)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(raw)
}

func (c *Crid) showLog(output io.Closer) {
	if err := output.Close(); err != nil {
		c.t.Error(err)
	}
	if c.t.Failed() {
		lines := strings.Split(c.Log(), "\n")
		c.t.Logf("crid's log, last lines:\n%s", strings.Join(lines[max(0, len(lines)-80):], "\n"))
	}
}

// end removes every pod, stops crid and looks for what is left, whatever of it fails.
func (c *Crid) end() {
	defer c.nothingLeft()
	defer c.removeBridge()
	if !c.alive() {
		c.t.Error("crid is gone, its pods are not removed")
		return
	}
	c.RemoveAll()
	c.settled()
	if err := c.Node.Stop(); err != nil {
		c.t.Error("stop crid:", err)
	}
}

// RemoveAll stops and removes every pod.
func (c *Crid) RemoveAll() {
	c.t.Helper()
	pods, err := c.Node.Runtime.ListPodSandbox(c.Context(), nil)
	if err != nil {
		c.t.Error("list pods:", err)
		return
	}
	for _, pod := range pods {
		if err := c.Node.Runtime.StopPodSandbox(c.Context(), pod.Id); err != nil {
			c.t.Error("stop pod:", err)
		}
		if err := c.Node.Runtime.RemovePodSandbox(c.Context(), pod.Id); err != nil {
			c.t.Error("remove pod:", err)
		}
	}
}
