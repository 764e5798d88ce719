package integration

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

func TestStopSignals(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, s := range []struct {
			name    string
			image   string
			ask     runtime.Signal
			trap    string // how a shell names it
			told    runtime.Signal
			restart bool
		}{
			{"nobody names one", images.Busybox, runtime.Signal_SIGNAL_RUNTIME_DEFAULT, "TERM", runtime.Signal_SIGNAL_SIGTERM, false},
			{"the image does", images.Pausing, runtime.Signal_SIGNAL_RUNTIME_DEFAULT, "USR1", runtime.Signal_SIGNAL_SIGUSR1, false},
			{"the pod does", images.Busybox, runtime.Signal_SIGNAL_SIGUSR2, "USR2", runtime.Signal_SIGNAL_SIGUSR2, false},
			{"the pod over the image", images.Pausing, runtime.Signal_SIGNAL_SIGINT, "INT", runtime.Signal_SIGNAL_SIGINT, true},
			{"a real-time signal", images.Busybox, runtime.Signal_SIGNAL_SIGRTMINPLUS3, "37", runtime.Signal_SIGNAL_SIGRTMINPLUS3, false},
		} {
			ctr := pod.Run("trap 'exit 7' "+s.trap+"; touch /tmp/set; while :; do sleep 0.05; done", func(cfg *runtime.ContainerConfig) {
				cfg.Image.Image = harness.Ref(s.image)
				cfg.StopSignal = s.ask
			})
			eventually(t, "the trap is set", func() bool { return ctr.Exec("ls /tmp/set 2>/dev/null || true") != "" })
			if s.restart {
				c.Restart()
			}
			ctr.Stop(30)
			if got := ctr.Status(); got.ExitCode != 7 || got.StopSignal != s.told {
				t.Errorf("%s: exit code %d, told %s", s.name, got.ExitCode, got.StopSignal)
			}
		}
		_, err := pod.TryCreate(pod.ContainerConfig("true", func(cfg *runtime.ContainerConfig) { cfg.StopSignal = 4711 }))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "stop_signal") {
			t.Errorf("a signal that nobody knows: %v", err)
		}
	})
}
