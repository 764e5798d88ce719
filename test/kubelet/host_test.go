package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// fetch gets a URL until it answers.
func (k *kubelet) fetch(t *testing.T, url string) string {
	t.Helper()
	var text string
	k.wait(t, url+" to answer", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		text = string(raw)
		return err
	})
	return text
}

func hostPort(t *testing.T, k *kubelet) {
	k.ready(t, newPod("host-port", web("main", func(c *v1.Container) {
		c.Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 8088}, {ContainerPort: 81}}
	})))
	if text := k.fetch(t, "http://"+nodeIP+":8088"); text != "hello from host-port-"+nodeName+"\n" {
		t.Errorf("the port answers %q", text)
	}
	k.remove(t, "host-port")
}

// hostNamespaces compares the namespaces of a container with those of the node, which are this program's.
func hostNamespaces(t *testing.T, k *kubelet) {
	pod := newPod("host-ns", shell("main", "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; "+forever))
	pod.Spec.HostNetwork, pod.Spec.HostPID, pod.Spec.HostIPC = true, true, true
	k.ready(t, pod)
	text := k.says(t, "host-ns", "main", "up")
	for name, same := range map[string]bool{"net": true, "pid": true, "ipc": true, "mnt": false} {
		host, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, host) != same {
			t.Errorf("namespace %s: the node's %s, the container's among %q; want same %t", name, host, text, same)
		}
	}
}

// sharedProcesses lets containers of a pod see and signal one another.
func sharedProcesses(t *testing.T, k *kubelet) {
	pod := newPod("shared", shell("victim", "trap 'echo asked; exit 0' USR1; touch /tmp/victim; while :; do sleep 1 & wait $!; done"),
		shell("main", `until [ -n "$p" ]; do sleep 0.2; for d in /proc/[0-9]*; do grep -q "touch /tmp/victim" $d/cmdline && p=${d#/proc/} && break; done; done
			kill -USR1 $p; echo "first: $(cat /proc/1/comm)"; `+forever))
	share := true
	pod.Spec.ShareProcessNamespace = &share
	k.apply(t, pod)
	if text := k.says(t, "shared", "main", "up"); !strings.Contains(text, "first: pause") {
		t.Errorf("log %q", text)
	}
	k.is(t, "shared", "restarted where it was signalled", func(pod *v1.Pod) error {
		for _, s := range pod.Status.ContainerStatuses {
			if s.Name == "victim" && s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.ExitCode == 0 {
				return nil
			}
		}
		return errors.New("not restarted")
	})
	k.remove(t, "shared")
}

// limits arrive in the cgroups of the container and of its pod.
func limits(t *testing.T, k *kubelet) {
	pod := newPod("limits", shell("main", `cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares 2>/dev/null ||
		cat memory.max cpu.max cpu.weight; `+forever, func(c *v1.Container) {
		c.Resources = v1.ResourceRequirements{
			Limits:   v1.ResourceList{v1.ResourceCPU: resource.MustParse("500m"), v1.ResourceMemory: resource.MustParse("64Mi")},
			Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m"), v1.ResourceMemory: resource.MustParse("32Mi")},
		}
	}))
	pod = k.ready(t, pod)
	if pod.Status.QOSClass != v1.PodQOSBurstable {
		t.Errorf("class %s", pod.Status.QOSClass)
	}
	text := k.says(t, "limits", "main", "up")
	if !strings.Contains(text, "67108864\n50000\n256\n") && !strings.Contains(text, "67108864\n50000 100000\n") {
		t.Errorf("log %q", text)
	}
	s := status(t, pod, "main")
	if s.Resources == nil || s.Resources.Limits.Memory().Value() != 64<<20 || s.Resources.Limits.Cpu().MilliValue() != 500 {
		t.Errorf("resources %+v", s.Resources)
	}
}

func outOfMemory(t *testing.T, k *kubelet) {
	pod := newPod("oom", shell("main", "tail /dev/zero", func(c *v1.Container) {
		c.Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse("16Mi")}
	}))
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	k.apply(t, pod)
	pod = k.is(t, "oom", "failed", phase(v1.PodFailed))
	if s := status(t, pod, "main").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("it ended with %+v", s)
	}
}

// userNamespace makes root of a container nobody on the node, also for what it writes in a volume.
func userNamespace(t *testing.T, k *kubelet) {
	pod := newPod("userns", shell("main", "id -u; cat /proc/self/uid_map; touch /work/f && stat -c %u /work/f; "+forever, mounts("work", "/work")))
	own := false
	pod.Spec.HostUsers = &own
	pod.Spec.Volumes = []v1.Volume{volume("work", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})}
	k.ready(t, pod)
	fields := strings.Fields(k.says(t, "userns", "main", "up"))
	if len(fields) < 5 || fields[0] != "0" || fields[1] != "0" || fields[2] == "0" || fields[3] != "65536" || fields[4] != "0" {
		t.Errorf("log %q", fields)
	}
	k.remove(t, "userns")
}

// seccomp is off, as the runtime has it, or of a profile.
func seccomp(t *testing.T, k *kubelet) {
	pod := newPod("seccomp")
	for name, kind := range map[string]v1.SeccompProfileType{"free": v1.SeccompProfileTypeUnconfined, "held": v1.SeccompProfileTypeRuntimeDefault} {
		pod.Spec.Containers = append(pod.Spec.Containers, shell(name, "grep Seccomp: /proc/self/status; "+forever, func(c *v1.Container) {
			c.SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: kind}}
		}))
	}
	k.ready(t, pod)
	for name, mode := range map[string]int{"free": 0, "held": 2} {
		if text := k.says(t, "seccomp", name, "up"); !strings.Contains(text, fmt.Sprintf("Seccomp:\t%d\n", mode)) {
			t.Errorf("%s: log %q; want mode %d", name, text, mode)
		}
	}
}

// identity is who a container runs as, with what rights.
func identity(t *testing.T, k *kubelet) {
	user, group, no, yes := int64(1000), int64(2000), false, true
	pod := newPod("identity", shell("main", "id; grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /new || echo read-only; "+forever, func(c *v1.Container) {
		c.SecurityContext = &v1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes,
			Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}}}
	}))
	pod.Spec.SecurityContext = &v1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &group, SupplementalGroups: []int64{3000}, FSGroup: &group,
		Sysctls: []v1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "99"}}}
	k.ready(t, pod)
	text := k.says(t, "identity", "main", "up")
	for _, want := range []string{"uid=1000", "gid=2000", "3000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "read-only"} {
		if !strings.Contains(text, want) {
			t.Errorf("log %q does not tell %q", text, want)
		}
	}
	if got := k.exec(t, "identity", "main", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != "99\n" {
		t.Errorf("sysctl %q", got)
	}
}
