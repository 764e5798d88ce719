package spec

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// The real-time signals as programs see them; the C library keeps 32 and 33 for itself.
const (
	sigrtmin = 34
	sigrtmax = 64
)

// StopSignal is what asks the container to end: the CRI's stop_signal, else the image's StopSignal, else
// SIGTERM. A signal that nobody knows is Invalid.
func StopSignal(c *runtime.ContainerConfig, image imgspec.ImageConfig) (syscall.Signal, error) {
	if s := c.GetStopSignal(); s != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		sig, err := parseSignal(criSignalName(s))
		if err != nil {
			return 0, fmt.Errorf("stop_signal: %w", err)
		}
		return sig, nil
	}
	if image.StopSignal == "" {
		return syscall.SIGTERM, nil
	}
	sig, err := parseSignal(image.StopSignal)
	if err != nil {
		return 0, fmt.Errorf("image %s: StopSignal: %w", imageName(c), err)
	}
	return sig, nil
}

// CRISignal is the CRI's name of a signal, as ContainerStatus reports it; RUNTIME_DEFAULT for one that the
// CRI has no name for.
func CRISignal(sig syscall.Signal) runtime.Signal {
	for s := runtime.Signal_SIGNAL_SIGABRT; s <= runtime.Signal_SIGNAL_SIGRTMAX; s++ {
		switch s {
		case runtime.Signal_SIGNAL_SIGCLD, runtime.Signal_SIGNAL_SIGIOT, runtime.Signal_SIGNAL_SIGPOLL:
			continue // second names of SIGCHLD, SIGABRT and SIGIO
		}
		if parsed, err := parseSignal(criSignalName(s)); err == nil && parsed == sig {
			return s
		}
	}
	return runtime.Signal_SIGNAL_RUNTIME_DEFAULT
}

// criSignalName turns SIGNAL_SIGRTMINPLUS3 into SIGRTMIN+3.
func criSignalName(s runtime.Signal) string {
	return strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-").Replace(s.String())
}

// parseSignal reads "SIGTERM", "TERM", "15", "RTMIN+3" and "RTMAX-1" in any case.
func parseSignal(s string) (syscall.Signal, error) {
	unknown := fmt.Errorf("unknown signal %q: %w", s, errdef.Invalid)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigrtmax {
			return 0, unknown
		}
		return syscall.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if strings.HasPrefix(name, "RT") {
		return parseRealTime(name, unknown)
	}
	switch name {
	case "CLD":
		name = "CHLD"
	case "IOT":
		name = "ABRT"
	case "POLL":
		name = "IO"
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	return 0, unknown
}

func parseRealTime(name string, unknown error) (syscall.Signal, error) {
	n := 0
	if offset := name[min(len(name), len("RTMIN")):]; offset != "" {
		var err error
		n, err = strconv.Atoi(offset)
		if err != nil || (offset[0] != '+' && offset[0] != '-') {
			return 0, unknown
		}
	}
	switch {
	case strings.HasPrefix(name, "RTMIN") && n >= 0:
		n += sigrtmin
	case strings.HasPrefix(name, "RTMAX") && n <= 0:
		n += sigrtmax
	default:
		return 0, unknown
	}
	if n < sigrtmin || n > sigrtmax {
		return 0, unknown
	}
	return syscall.Signal(n), nil
}
