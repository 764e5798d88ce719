package vm

import (
	"context"
	_ "embed" // a script for the guest
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	enabled = flag.Bool("vm", false, "boot virtual machines; it takes many minutes where there is no KVM")
	only    = flag.String("only", "", "what to run of the integration tests, in the place of the choice made here")
)

// guestLimit bounds one machine from boot to its end.
const guestLimit = 2 * time.Hour

func TestMain(m *testing.M) {
	flag.Parse()
	if !*enabled {
		fmt.Println("virtual machines are left out: boot them with `make test-vm`")
		return
	}
	os.Exit(m.Run())
}

// byCgroups are those of the integration tests whose ways differ by the version of cgroups. An emulated machine would need
// hours for all of them.
var byCgroups = []string{
	// limits, and what is read from cgroups
	"TestUpdateResources", "TestResizeAPod", "TestLimitsThatTheHostDoesNotHave", "TestUnifiedResources", "TestNoSwapUnlessGiven",
	"TestHugePages", "TestStatsAreThoseOfTheKernel", "TestPodStats", "TestPressure", "TestDeviceRules",
	// want of memory
	"TestOOM", "TestOOMWhileCridIsAway", "TestCVE_2019_14891_MonitorsOutliveTheirContainers",
	// who is found and killed by a cgroup
	"TestStop", "TestExecSync", "TestExecSyncWithoutEnd", "TestAVanishedClientTakesItsCommandAlong", "TestNestedCgroups",
	"TestAFrozenContainerIsStopped", "TestRestart", "TestAnExitIsToldWhenTheMonitorIsDead", "TestWhatHasNoRecordIsCollected",
	"TestFsckMendsOrphans", "TestFsckTellsWhatIsMissing",
	// what a container sees of its cgroup
	"TestPrivileged", "TestUserNamespace", "TestSharedPIDsInAUserNamespace",
}

//go:embed guest/delegated.sh
var delegated string

// files are the programs that a guest runs: what `make build-test` has built, the tests, and what runs them elsewhere.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "bin"), os.DirFS("../../bin")); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", dir+"/", "./test/integration", "./test/systemd", "./internal/cgroup")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "delegated.sh"), []byte(delegated), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// part is a step, and the tests that have to pass in it.
type part struct {
	Step
	chosen []string
}

// tests is a step that runs those tests of a program that match; prefix, if any, is a command that runs it.
func tests(name, program, match string, prefix ...string) part {
	return part{Step: Step{name, append(prefix, "./"+program, "-test.v", "-test.timeout=110m", "-test.run="+match),
		[]string{"CRID_BIN=/crid-test/bin", "CRID_TEST_ROOT=1", "CRID_TEST_SYSTEMD=1", "CRID_TEST_PATIENCE=10"}}}
}

// integration is a step of the integration tests: a crid with the cgroupfs driver. Each test has to pass.
func integration(name string, chosen []string, prefix ...string) part {
	if *only != "" {
		return tests(name, "integration.test", "^"+*only+"$", prefix...)
	}
	p := tests(name, "integration.test", "^"+strings.Join(chosen, "$|^")+"$", prefix...)
	p.chosen = chosen
	return p
}

var (
	exited = regexp.MustCompile(`^` + exitPrefix + `(\d+) (.+)$`)
	// passed is what a program says of a test that was neither skipped nor failed.
	passed = regexp.MustCompile(`^--- PASS: (\S+)`)
)

// outcome is what a machine has said of its steps.
type outcome struct {
	codes map[string]string          // exit codes, by step
	ran   map[string]map[string]bool // tests that have passed, by step
	now   map[string]bool            // of the step that goes on
}

func (o *outcome) hear(line string) {
	if m := passed.FindStringSubmatch(line); m != nil {
		o.now[m[1]] = true
	}
	if m := exited.FindStringSubmatch(line); m != nil {
		o.codes[m[2]], o.ran[m[2]], o.now = m[1], o.now, map[string]bool{}
	}
}

// judge fails t for a part that has failed, was not taken, or has left out a test.
func (o *outcome) judge(t *testing.T, p part) {
	t.Helper()
	switch {
	case o.codes[p.Name] != "0":
		t.Errorf("%s: exit code %q", p.Name, o.codes[p.Name])
	case len(o.ran[p.Name]) == 0:
		t.Errorf("%s: no test has run", p.Name)
	}
	for _, test := range p.chosen {
		if name, _, _ := strings.Cut(test, "/"); !o.ran[p.Name][name] {
			t.Errorf("%s: %s has not passed", p.Name, name)
		}
	}
}

// boot lets a machine take the parts and fails for each that fails.
func boot(t *testing.T, d Distribution, kernel []string, parts ...part) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestLimit)
	defer cancel()
	var steps []Step
	for _, p := range parts {
		steps = append(steps, p.Step)
	}
	image, dir := cached(ctx, t, d), t.TempDir()
	payload, err := Payload(ctx, dir, files(t), steps)
	if err != nil {
		t.Fatal(err)
	}
	began, heard := time.Now(), outcome{map[string]string{}, map[string]map[string]bool{}, map[string]bool{}}
	machine := Machine{Image: image, Payload: payload, Kernel: kernel, Dir: dir}
	err = machine.Run(ctx, func(line string) {
		fmt.Printf("%6.1fs %s\n", time.Since(began).Seconds(), line)
		heard.hear(line)
	})
	if err != nil {
		console, _ := os.ReadFile(machine.console()) // it is for whoever looks into the failure
		t.Errorf("%v\n%s", err, console[max(0, len(console)-4000):])
	}
	for _, p := range parts {
		heard.judge(t, p)
	}
}

// cached is the image of a distribution, which is made where there is none.
func cached(ctx context.Context, t *testing.T, d Distribution) Image {
	t.Helper()
	caches, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := d.Image(ctx, filepath.Join(caches, "crid", "vm"))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// The disk that machines boot from, which needs Debian's archive.
func TestImage(t *testing.T) { cached(t.Context(), t, Debian) }

// The least that has to work on a node: a pod's whole life, with each of the two cgroup drivers.
func TestBoot(t *testing.T) {
	boot(t, Debian, nil,
		integration("a pod with the cgroupfs driver", []string{"TestAPodsWholeLife/crun"}),
		tests("a pod with the systemd driver", "systemd.test", "TestUnderSystemd/crun/a_container_is_a_scope"))
}

// cgroup v2, of which crid has the whole.
func TestCgroupfs(t *testing.T) {
	boot(t, Debian, nil, tests("cgroups of v2", "cgroup.test", "."), integration("cgroupfs", byCgroups))
}

// A crid whose root of the cgroups is a part of the host's.
func TestDelegated(t *testing.T) {
	boot(t, Debian, nil, integration("delegated", []string{
		"TestAPodsWholeLife", "TestUpdateResources", "TestUnifiedResources", "TestStatsAreThoseOfTheKernel", "TestOOM", "TestStop", "TestExecSync",
		"TestNestedCgroups", "TestAFrozenContainerIsStopped", "TestFsckMendsOrphans", "TestACgroupRootWithProcesses",
	}, "sh", "./delegated.sh"))
}

// crid as systemd's unit, with the systemd driver: the unit is restarted under running pods.
func TestSystemd(t *testing.T) {
	boot(t, Debian, nil, tests("systemd", "systemd.test", "."))
}

// A crid that may not raise limits.
func TestWithoutSysResource(t *testing.T) {
	boot(t, Debian, nil, integration("without CAP_SYS_RESOURCE", []string{
		"TestAPodsWholeLife", "TestFeaturesArriveInTheContainer", "TestUpdateResources", "TestUserNamespace", "TestOOM", "TestCapabilities",
	}, "setpriv", "--bounding-set=-sys_resource"))
}

func TestAppArmor(t *testing.T) {
	boot(t, Debian, nil, integration("apparmor", []string{
		"TestAppArmor", "TestAppArmorWithoutNewPrivileges", "TestAnUnloadedDefaultProfile", "TestAppArmorConfinesThePause",
	}))
}

// Debian's SELinux policy, permissive: it has been taught of no container of crid's.
func TestSELinux(t *testing.T) {
	boot(t, SELinux, []string{"security=selinux", "selinux=1", "enforcing=0"}, integration("selinux", []string{
		"TestAPodsWholeLife", "TestFeaturesArriveInTheContainer", "TestVolumes", "TestSELinux",
	}))
}
