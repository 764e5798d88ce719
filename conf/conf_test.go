package conf

import (
	"os"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestTheUnitStartsWhatIsInstalled(t *testing.T) {
	unit, makefile := read(t, "crid.service"), read(t, "../Makefile")
	_, rest, _ := strings.Cut(unit, "\nExecStart=")
	program, _, _ := strings.Cut(rest, "\n")
	if program == "" || !strings.Contains(makefile, "$(DESTDIR)"+program+"\n") {
		t.Errorf("the unit starts %q, which `make install` does not install", program)
	}
}

// Without any of these, containers would end with crid, or crid before them.
func TestTheUnitLetsContainersLive(t *testing.T) {
	unit := read(t, "crid.service")
	for _, line := range []string{"Type=notify", "KillMode=process", "Delegate=yes", "TasksMax=infinity", "OOMScoreAdjust=-999",
		"RuntimeDirectoryPreserve=yes", "Restart=always", "StartLimitIntervalSec=0", "WatchdogSec=60", "NotifyAccess=main", "OOMPolicy=continue"} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no line %q", line)
		}
	}
}
