package isolate

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// DemandRoot, when the environment sets it to 1, makes tests fail that are else left out without root.
const DemandRoot = "CRID_TEST_ROOT"

// Tests is the body of a TestMain: run, which has to call m.Run, runs isolated as with Run. Without root it runs
// where it is, and NeedRoot leaves out the tests that cannot. A TestMain that also plays other programs has to find
// out before whether it is one.
func Tests(run func() int) {
	if os.Geteuid() != 0 {
		os.Exit(run())
	}
	Run(run)
}

// NeedRoot is the first thing that a test does which needs root and must not touch the host; reason tells what
// for. Without root the test is skipped, or fails where DemandRoot asks for all.
func NeedRoot(t testing.TB, reason string) {
	t.Helper()
	switch {
	case os.Getenv(stageVar) == programStage:
	case os.Geteuid() == 0:
		t.Fatal("not isolated: TestMain has to call isolate.Tests")
	default:
		Lacking(t, "root: "+reason)
	}
}

// Lacking leaves a test out for want of something, or fails it where DemandRoot asks for all.
func Lacking(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(DemandRoot) == "1" {
		t.Fatalf("%s=1 demands this test, and it needs %s", DemandRoot, what)
	}
	t.Skipf("needs %s", what)
}

// Running counts the processes of this PID namespace whose command line contains words.
func Running(t testing.TB, words string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		line, err := os.ReadFile(f) // fails when the process has ended
		if err == nil && strings.Contains(string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))), words) {
			n++
		}
	}
	return n
}

// OpenFiles counts the descriptors of this process.
func OpenFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Patience, in the environment, is a number that every limit of a test's waiting is multiplied by: an emulated machine
// is slow.
const Patience = "CRID_TEST_PATIENCE"

// Patient is limit on this machine.
func Patient(limit time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(Patience)); err == nil && n > 1 {
		return time.Duration(n) * limit
	}
	return limit
}
