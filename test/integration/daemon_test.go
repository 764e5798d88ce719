package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
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

func TestVersionAndStatus(t *testing.T) {
	c := harness.Start(t)
	v, err := c.Runtime.Version(c.Context(), "0.1.0")
	if err != nil || v.Version != "0.1.0" || v.RuntimeName == "" || v.RuntimeVersion == "" || v.RuntimeApiVersion == "" {
		t.Errorf("Version: %v, %v", v, err)
	}
	cfg, err := c.Runtime.RuntimeConfig(c.Context())
	if err != nil || cfg.Linux == nil || cfg.Linux.CgroupDriver != runtime.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig: %v, %v", cfg, err)
	}
	s, err := c.Runtime.Status(c.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range s.Status.Conditions {
		if !condition.Status {
			t.Errorf("%s is false: %s: %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	names := map[string]int{}
	for _, h := range s.RuntimeHandlers {
		names[h.Name]++
	}
	if names[""] != 1 || names["crun"] != 1 || names["runc"] != 1 || len(names) != 3 {
		t.Errorf("handlers %v", names)
	}
	if !strings.Contains(strings.Join(values(s.Info), " "), "policy.json") {
		t.Errorf("verbose information does not warn of the missing policy.json: %v", s.Info)
	}
	for key, value := range s.Info {
		if !json.Valid([]byte(value)) {
			t.Errorf("info %s is no JSON: %s", key, value)
		}
	}
}

func values(m map[string]string) []string {
	var all []string
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

func TestASecondCridIsRefused(t *testing.T) {
	c := harness.Start(t)
	out, err := run(t, harness.Binary("crid"), "--config", c.ConfigFile())
	if err == nil || !strings.Contains(out, strconv.Itoa(c.PID())) {
		t.Errorf("a second crid on the same roots: %v\n%s", err, out)
	}
	c.RunPod() // the first one did not notice
}

func TestWrongOptionsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		toml string
		want []string
	}{
		"unknown":       {"rooot = \"/x\"\n", []string{":1", "rooot", "root"}},
		"in a table":    {"\n[network]\nconf_dirs = \"/x\"\n", []string{":3", "conf_dirs", "conf_dir"}},
		"wrong type":    {"root = 5\n", []string{":1", "root"}},
		"wrong value":   {"log_level = \"loud\"\n", []string{"log_level", "loud", "debug"}},
		"relative path": {"root = \"x\"\n", []string{"root", "absolute"}},
		"no TOML":       {"root = \n", []string{":1"}},
		"runtime":       {"default_runtime = \"nonesuch\"\n", []string{"default_runtime", "nonesuch"}},
		"cgroup driver": {"cgroup_driver = \"magic\"\n", []string{"cgroup_driver", "magic", "cgroupfs"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "crid.toml")
			if err := os.WriteFile(file, []byte(test.toml), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"config", "check", "--config", file}, {"--config", file}} {
				out, err := run(t, harness.Binary("crid"), args...)
				if err == nil {
					t.Errorf("crid %v accepts it", args)
				}
				for _, want := range append(test.want, file) {
					if !strings.Contains(out, want) {
						t.Errorf("crid %v: the message does not say %q:\n%s", args, want, out)
					}
				}
			}
		})
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct{ toml, want string }{
		"conmon":  {"conmon = \"/no/conmon\"\n", "conmon"},
		"runtime": {"default_runtime = \"mine\"\n[runtimes.mine]\npath = \"/no/mine\"\n", "/no/mine"},
	} {
		file := filepath.Join(dir, name+".toml")
		toml := "root = \"" + dir + "/root\"\nrunroot = \"" + dir + "/run\"\nsocket = \"" + dir + "/run/s\"\n" + test.toml
		if err := os.WriteFile(file, []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := run(t, harness.Binary("crid"), "--config", file)
		if err == nil || !strings.Contains(out, test.want) || !strings.Contains(out, "install") {
			t.Errorf("without %s: %v\n%s", name, err, out)
		}
	}
}

// run runs a program that should end by itself, and returns all that it wrote.
func run(t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %v did not end:\n%s", program, args, out.String())
	}
	return out.String(), err
}

func TestConfigCommands(t *testing.T) {
	out, err := run(t, harness.Binary("crid"), "config", "default")
	if err != nil || !strings.Contains(out, "/var/lib/crid") {
		t.Errorf("config default: %v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "crid.toml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, harness.Binary("crid"), "config", "check", "--config", file); err != nil {
		t.Errorf("the default configuration is refused: %v\n%s", err, out)
	}
	if err := os.MkdirAll(file+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".d/10.toml", []byte("log_level = \"warn\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, harness.Binary("crid"), "config", "dump", "--config", file); err != nil || !strings.Contains(out, `"warn"`) {
		t.Errorf("config dump without the drop-in: %v\n%s", err, out)
	}
	if out, err := run(t, harness.Binary("crid"), "version"); err != nil || strings.TrimSpace(out) == "" {
		t.Errorf("version: %v %q", err, out)
	}
}

func TestRestart(t *testing.T) {
	for name, restart := range map[string]func(*harness.Crid){"stopped": (*harness.Crid).Restart, "killed": (*harness.Crid).Crash} {
		t.Run(name, func(t *testing.T) {
			eachRuntime(t, func(t *testing.T, c *harness.Crid) {
				pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
					cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
				})
				stays := pod.Run("sleep 1000")
				ends := pod.Run("sleep 0.3; echo last words; exit 4")
				created := pod.Create("echo started")
				pid := stays.Exec("echo $PPID")
				restart(c)
				if s := pod.Status(); s.State != runtime.PodSandboxState_SANDBOX_READY || s.Network.Ip == "" {
					t.Errorf("the pod: %v", s)
				}
				if s := stays.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING || stays.Exec("echo $PPID") != pid {
					t.Errorf("the running container: %v", s)
				}
				if s := ends.Wait(); s.ExitCode != 4 || ends.Text() != "last words\n" {
					t.Errorf("the container that ended meanwhile: %v, log %q", s, ends.Text())
				}
				if s := created.Status(); s.State != runtime.ContainerState_CONTAINER_CREATED {
					t.Errorf("the created container: %v", s)
				}
				created.Start()
				if s := created.Wait(); s.ExitCode != 0 || created.Text() != "started\n" {
					t.Errorf("the created container, started later: %v", s)
				}
				stays.Stop(0)
				pod.Remove()
			})
		})
	}
}

func TestEventsEndWithTheDaemon(t *testing.T) {
	c := harness.Start(t)
	events := make(chan *runtime.ContainerEventResponse, 100)
	connected, ended := make(chan struct{}), make(chan error, 1)
	go func() { // ends with the daemon
		ended <- c.Runtime.GetContainerEvents(context.Background(), events, func(runtime.RuntimeService_GetContainerEventsClient) { close(connected) })
	}()
	<-connected
	pod := c.RunPod()
	ctr := pod.Run("true")
	ctr.Wait()
	ctr.Remove()
	seen := map[runtime.ContainerEventType]bool{}
	limit := time.After(10 * time.Second)
	for !seen[runtime.ContainerEventType_CONTAINER_DELETED_EVENT] {
		select {
		case e := <-events:
			if e.ContainerId == ctr.ID {
				seen[e.ContainerEventType] = true
			}
		case <-limit:
			t.Fatalf("saw only %v", seen)
		}
	}
	if len(seen) != 4 {
		t.Errorf("saw %v", seen)
	}
	began := time.Now()
	if err := c.Node.Stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("crid took %v to stop under an event stream", took)
	}
	if err := <-ended; err == nil {
		t.Log("the stream ended without an error")
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheEndWaitsForNoGraceAndNoCommand(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ctr := c.RunPod().Run("trap '' TERM; touch /tmp/up; while :; do sleep 0.1; done")
		pid := ctr.Exec("while ! [ -e /tmp/up ]; do sleep 0.1; done; echo $PPID")
		client, ctx := c.Client(), c.Context()
		ended := make(chan error, 2)
		go func() { // ends with the daemon, as the next does
			_, err := client.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: ctr.ID, Timeout: 50})
			ended <- err
		}()
		go func() {
			_, err := client.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", "touch /tmp/exec; sleep 1000"}})
			ended <- err
		}()
		ctr.Exec("while ! [ -e /tmp/exec ]; do sleep 0.1; done")
		eventually(t, "the stop to have begun", func() bool {
			s, err := c.Runtime.Status(c.Context(), true)
			return err == nil && strings.Contains(s.Info["crid"], `"stage":"ask to end"`)
		})
		began := time.Now()
		if err := c.Node.Stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 2*time.Second { // without a loaded machine it is a tenth of that
			t.Errorf("crid took %v to stop", took)
		}
		for range cap(ended) {
			if err := <-ended; status.Code(err) != codes.Unavailable {
				t.Errorf("the call that waited: %v", err)
			}
		}
		if err := c.Node.Again(c.Context()); err != nil {
			t.Fatal(err)
		}
		if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING || ctr.Exec("echo $PPID") != pid {
			t.Errorf("the container: %v", s)
		}
		ctr.Stop(0)
	})
}

func TestWhatIsNotBuiltSaysSo(t *testing.T) {
	c := harness.Start(t)
	err := c.Runtime.CheckpointContainer(c.Context(), &runtime.CheckpointContainerRequest{ContainerId: "x", Location: "/x"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}

func TestPortsAreMapped(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.PortMappings = []*runtime.PortMapping{
			{Protocol: runtime.Protocol_TCP, ContainerPort: 80, HostPort: 18080},
			{Protocol: runtime.Protocol_TCP, ContainerPort: 81}, // no host port: no mapping
		}
		cfg.Annotations["kubernetes.io/ingress-bandwidth"] = "100M"
		cfg.Annotations["kubernetes.io/egress-bandwidth"] = "100M"
	})
	pod.Run("", func(cfg *runtime.ContainerConfig) { cfg.Image.Image, cfg.Command = harness.Ref("crid/web:1"), nil })
	s := pod.Status()
	for _, address := range []string{net.JoinHostPort(s.Network.Ip, "80"), net.JoinHostPort(s.Network.AdditionalIps[0].Ip, "80"), "127.0.0.1:18080"} {
		eventually(t, "an answer of "+address, func() bool {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			return err == nil && conn.Close() == nil
		})
	}
	pod.Stop()
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:18080", time.Second); err == nil {
		t.Error("the port is still mapped after StopPodSandbox", conn.Close())
	}
	bad := c.PodConfig(func(cfg *runtime.PodSandboxConfig) { cfg.Annotations["kubernetes.io/ingress-bandwidth"] = "much" })
	if _, err := c.Runtime.RunPodSandbox(c.Context(), bad, ""); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "much") {
		t.Errorf("a bad bandwidth: %v", err)
	}
}

func TestAHangingPluginHoldsNobody(t *testing.T) {
	dir := t.TempDir()
	plugin := "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && { echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'; exit 0; }\nexec sleep 600\n"
	if err := os.WriteFile(filepath.Join(dir, "hang"), []byte(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	c := harness.Start(t, harness.Config("[network]\nbin_dirs = [\""+dir+"\", \"/opt/cni/bin\", \"/usr/lib/cni\", \"/usr/libexec/cni\"]"))
	other := c.RunPod()
	hang := []byte(`{"cniVersion":"1.0.0","name":"hang","plugins":[{"type":"hang"}]}`)
	if err := os.WriteFile(filepath.Join(c.CNIDir(), "00-hang.conflist"), hang, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod that hangs in its network", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // a pod that does not hang takes a tenth of that
		defer cancel()
		id, err := c.Runtime.RunPodSandbox(ctx, c.PodConfig(), "")
		if err == nil { // crid has not seen the new network yet
			err = errors.Join(c.Runtime.StopPodSandbox(c.Context(), id), c.Runtime.RemovePodSandbox(c.Context(), id))
		}
		return errors.Is(ctx.Err(), context.DeadlineExceeded) && err != nil
	})
	began := time.Now()
	if _, err := c.Runtime.ListPodSandbox(c.Context(), nil); err != nil {
		t.Error(err)
	}
	ctr := other.Run("sleep 1000")
	other.Stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("another pod's calls took %v", took)
	}
	if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED {
		t.Errorf("the other pod's container: %v", s)
	}
	began = time.Now()
	err := c.Node.Stop() // the hanging ADD and its undo would keep it for minutes
	if took := time.Since(began); err != nil || took > 10*time.Second || !strings.Contains(c.Log(), "room=pods") {
		t.Errorf("crid took %v to stop: %v", took, err)
	}
	eventually(t, "the plugins to be gone with crid", func() bool { return isolate.Running(t, "sleep 600") == 0 })
	if err := os.Remove(filepath.Join(c.CNIDir(), "00-hang.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hang"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the half-made pods to be undone", func() bool {
		left, err := filepath.Glob("/run/netns/crid-*")
		return err == nil && len(left) == 0
	})
}

// killAll kills the processes of this isolated machine whose arguments match.
func killAll(t *testing.T, match func(args []string) bool) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !match(strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}
