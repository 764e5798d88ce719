package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// hangingRuntime is crun behind a script, which hangs at a verb for containers whose id is in a file of the verb's name.
func hangingRuntime(t *testing.T) (dir string, option harness.Option) {
	t.Helper()
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
for arg in "$@"; do
	case $arg in create|start|delete|state|exec|update) verb=$arg; break ;; esac
done
for id in "$@"; do :; done
if [ -n "$verb" ] && [ -e %[1]s/$verb ] && grep -q "$id" %[1]s/$verb; then
	while :; do sleep 1; done
fi
exec %[2]s "$@"
`, dir, crun)
	path := filepath.Join(dir, "hanging")
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, harness.Config(fmt.Sprintf("[runtimes.hanging]\npath = %q\nroot = %q", path, filepath.Join(dir, "root")))
}

// trouble is a container whose runtime hangs, a pod whose network does, and a container whose volume does.
type trouble struct {
	t        *testing.T
	c        *harness.Crid
	network  faultyNetwork
	runtime  string // directory of the hanging runtime
	volume   *stuckVolume
	hanging  *harness.Container // its start hangs
	stuck    *harness.Pod       // that of the container that hangs
	neighbor *harness.Pod       // that of the container whose volume hangs
	leave    context.CancelFunc // ends the calls
	ended    []chan error       // of the calls
}

// begin makes the trouble and returns once all of it hangs.
func (d *trouble) begin() {
	d.t.Helper()
	client := d.c.Client()
	ctx, cancel := context.WithCancel(d.t.Context())
	d.leave = cancel
	background := func(call func() error) chan error {
		done := make(chan error, 1)
		d.ended = append(d.ended, done)
		go func() { done <- call() }() // ends with ctx
		return done
	}
	cfg := d.c.PodConfig()
	id, err := d.c.Runtime.RunPodSandbox(d.c.Context(), cfg, "hanging")
	if err != nil {
		d.t.Fatal(err)
	}
	d.stuck = d.c.Pod(id, cfg)
	d.hanging = d.stuck.Create("sleep 1000")
	write(d.t, filepath.Join(d.runtime, "start"), d.hanging.ID)
	d.network.fail(faults{Sleep: "sleepy"})
	d.volume.stuck.Store(true)
	background(func() error {
		_, err := client.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: d.hanging.ID})
		return err
	})
	background(func() error {
		sleepy := d.c.PodConfig(func(cfg *runtime.PodSandboxConfig) { cfg.Metadata.Name = "sleepy" })
		_, err := client.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sleepy})
		return err
	})
	created := background(func() error {
		blocked := d.neighbor.ContainerConfig("true", sharing(filepath.Join(d.volume.Dir, "sub")))
		_, err := client.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: d.neighbor.ID, Config: blocked, SandboxConfig: d.neighbor.Config})
		return err
	})
	select {
	case err := <-created:
		d.t.Fatal("the stuck volume held nobody:", err)
	case <-d.volume.asked:
	}
	eventually(d.t, "all three to hang", func() bool { return len(operations(d.t, d.c)) == 3 })
}

// end takes the trouble away. Nothing may be left of it.
func (d *trouble) end() {
	d.t.Helper()
	d.leave()
	for _, done := range d.ended {
		if err := <-done; status.Code(err) != codes.Canceled {
			d.t.Errorf("a call that hung: %v", err)
		}
	}
	d.volume.abort()
	d.network.fail(faults{})
	write(d.t, filepath.Join(d.runtime, "start"), "nobody")
	d.stuck.Stop()
	d.neighbor.Stop()
	if err := d.c.Node.Kill(); err != nil { // rather than wait for the plugin
		d.t.Fatal(err)
	}
	killAll(d.t, func(args []string) bool { return filepath.Base(args[0]) == faulty })
	if err := d.c.Node.Again(d.c.Context()); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, "the sleepy pod to be undone", func() bool {
		return len(operations(d.t, d.c)) == 0 && len(tombstones(d.t, d.c)) == 0
	})
}

// TestNobodyWaitsForAnothersTrouble asks all questions amid trouble, which are answered at once, and has another pod come
// up as fast as ever.
func TestNobodyWaitsForAnothersTrouble(t *testing.T) {
	dir, hanging := hangingRuntime(t)
	d := &trouble{t: t, network: newFaultyNetwork(t), runtime: dir}
	d.c = d.network.start(hanging)
	d.volume = mountStuckVolume(t)
	d.c.Pull(images.Busybox)
	life := func() time.Duration {
		began := time.Now()
		pod := d.c.RunPod()
		pod.Run("sleep 1000")
		pod.Stop()
		pod.Remove()
		return time.Since(began)
	}
	quiet := fastest(5, life)
	d.neighbor = d.c.RunPod()
	witness := d.neighbor.Run("sleep 1000")
	d.begin()
	for what, ask := range d.questions() {
		t.Logf("%s: p99 %v", what, quickly(t, what, ask))
	}
	troubled := fastest(5, life)
	t.Logf("a pod's life took %v, with trouble beside it %v", quiet, troubled)
	if troubled > 2*quiet+200*time.Millisecond {
		t.Errorf("a pod's life took %v, with trouble beside it %v", quiet, troubled)
	}
	if got := witness.Exec("echo here"); got != "here\n" {
		t.Errorf("a container of the pod with the stuck volume: %q", got)
	}
	d.end()
}

// questions are those that the kubelet asks all the time.
func (d *trouble) questions() map[string]func() error {
	client, ctx := d.c.Client(), d.c.Context()
	busybox := &runtime.ImageSpec{Image: harness.Ref(images.Busybox)}
	return map[string]func() error{
		"ListPodSandbox": func() error { _, err := client.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{}); return err },
		"ListContainers": func() error { _, err := client.ListContainers(ctx, &runtime.ListContainersRequest{}); return err },
		"ContainerStatus of the one that hangs": func() error {
			_, err := client.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: d.hanging.ID})
			return err
		},
		"PodSandboxStatus": func() error {
			_, err := client.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: d.stuck.ID})
			return err
		},
		"PodSandboxStatus of the pod with the stuck volume": func() error {
			_, err := client.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: d.neighbor.ID})
			return err
		},
		"ListImages":  func() error { _, err := d.c.Images.ListImages(ctx, nil); return err },
		"ImageStatus": func() error { _, err := d.c.Images.ImageStatus(ctx, busybox, false); return err },
		"ImageFsInfo": func() error { _, err := d.c.Images.ImageFsInfo(ctx); return err },
		"Status":      func() error { _, err := client.Status(ctx, &runtime.StatusRequest{Verbose: true}); return err },
	}
}

// operations are what Status tells to be in flight.
func operations(t *testing.T, c *harness.Crid) []map[string]string {
	t.Helper()
	var info struct{ Operations []map[string]string }
	inside(t, c, &info)
	return info.Operations
}

// fastest is the shortest of n tries.
func fastest(n int, try func() time.Duration) time.Duration {
	shortest := try()
	for range n - 1 {
		shortest = min(shortest, try())
	}
	return shortest
}

// quickly asks again and again and returns the 99th percentile of how long it took: less than five milliseconds, in one
// of a few tries on a machine that may be busy.
func quickly(t *testing.T, what string, ask func() error) time.Duration {
	t.Helper()
	const limit, tries, asked = 5 * time.Millisecond, 5, 300
	var p99 time.Duration
	for range tries {
		var took []time.Duration
		for range asked {
			began := time.Now()
			if err := ask(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		if p99 = took[len(took)*99/100]; p99 < limit {
			return p99
		}
	}
	t.Errorf("%s takes %v; want less than %v", what, p99, limit)
	return p99
}
