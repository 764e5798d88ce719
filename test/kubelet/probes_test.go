package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// command is what a probe or a hook runs.
func command(script string) *v1.ExecAction {
	return &v1.ExecAction{Command: []string{"sh", "-c", script}}
}

// readyByExec is a container that becomes ready and unready as a file comes and goes.
func readyByExec(t *testing.T, k *kubelet) {
	k.apply(t, newPod("by-exec", shell("main", forever, func(c *v1.Container) {
		c.ReadinessProbe = often(v1.ProbeHandler{Exec: command("test -e /tmp/ready")})
	})))
	k.says(t, "by-exec", "main", "up")
	unready := func(pod *v1.Pod) error {
		if isReady(pod) == nil {
			return errors.New("ready")
		}
		if s := pod.Status.ContainerStatuses; len(s) == 0 || s[0].State.Running == nil {
			return errors.New("not running")
		}
		return nil
	}
	k.is(t, "by-exec", "running, not ready", unready)
	k.exec(t, "by-exec", "main", "touch", "/tmp/ready")
	k.is(t, "by-exec", "ready", isReady)
	k.exec(t, "by-exec", "main", "rm", "/tmp/ready")
	k.is(t, "by-exec", "not ready any more", unready)
}

func readyByNetwork(t *testing.T, k *kubelet) {
	probed := func(name string, h v1.ProbeHandler) v1.Container {
		listen := map[string]string{"http": ":80", "tcp": ":81", "grpc": ":82"}[name]
		return web(name, func(c *v1.Container) {
			c.Args = []string{"-listen", listen}
			if name == "grpc" {
				c.Args = append(c.Args, "-health", ":83")
			}
			c.ReadinessProbe = often(h)
		})
	}
	k.ready(t, newPod("by-network",
		probed("http", v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(80)}}),
		probed("tcp", v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt32(81)}}),
		probed("grpc", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: 83}})))
}

// liveness restarts a container whose command fails, and one whose command hangs past its time.
func liveness(t *testing.T, k *kubelet) {
	failing := func(name, script string) v1.Container {
		return shell(name, forever, func(c *v1.Container) {
			c.LivenessProbe = often(v1.ProbeHandler{Exec: command(script)})
			c.LivenessProbe.TimeoutSeconds = 1
		})
	}
	k.apply(t, newPod("liveness", failing("fails", "exit 1"), failing("hangs", "sleep 1000"), failing("lives", "exit 0")))
	pod := k.is(t, "liveness", "restarted where it fails", func(pod *v1.Pod) error {
		for _, s := range pod.Status.ContainerStatuses {
			if s.Name != "lives" && s.RestartCount == 0 {
				return fmt.Errorf("%s was not restarted", s.Name)
			}
		}
		return phase(v1.PodRunning)(pod)
	})
	if n := status(t, pod, "lives").RestartCount; n != 0 {
		t.Errorf("the one that is well was restarted %d times", n)
	}
	k.remove(t, "liveness")
}

// startup holds back the liveness probe, which would fail.
func startup(t *testing.T, k *kubelet) {
	pod := newPod("startup", shell("main", "sleep 4; touch /tmp/started; "+forever, func(c *v1.Container) {
		c.StartupProbe = often(v1.ProbeHandler{Exec: command("test -e /tmp/started")})
		c.StartupProbe.FailureThreshold = 60
		c.LivenessProbe = often(v1.ProbeHandler{Exec: command("test -e /tmp/started")})
	}))
	pod = k.ready(t, pod)
	if s := status(t, pod, "main"); s.RestartCount != 0 || s.Started == nil || !*s.Started {
		t.Errorf("status %+v", s)
	}
}

// hooks run after the start, which they hold back, and before the end, which waits for them.
func hooks(t *testing.T, k *kubelet) {
	dir := t.TempDir()
	pod := newPod("hooks", shell("main", forever, mounts("host", "/host"), func(c *v1.Container) {
		c.Lifecycle = &v1.Lifecycle{
			PostStart: &v1.LifecycleHandler{Exec: command("echo started > /host/started")},
			PreStop:   &v1.LifecycleHandler{Exec: command("sleep 1; echo stopping > /host/stopping")},
		}
	}))
	grace := int64(20)
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.Volumes = []v1.Volume{hostPath("host", dir)}
	k.ready(t, pod)
	reads(t, filepath.Join(dir, "started"), "started\n")
	k.remove(t, "hooks")
	reads(t, filepath.Join(dir, "stopping"), "stopping\n")
}

// gracefulEnd lets a container finish what it does, within its time.
func gracefulEnd(t *testing.T, k *kubelet) {
	dir := t.TempDir()
	pod := newPod("graceful", shell("main", "trap 'sleep 2; echo done > /host/done; exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done", mounts("host", "/host")))
	grace := int64(60)
	pod.Spec.TerminationGracePeriodSeconds = &grace
	pod.Spec.Volumes = []v1.Volume{hostPath("host", dir)}
	k.ready(t, pod)
	k.says(t, "graceful", "main", "up")
	k.remove(t, "graceful")
	reads(t, filepath.Join(dir, "done"), "done\n")
}

// graceRunsOut kills a container that ignores the signal, when its time is over and not before.
func graceRunsOut(t *testing.T, k *kubelet) {
	pod := newPod("stubborn", shell("main", "trap '' TERM; echo up; while :; do sleep 1; done"))
	grace := int64(3)
	pod.Spec.TerminationGracePeriodSeconds = &grace
	k.ready(t, pod)
	k.says(t, "stubborn", "main", "up")
	began := time.Now()
	k.remove(t, "stubborn")
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("it was gone after %v", took)
	}
}

func reads(t *testing.T, file, want string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(raw), want) {
		t.Errorf("%s: %q, %v; want %q", file, raw, err, want)
	}
}
