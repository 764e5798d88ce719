package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

var podScenarios = []scenario{
	{name: "RunPodSandbox", set: runPod(forgetMounts)},
	{name: "RunPodSandbox of a user namespace", set: runPod(nil, withUsers)},
	{name: "RunPodSandbox on the host's network", set: runPod(nil, onHost)},
	{name: "StopPodSandbox", set: stopPod},
	{name: "StopPodSandbox with a network that fails", options: failingDel(), set: stopPodAttached},
	{name: "RemovePodSandbox", set: removePod},
}

// withUsers gives a pod a user namespace.
func withUsers(cfg *runtime.PodSandboxConfig) {
	ids := []*runtime.IDMapping{{HostId: 1 << 20, Length: 65536}}
	cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Uids: ids, Gids: ids}
}

// withPort gives a pod a port of the host's.
func withPort(cfg *runtime.PodSandboxConfig) {
	cfg.PortMappings = []*runtime.PortMapping{{HostPort: 8088, ContainerPort: 80}}
}

func onHost(cfg *runtime.PodSandboxConfig) {
	cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
}

// forgetMounts makes the next pod the first one since the machine was started.
func forgetMounts(t *testing.T, c *harness.Crid) {
	t.Helper()
	for _, dir := range []string{"/run/netns", filepath.Join(c.RunRoot, "ns")} {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
}

func runPod(first func(*testing.T, *harness.Crid), edits ...func(*runtime.PodSandboxConfig)) func(*testing.T, *harness.Crid) act {
	return func(t *testing.T, c *harness.Crid) act {
		if first != nil {
			first(t, c)
		}
		cfg := c.PodConfig(edits...)
		var pod *harness.Pod
		return act{
			call: func() error {
				id, err := c.Runtime.RunPodSandbox(c.Context(), cfg, "")
				pod = c.Pod(id, cfg)
				return err
			},
			between: func() {
				for _, item := range named(t, c, cfg) {
					if item.State == runtime.PodSandboxState_SANDBOX_READY {
						works(t, c.Pod(item.Id, cfg))
					}
				}
			},
			after: func() {
				works(t, pod)
				if all := named(t, c, cfg); len(all) != 1 || all[0].Id != pod.ID {
					t.Errorf("listed: %v, told: %s", all, pod.ID)
				}
			},
		}
	}
}

// named lists the pods of a configuration.
func named(t *testing.T, c *harness.Crid, cfg *runtime.PodSandboxConfig) []*runtime.PodSandbox {
	t.Helper()
	all, err := c.Runtime.ListPodSandbox(c.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var found []*runtime.PodSandbox
	for _, item := range all {
		if item.Metadata.Uid == cfg.Metadata.Uid {
			found = append(found, item)
		}
	}
	return found
}

// works looks whether a pod that is said to be ready has what it needs.
func works(t *testing.T, pod *harness.Pod) {
	t.Helper()
	s := pod.Status()
	if s.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", s.State)
	}
	if pod.Config.Linux.SecurityContext.NamespaceOptions.Network == runtime.NamespaceMode_NODE {
		return
	}
	if s.Network.GetIp() == "" {
		t.Error("the pod has no address")
	}
	if _, err := os.Stat("/run/netns/crid-" + pod.ID); err != nil {
		t.Error(err)
	}
}

// stopPod stops a pod of namespaces and a port, with a container that runs and one that does not yet.
func stopPod(t *testing.T, c *harness.Crid) act {
	pod := c.RunPod(withUsers, sharedPIDs, withPort)
	running, created := pod.Run("sleep 1000"), pod.Create("sleep 1000")
	return act{
		call: func() error { return c.Runtime.StopPodSandbox(c.Context(), pod.ID) },
		between: func() {
			consistent(t, c, running)
			consistent(t, c, created)
			if pod.Status().State == runtime.PodSandboxState_SANDBOX_READY {
				works(t, pod)
				return
			}
			// What was begun is finished without anybody asking again.
			running.Wait()
			created.Wait()
		},
		after: func() {
			stopped(t, pod)
			for _, ctr := range []*harness.Container{running, created} {
				if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_EXITED {
					t.Errorf("a container of the stopped pod is %v", s.State)
				}
			}
		},
	}
}

// stopped looks whether a pod has nothing any more that it shared.
func stopped(t *testing.T, pod *harness.Pod) {
	t.Helper()
	if s := pod.Status(); s.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod is %v", s.State)
	}
	if _, err := os.Stat("/run/netns/crid-" + pod.ID); !os.IsNotExist(err) {
		t.Errorf("the network namespace of the stopped pod: %v", err)
	}
}

// refusing, when it is there, makes a plugin of failingDel fail at DEL.
func refusing() string { return filepath.Join(isolate.Scratch(), "failing-plugins", "refuse") }

// failingDel puts a script before a plugin of the node's network.
func failingDel() []harness.Option {
	dir := filepath.Dir(refusing())
	write := func(*node.Options) {
		script := fmt.Sprintf(`#!/bin/sh
if [ "$CNI_COMMAND" = DEL ] && [ -e %s ]; then
	echo '{"cniVersion": "1.0.0", "code": 11, "msg": "told to fail"}'
	exit 1
fi
PATH=/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni exec bandwidth
`, refusing())
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "bandwidth"), []byte(script), 0o755)); err != nil {
			panic(err)
		}
	}
	return []harness.Option{write, harness.Config(fmt.Sprintf("[network]\nbin_dirs = [%q, \"/opt/cni/bin\", \"/usr/lib/cni\", \"/usr/libexec/cni\"]", dir))}
}

// stopPodAttached stops a plain pod whose network cannot be detached until the next crid.
func stopPodAttached(t *testing.T, c *harness.Crid) act {
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	if err := os.WriteFile(refusing(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return act{
		insist:  true, // the network is mended behind it
		call:    func() error { return c.Runtime.StopPodSandbox(c.Context(), pod.ID) },
		between: func() { consistent(t, c, ctr) },
		after: func() {
			stopped(t, pod)
			if err := os.Remove(refusing()); err != nil {
				t.Fatal(err)
			}
			pod.Remove() // which is no reason to forget the network
			c.Crash()    // the next crid need not wait to try again
		},
	}
}

// removePod removes a pod of namespaces and a port, with a container that runs and one that has ended.
func removePod(t *testing.T, c *harness.Crid) act {
	pod := c.RunPod(withUsers, sharedPIDs, withPort)
	pod.Run("true").Wait()
	running := pod.Run("sleep 1000")
	return act{
		call:    func() error { return c.Runtime.RemovePodSandbox(c.Context(), pod.ID) },
		between: func() { consistent(t, c, running) },
		after: func() {
			if _, err := c.Runtime.PodSandboxStatus(c.Context(), pod.ID, false); status.Code(err) != codes.NotFound {
				t.Errorf("status of the removed pod: %v", err)
			}
			if list, err := c.Runtime.ListContainers(c.Context(), nil); err != nil || len(list) > 0 {
				t.Errorf("containers of the removed pod: %v, %v", list, err)
			}
		},
	}
}
