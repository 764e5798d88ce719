package vm

import (
	"context"
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
const guestLimit = time.Hour

func TestMain(m *testing.M) {
	flag.Parse()
	if !*enabled {
		fmt.Println("virtual machines are left out: boot them with `make test-vm`")
		return
	}
	os.Exit(m.Run())
}

// choice is what of the integration tests a machine runs: those whose ways differ by the version of cgroups, the init
// system or the security module. An emulated machine would need hours for all of them.
var choice = strings.Join([]string{
	// limits, and what is read from cgroups
	"TestUpdateResources", "TestResizeAPod", "TestLimitsThatTheHostDoesNotHave", "TestUnifiedResources", "TestNoSwapUnlessGiven",
	"TestHugePages", "TestStatsAreThoseOfTheKernel", "TestPodStats", "TestPressure", "TestDeviceRules",
	// want of memory
	"TestOOM", "TestOOMWhileCridIsAway", "TestCVE_2019_14891_MonitorsOutliveTheirContainers",
	// who is found and killed by a cgroup
	"TestStop", "TestExecSync", "TestExecSyncWithoutEnd", "TestAVanishedClientTakesItsCommandAlong", "TestNestedCgroups",
	"TestAFrozenContainerIsStopped", "TestRestart", "TestAnExitIsToldWhenTheMonitorIsDead", "TestWhatHasNoRecordIsCollected",
	"TestFsckMendsOrphans", "TestFsckTellsWhatIsMissing",
	// what a container sees of its cgroup and of the host
	"TestFeaturesArriveInTheContainer", "TestCapabilities", "TestPrivileged", "TestPIDModes", "TestHostNetworkPods", "TestUserNamespace",
	"TestSharedPIDsInAUserNamespace", "TestHostsWithoutModules", "TestAppArmor", "TestAppArmorWithoutNewPrivileges", "TestAnUnloadedDefaultProfile", "TestAppArmorConfinesThePause",
}, "$|^")

// files are the programs that a guest runs: what `make build-test` has built, and the tests.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "bin"), os.DirFS("../../bin")); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", dir+"/", "./test/integration", "./test/systemd")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests: %v: %s", err, out)
	}
	return dir
}

// tests is a step that runs those tests of a program that match; prefix, if any, is a command that runs it.
func tests(name, program, match string, prefix ...string) Step {
	return Step{name, append(prefix, "./"+program, "-test.v", "-test.timeout=55m", "-test.run="+match),
		[]string{"CRID_BIN=/crid-test/bin", "CRID_TEST_ROOT=1", "CRID_TEST_SYSTEMD=1", "CRID_TEST_PATIENCE=10"}}
}

// integration is a step of the integration tests: a crid with the cgroupfs driver.
func integration(name, match string, prefix ...string) Step {
	if *only != "" {
		match = *only
	}
	return tests(name, "integration.test", "^"+match+"$", prefix...)
}

var exited = regexp.MustCompile(`^` + exitPrefix + `(\d+) (.+)$`)

// passed is what a program of tests says of a test that was neither skipped nor failed.
const passed = "--- PASS: "

// boot lets a machine take the steps and fails for each that fails, is not taken, or runs no test.
func boot(t *testing.T, d Distribution, kernel []string, steps ...Step) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestLimit)
	defer cancel()
	image, dir := cached(ctx, t, d), t.TempDir()
	payload, err := Payload(ctx, dir, files(t), steps)
	if err != nil {
		t.Fatal(err)
	}
	began, codes, ran := time.Now(), map[string]string{}, 0
	machine := Machine{Image: image, Payload: payload, Kernel: kernel, Dir: dir}
	err = machine.Run(ctx, func(line string) {
		fmt.Printf("%6.1fs %s\n", time.Since(began).Seconds(), line)
		if strings.HasPrefix(line, passed) {
			ran++
		}
		if m := exited.FindStringSubmatch(line); m != nil {
			if m[1] == "0" && ran == 0 {
				t.Errorf("%s: no test has run", m[2])
			}
			codes[m[2]], ran = m[1], 0
		}
	})
	if err != nil {
		console, _ := os.ReadFile(machine.console()) // it is for whoever looks into the failure
		t.Errorf("%v\n%s", err, console[max(0, len(console)-4000):])
	}
	for _, s := range steps {
		if codes[s.Name] != "0" {
			t.Errorf("%s: exit code %q", s.Name, codes[s.Name])
		}
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
		integration("a pod with the cgroupfs driver", "TestAPodsWholeLife/crun"),
		tests("a pod with the systemd driver", "systemd.test", "TestUnderSystemd/crun/a_container_is_a_scope"))
}

// cgroup v2, with AppArmor in the kernel.
func TestCgroupfs(t *testing.T) {
	boot(t, Debian, nil, integration("cgroupfs", "("+choice+")"))
}

// crid as systemd's unit, with the systemd driver: the unit is restarted under running pods.
func TestSystemd(t *testing.T) {
	boot(t, Debian, nil, tests("systemd", "systemd.test", "."))
}

// A crid that may not raise limits.
func TestWithoutSysResource(t *testing.T) {
	boot(t, Debian, nil, integration("without CAP_SYS_RESOURCE",
		"(TestAPodsWholeLife|TestFeaturesArriveInTheContainer|TestUpdateResources|TestUserNamespace|TestOOM|TestCapabilities)",
		"setpriv", "--bounding-set=-sys_resource"))
}

// Debian's SELinux policy, permissive: it has been taught of no container of crid's.
func TestSELinux(t *testing.T) {
	boot(t, SELinux, []string{"security=selinux", "selinux=1", "enforcing=0"},
		integration("selinux", "(TestAPodsWholeLife|TestFeaturesArriveInTheContainer|TestVolumes|TestSELinux)"))
}
