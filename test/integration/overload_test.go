package integration

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// TestTwoHundredAtOnce asks for two hundred pods, then for a container in each, all at the same moment.
func TestTwoHundredAtOnce(t *testing.T) {
	const pods, limit = 200, 150 << 10 // KiB
	c := harness.Start(t, harness.Quiet())
	c.Pull(images.Busybox)
	client := c.Client()
	ids := make([]*harness.Pod, pods)
	atOnce(t, "run pod", pods, func(i int) error {
		cfg := c.PodConfig()
		got, err := client.RunPodSandbox(c.Context(), &runtime.RunPodSandboxRequest{Config: cfg})
		ids[i] = c.Pod(got.GetPodSandboxId(), cfg)
		return err
	})
	containers := make([]string, pods)
	atOnce(t, "create container", pods, func(i int) error {
		got, err := client.CreateContainer(c.Context(), &runtime.CreateContainerRequest{
			PodSandboxId: ids[i].ID, SandboxConfig: ids[i].Config, Config: ids[i].ContainerConfig("sleep 1000"),
		})
		containers[i] = got.GetContainerId()
		return err
	})
	atOnce(t, "start container", pods, func(i int) error {
		_, err := client.StartContainer(c.Context(), &runtime.StartContainerRequest{ContainerId: containers[i]})
		return err
	})
	atOnce(t, "stop pod", pods, func(i int) error {
		_, err := client.StopPodSandbox(c.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: ids[i].ID})
		return err
	})
	if peak := peakMemory(t, c); peak > limit {
		t.Errorf("crid had %d MiB resident; want at most %d", peak>>10, limit>>10)
	}
}

// atOnce calls do n times at the same moment; none may fail.
func atOnce(t *testing.T, what string, n int, do func(i int) error) {
	t.Helper()
	began := time.Now()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { // ends with its call
			<-start
			if err := do(i); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	close(start)
	wg.Wait()
	t.Logf("%d times %s: %v", n, what, time.Since(began).Round(10*time.Millisecond))
}

// peakMemory is the most that crid ever had resident, in KiB.
func peakMemory(t *testing.T, c *harness.Crid) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			t.Logf("crid had at most %d MiB resident", kib>>10)
			return kib
		}
	}
	t.Fatal("no VmHWM in /proc")
	return 0
}
