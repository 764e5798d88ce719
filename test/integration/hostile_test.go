package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// A container that has its pod's log directory mounted can put anything there: the monitor, which is root, takes none
// of it for a log.
func TestLogsThatLeadElsewhere(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	logs := pod.Config.LogDirectory
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(victim, []byte("untouched"), 0o600))
	must(os.MkdirAll(logs, 0o755))
	must(os.Symlink(victim, filepath.Join(logs, "file.log")))
	must(os.Symlink(filepath.Join(outside, "new"), filepath.Join(logs, "dangling.log")))
	must(os.Symlink(outside, filepath.Join(logs, "dir")))
	must(unix.Mkfifo(filepath.Join(logs, "pipe.log"), 0o600))
	must(unix.Mknod(filepath.Join(logs, "device.log"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	for _, path := range []string{"file.log", "dangling.log", "dir/victim", "dir/a/0.log", "pipe.log", "device.log", ".", "a\x00b"} {
		_, err := pod.TryCreate(pod.ContainerConfig("echo mine", func(cfg *runtime.ContainerConfig) { cfg.LogPath = path }))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "log_path") {
			t.Errorf("%q: got %v", path, err)
		}
	}
	ctr := pod.Run("sleep 1000")
	log := ctr.Status().LogPath
	must(os.Rename(log, log+".1"))
	must(os.Symlink(victim, log))
	if err := c.Runtime.ReopenContainerLog(c.Context(), ctr.ID); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), log) {
		t.Errorf("a log that was replaced is reopened: %v", err)
	}
	must(os.Remove(log))
	must(c.Runtime.ReopenContainerLog(c.Context(), ctr.ID))
	if got, err := os.ReadFile(victim); err != nil || string(got) != "untouched" {
		t.Errorf("the victim is %q, %v", got, err)
	}
	if found, err := os.ReadDir(outside); err != nil || len(found) != 1 {
		t.Errorf("outside are %v, %v", found, err)
	}
}

// What is too large is refused by a limit that the error tells; what is large and allowed comes back from every list,
// and from a record after a restart.
func TestLargeRequests(t *testing.T) {
	c := harness.Start(t)
	annotate := func(bytes int) func(*runtime.PodSandboxConfig) {
		return func(cfg *runtime.PodSandboxConfig) {
			cfg.Annotations = map[string]string{"large": strings.Repeat("é", bytes/2)}
		}
	}
	for name, refused := range map[string]struct {
		bytes int
		code  codes.Code
		words string
	}{
		"a message": {17 << 20, codes.ResourceExhausted, "16777216"},
		"a config":  {10 << 20, codes.InvalidArgument, "4194304"},
		"labels":    {2 << 20, codes.InvalidArgument, "1048576"},
	} {
		_, err := c.Client().RunPodSandbox(c.Context(), &runtime.RunPodSandboxRequest{Config: c.PodConfig(annotate(refused.bytes))})
		if status.Code(err) != refused.code || !strings.Contains(err.Error(), refused.words) || len(err.Error()) > 4096 {
			t.Errorf("%s of %d bytes: %.300v", name, refused.bytes, err)
		}
	}
	pod := c.RunPod(annotate(900 << 10))
	c.Restart()
	list, err := c.Runtime.ListPodSandbox(c.Context(), nil)
	if err != nil || len(list) != 1 || len(list[0].Annotations["large"]) != 900<<10 || len(pod.Status().Annotations["large"]) != 900<<10 {
		t.Errorf("%d pods, %v", len(list), err)
	}
}

// A command that writes without end is drained to its timeout, in memory that is bounded, and then dead.
func TestExecSyncWithoutEnd(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		ctr := pod.Run("sleep 1000")
		_, err := c.ExecSync(&runtime.ExecSyncRequest{ContainerId: ctr.ID, Cmd: []string{"sh", "-c", "yes endless & yes endless >&2"}, Timeout: 3})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		if got := ctr.Exec("ps | grep '[y]es endless' || true"); got != "" {
			t.Errorf("left of the command: %q", got)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
		if err != nil {
			t.Fatal(err)
		}
		var peak int // KiB
		_, rest, _ := strings.Cut(string(status), "VmHWM:")
		if _, err := fmt.Sscan(rest, &peak); err != nil || peak > 200<<10 {
			t.Errorf("crid needed %d KiB, %v", peak, err)
		}
	})
}
