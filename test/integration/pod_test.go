package integration

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

func TestAPodsWholeLife(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		s := pod.Status()
		if s.State != runtime.PodSandboxState_SANDBOX_READY || s.Network.Ip == "" || len(s.Network.AdditionalIps) != 1 {
			t.Errorf("status after RunPodSandbox: %v", s)
		}
		if s.Metadata.Uid != pod.Config.Metadata.Uid || s.Labels["app"] != "test" || s.Annotations["note"] != "kept" || s.CreatedAt <= 0 {
			t.Errorf("status does not repeat the request: %v", s)
		}
		server := pod.Run("", func(cfg *runtime.ContainerConfig) {
			cfg.Image.Image, cfg.Command = harness.Ref(images.Web), nil
		})
		client := pod.Run("until wget -qO- http://127.0.0.1/ 2>/dev/null; do sleep 0.1; done; exit 7")
		exit := client.Wait()
		if exit.ExitCode != 7 || exit.Reason != "Error" || exit.FinishedAt < exit.StartedAt || exit.StartedAt < exit.CreatedAt {
			t.Errorf("exit of the client: %v", exit)
		}
		if got := client.Text(); got != "hello from podhost\n" {
			t.Errorf("the client heard %q", got)
		}
		if got := server.Status(); got.State != runtime.ContainerState_CONTAINER_RUNNING || got.ImageId != c.Pull(images.Web) {
			t.Errorf("the server: %v", got)
		}
		server.Stop(5)
		pod.Stop()
		if got := pod.Status().State; got != runtime.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("state after StopPodSandbox: %v", got)
		}
		pod.Remove()
		if _, err := c.Runtime.PodSandboxStatus(c.Context(), pod.ID, false); status.Code(err) != codes.NotFound {
			t.Errorf("status of a removed pod: %v; want NotFound", err)
		}
	})
}

func TestPodsAreFoundByEveryFilter(t *testing.T) {
	c := harness.Start(t)
	ready := c.RunPod()
	stopped := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Labels = map[string]string{"app": "other"} })
	stopped.Stop()
	for name, want := range map[string]struct {
		filter *runtime.PodSandboxFilter
		ids    []string
	}{
		"nothing":      {nil, []string{ready.ID, stopped.ID}},
		"id":           {&runtime.PodSandboxFilter{Id: ready.ID}, []string{ready.ID}},
		"id prefix":    {&runtime.PodSandboxFilter{Id: ready.ID[:13]}, []string{ready.ID}},
		"state":        {&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}}, []string{stopped.ID}},
		"label":        {&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "other"}}, []string{stopped.ID}},
		"id and label": {&runtime.PodSandboxFilter{Id: ready.ID, LabelSelector: map[string]string{"app": "other"}}, nil},
		"unknown id":   {&runtime.PodSandboxFilter{Id: strings.Repeat("0", 64)}, nil},
	} {
		list, err := c.Runtime.ListPodSandbox(c.Context(), want.filter)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, p := range list {
			got[p.Id] = true
		}
		if len(got) != len(want.ids) {
			t.Errorf("filter by %s: got %d pods, want %d", name, len(got), len(want.ids))
		}
		for _, id := range want.ids {
			if !got[id] {
				t.Errorf("filter by %s does not find %s", name, id)
			}
		}
	}
}

func TestAPodsSettingsArriveInItsContainers(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
			cfg.Hostname = "named"
			cfg.DnsConfig = &runtime.DNSConfig{Servers: []string{"10.10.10.10"}, Searches: []string{"example.com"}, Options: []string{"ndots:8"}}
			cfg.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.ip_unprivileged_port_start": "42"}
		})
		ctr := pod.Run("sleep 1000")
		for shell, want := range map[string]string{
			"hostname": "named\n",
			"cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max":                      "1\n100\n",
			"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range": "42\n0\t2147483647\n",
			"grep -c . /etc/resolv.conf":                       "3\n",
			"grep '^nameserver 10.10.10.10$' /etc/resolv.conf": "nameserver 10.10.10.10\n",
			"stat -f -c %T /dev/shm":                           "tmpfs\n",
			"echo $HOSTNAME":                                   "named\n",
		} {
			if got := ctr.Exec(shell); got != want {
				t.Errorf("%s: got %q, want %q", shell, got, want)
			}
		}
	})
}

func TestPIDModes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		mode := func(m runtime.NamespaceMode) func(*runtime.PodSandboxConfig) {
			return func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.NamespaceOptions.Pid = m }
		}
		t.Run("container", func(t *testing.T) {
			pod := c.RunPod(mode(runtime.NamespaceMode_CONTAINER))
			ctr := pod.Run("exec sleep 1000")
			if got := ctr.Exec("tr '\\0' ' ' < /proc/1/cmdline"); got != "sleep 1000 " {
				t.Errorf("PID 1 is %q", got)
			}
			debugger := pod.Run("sleep 1001", func(cfg *runtime.ContainerConfig) {
				cfg.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: ctr.ID}
			})
			if got := debugger.Exec("tr '\\0' ' ' < /proc/1/cmdline"); got != "sleep 1000 " {
				t.Errorf("PID 1 as the debug container sees it is %q", got)
			}
			other := c.RunPod(mode(runtime.NamespaceMode_CONTAINER))
			_, err := other.TryCreate(other.ContainerConfig("sleep 1", func(cfg *runtime.ContainerConfig) {
				cfg.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: ctr.ID}
			}))
			if err == nil || !strings.Contains(err.Error(), ctr.ID) {
				t.Errorf("a target in another pod: %v", err)
			}
		})
		t.Run("pod", func(t *testing.T) {
			pod := c.RunPod(mode(runtime.NamespaceMode_POD))
			a, b := pod.Run("exec sleep 1000"), pod.Run("exec sleep 1001")
			if got := a.Exec("tr '\\0' ' ' < /proc/1/cmdline"); !strings.Contains(got, "pause") {
				t.Errorf("PID 1 is %q", got)
			}
			if got := b.Exec("ps"); !strings.Contains(got, "sleep 1000") || !strings.Contains(got, "sleep 1001") {
				t.Errorf("the containers do not see each other:\n%s", got)
			}
			list, err := c.Runtime.ListContainers(c.Context(), &runtime.ContainerFilter{PodSandboxId: pod.ID})
			if err != nil || len(list) != 2 {
				t.Errorf("%d containers are listed, %v; the pause is none", len(list), err)
			}
		})
		t.Run("host", func(t *testing.T) {
			pod := c.RunPod(mode(runtime.NamespaceMode_NODE))
			ctr := pod.Run("sh -c 'sleep 1234 & sleep 1235 & exit 3'")
			if s := ctr.Wait(); s.ExitCode != 3 {
				t.Errorf("exit %v", s)
			}
			probe := pod.Run("sleep 1000")
			if got := probe.Exec("ps"); strings.Contains(got, "sleep 1234") || !strings.Contains(got, "conmon") {
				t.Errorf("processes of the host, after their container ended:\n%s", got)
			}
		})
	})
}

func TestHostNetworkPods(t *testing.T) {
	c := harness.Start(t, harness.Conflist(node.NoNetwork))
	if _, err := c.Runtime.RunPodSandbox(c.Context(), c.PodConfig(), ""); err == nil || !strings.Contains(err.Error(), c.CNIDir()) {
		t.Errorf("a pod without a network: %v; want an error that names %s", err, c.CNIDir())
	}
	pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Hostname = "ignored"
		cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ctr := pod.Run("sleep 1000")
	if got := ctr.Exec("hostname; readlink /proc/self/ns/net"); got != host+"\n"+mine+"\n" {
		t.Errorf("hostname and network namespace: %q", got)
	}
}

func TestANetworkThatComesLater(t *testing.T) {
	c := harness.Start(t, harness.Conflist(node.NoNetwork))
	ready := func() bool { return networkReady(t, c) }
	if ready() {
		t.Fatal("NetworkReady without a conflist")
	}
	if err := os.WriteFile(c.CNIDir()+"/10-late.conflist", []byte(c.Node.Conflist()), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "NetworkReady after a conflist was dropped in", ready)
	if err := os.RemoveAll(c.CNIDir()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "NetworkReady false after the directory was deleted", func() bool { return !ready() })
	if err := os.MkdirAll(c.CNIDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.CNIDir()+"/10-late.conflist", []byte(c.Node.Conflist()), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "NetworkReady after the directory came back", ready)
	c.RunPod()
}

// networkReady is the condition of that name.
func networkReady(t *testing.T, c *harness.Crid) bool {
	t.Helper()
	s, err := c.Runtime.Status(c.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	return s.Status.Conditions[1].Status
}

// eventually waits up to ten seconds until what holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), isolate.Patient(10*time.Second))
	defer cancel()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within ten seconds", what)
		}
	}
}

func TestIdenticalCallsMakeOnePod(t *testing.T) {
	c := harness.Start(t)
	cfg := c.PodConfig()
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := c.Runtime.RunPodSandbox(c.Context(), cfg, "")
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("ids %s and %s", id, ids[0])
		}
	}
	if err := c.Runtime.StopPodSandbox(c.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Runtime.RunPodSandbox(c.Context(), cfg, ""); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same pod once it is stopped: %v; want AlreadyExists", err)
	}
}

func TestWhatIsUnknownIsStoppedAndRemoved(t *testing.T) {
	c := harness.Start(t)
	unknown := strings.Repeat("0123456789abcdef", 4)
	for what, err := range map[string]error{
		"StopPodSandbox":   c.Runtime.StopPodSandbox(c.Context(), unknown),
		"RemovePodSandbox": c.Runtime.RemovePodSandbox(c.Context(), unknown),
		"StopContainer":    c.Runtime.StopContainer(c.Context(), unknown, 0),
		"RemoveContainer":  c.Runtime.RemoveContainer(c.Context(), unknown),
		"RemoveImage":      c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: unknown}),
	} {
		if err != nil {
			t.Errorf("%s of an unknown id: %v", what, err)
		}
	}
	if _, err := c.Runtime.ContainerStatus(c.Context(), unknown, false); status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus: %v; want NotFound", err)
	}
	if _, err := c.Runtime.RunPodSandbox(c.Context(), c.PodConfig(), "nonesuch"); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("an unknown handler: %v", err)
	}
}
