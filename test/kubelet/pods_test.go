package kubelet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/crid/crid/test/harness"
)

// TestPods shares a kubelet among pods of every kind, many at a time.
func TestPods(t *testing.T) {
	k := start(t, harness.Start(t, harness.Quiet()), quickRestarts, oldImages)
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *kubelet){
			"one container": oneContainer, "three containers": threeContainers, "init containers": initContainers, "sidecar": sidecar,
			"restarts": restarts, "crash loop": crashLoop, "exit codes": exitCodes,
			"ready by exec": readyByExec, "ready by HTTP, TCP and gRPC": readyByNetwork, "liveness": liveness, "startup": startup,
			"hooks": hooks, "graceful end": gracefulEnd, "grace that is not enough": graceRunsOut,
			"empty directories": emptyDirs, "host paths": hostPaths, "downward": downward, "image volume": imageVolume,
			"host port": hostPort, "host namespaces": hostNamespaces, "shared processes": sharedProcesses,
			"limits": limits, "out of memory": outOfMemory, "user namespace": userNamespace, "seccomp": seccomp, "identity": identity,
			"log rotation": logRotation, "logs": logs, "exec": execs, "attach": attaches, "port-forward": portForwards,
			"dead containers": deadContainers,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, k)
			})
		}
	})
	t.Run("unused images", func(t *testing.T) { unusedImages(t, k, began) })
}

// quickRestarts has a container that ended again and again wait two seconds at most.
func quickRestarts(config map[string]any) {
	config["crashLoopBackOff"] = map[string]any{"maxContainerRestartPeriod": "2s"}
	gates("KubeletCrashLoopBackOffMax")(config)
}

// oldImages has images removed that were not used for half a minute.
func oldImages(config map[string]any) {
	config["imageMinimumGCAge"], config["imageMaximumGCAge"] = "1s", "30s"
}

func oneContainer(t *testing.T, k *kubelet) {
	pod := k.ready(t, newPod("one", shell("main", forever)))
	if len(pod.Status.PodIPs) != 2 || pod.Status.PodIP != pod.Status.PodIPs[0].IP {
		t.Errorf("addresses %v, first %q", pod.Status.PodIPs, pod.Status.PodIP)
	}
	s := status(t, pod, "main")
	if s.ContainerID == "" || !strings.Contains(s.ImageID, "@sha256:") || s.RestartCount != 0 {
		t.Errorf("status %+v", s)
	}
	k.says(t, "one", "main", "up")
	k.remove(t, "one")
}

func threeContainers(t *testing.T, k *kubelet) {
	k.ready(t, newPod("three", web("web"), shell("asks", "until wget -qO- http://127.0.0.1; do sleep 0.1; done; "+forever), shell("idle", forever)))
	if text := k.says(t, "three", "asks", "hello from three-"+nodeName); strings.Contains(text, "error") {
		t.Errorf("log %q", text)
	}
}

func initContainers(t *testing.T, k *kubelet) {
	pod := newPod("init", shell("main", "cat /work/1 /work/2; "+forever, mounts("work", "/work")))
	pod.Spec.InitContainers = []v1.Container{
		shell("first", "echo one > /work/1", mounts("work", "/work")),
		shell("second", "cat /work/1 && echo two > /work/2", mounts("work", "/work")),
	}
	pod.Spec.Volumes = []v1.Volume{volume("work", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})}
	pod = k.ready(t, pod)
	k.says(t, "init", "main", "one\ntwo")
	for _, name := range []string{"first", "second"} {
		if s := status(t, pod, name); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" {
			t.Errorf("init container %s: %+v", name, s.State)
		}
	}
}

// sidecar is an init container that is to run on: the pod's container meets it, and it ends after that one.
func sidecar(t *testing.T, k *kubelet) {
	always := v1.ContainerRestartPolicyAlways
	pod := newPod("sidecar", shell("main", "wget -qO- http://127.0.0.1; exit 0"))
	pod.Spec.InitContainers = []v1.Container{web("side", func(c *v1.Container) {
		c.RestartPolicy = &always
		c.StartupProbe = httpProbe(80)
	})}
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	k.apply(t, pod)
	pod = k.is(t, "sidecar", "done", phase(v1.PodSucceeded))
	k.says(t, "sidecar", "main", "hello from")
	main, side := status(t, pod, "main").State.Terminated, status(t, pod, "side").State.Terminated
	if main == nil || side == nil || side.FinishedAt.Before(&main.FinishedAt) {
		t.Errorf("main %+v, sidecar %+v", main, side)
	}
}

func restarts(t *testing.T, k *kubelet) {
	pod := newPod("restarts", shell("main", `n=$(cat /work/n || echo 0); echo $((n+1)) > /work/n; echo "run $n"; [ $n -lt 2 ] && exit 3; `+forever, mounts("work", "/work")))
	pod.Spec.Volumes = []v1.Volume{volume("work", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})}
	k.apply(t, pod)
	pod = k.is(t, "restarts", "ready after two failures", func(pod *v1.Pod) error {
		if err := isReady(pod); err != nil {
			return err
		}
		if n := pod.Status.ContainerStatuses[0].RestartCount; n != 2 {
			return fmt.Errorf("restarted %d times", n)
		}
		return nil
	})
	if last := status(t, pod, "main").LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last end %+v", last)
	}
	if text := k.logs(t, "restarts", "main", "previous=true"); text != "run 1\n" {
		t.Errorf("log of the run before: %q", text)
	}
}

func crashLoop(t *testing.T, k *kubelet) {
	k.apply(t, newPod("crashes", shell("main", "echo dying; exit 9")))
	k.is(t, "crashes", "in back-off after four ends", func(pod *v1.Pod) error {
		s := pod.Status.ContainerStatuses
		if len(s) == 0 || s[0].RestartCount < 3 || s[0].State.Waiting == nil || s[0].State.Waiting.Reason != "CrashLoopBackOff" {
			return errors.New("not in back-off")
		}
		if last := s[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 9 {
			return fmt.Errorf("last end %+v", last)
		}
		return nil
	})
	k.remove(t, "crashes")
}

// exitCodes come back exactly, with a message that the container leaves.
func exitCodes(t *testing.T, k *kubelet) {
	pod := newPod("codes", shell("zero", "exit 0"), shell("some", "echo for the operator > /dev/termination-log; exit 42"),
		shell("killed", "sleep 100 & kill -9 $!; wait $!; exit $?"), shell("logged", "echo last words; exit 1", func(c *v1.Container) {
			c.TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
		}))
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	k.apply(t, pod)
	pod = k.is(t, "codes", "failed", phase(v1.PodFailed))
	for name, want := range map[string]v1.ContainerStateTerminated{
		"zero": {Reason: "Completed"}, "some": {ExitCode: 42, Reason: "Error", Message: "for the operator\n"},
		"killed": {ExitCode: 137, Reason: "Error"}, "logged": {ExitCode: 1, Reason: "Error", Message: "last words\n"},
	} {
		got := status(t, pod, name).State.Terminated
		if got == nil || got.ExitCode != want.ExitCode || got.Reason != want.Reason || got.Message != want.Message ||
			got.StartedAt.IsZero() || got.FinishedAt.Before(&got.StartedAt) {
			t.Errorf("%s ended with %+v; want %+v", name, got, want)
		}
	}
}

// deadContainers are removed by the kubelet's collector, which comes every minute and leaves one of each.
func deadContainers(t *testing.T, k *kubelet) {
	pod := newPod("dead", shell("main", "exit 1"))
	k.apply(t, pod)
	k.is(t, "dead", "restarted five times", func(pod *v1.Pod) error {
		if s := pod.Status.ContainerStatuses; len(s) == 0 || s[0].RestartCount < 5 {
			return errors.New("not yet")
		}
		return nil
	})
	k.wait(t, "the dead containers to be collected", func() error {
		list, err := k.Runtime.ListContainers(k.Context(), nil)
		n := 0
		for _, c := range list {
			if c.Labels["io.kubernetes.pod.name"] == "dead-"+nodeName {
				n++
			}
		}
		if err != nil || n > 2 { // the last dead one, and one that is on its way
			return fmt.Errorf("%d containers, %w", n, err)
		}
		return nil
	})
	k.remove(t, "dead")
}

// httpProbe asks a port often.
func httpProbe(port int) *v1.Probe {
	return often(v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(int32(port))}})
}

// often is a probe each second that may fail once.
func often(h v1.ProbeHandler) *v1.Probe {
	return &v1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 5}
}
