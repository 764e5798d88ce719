package integration

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/crid/crid/test/harness"
)

// peak is the most memory that crid has ever held, in KiB.
func peak(t *testing.T, c *harness.Crid) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(c.PID()) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatal("no peak of crid's memory")
	return 0
}
