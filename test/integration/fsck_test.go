package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// finding is what `crid fsck --output json` says of one thing.
type finding struct {
	Problem, Kind, Name, Why, Remedy, Outcome string
	Of                                        struct{ Kind, ID string }
	Owner                                     struct{ Name, Namespace, Pod string }
	Size                                      struct{ Bytes, Inodes uint64 }
}

func (f finding) String() string {
	return fmt.Sprintf("%s %s %s of %s %s: %s %s %s", f.Problem, f.Kind, f.Name, f.Of.Kind, f.Of.ID, f.Why, f.Remedy, f.Outcome)
}

// fsck runs `crid fsck` and checks that its exit code is what it reports.
func fsck(t *testing.T, c *harness.Crid, args ...string) []finding {
	t.Helper()
	args = append([]string{"fsck", "--output", "json", "--config", c.ConfigFile()}, args...)
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	code := 0
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		code = ended.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var report struct{ Findings []finding }
	if code > 1 || json.Unmarshal(out, &report) != nil || (code == 1) != (len(report.Findings) > 0) {
		t.Fatalf("crid %v: exit code %d\n%s%s", args, code, out, stderr.String())
	}
	return report.Findings
}

// allSorts makes pods that differ in what they have.
func allSorts(c *harness.Crid) {
	c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	}).Run("sleep 1000")
	c.RunPod(usersOf(idMap(hostUID), idMap(hostGID))).Run("sleep 1000")
	c.RunPod(func(cfg *runtime.PodSandboxConfig) {
		cfg.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		cfg.Linux.SecurityContext.NamespaceOptions.Ipc = runtime.NamespaceMode_NODE
	}).Run("exit 3").Wait()
	c.RunPod().Run("sleep 1000", withMounts(imageVolume(c.Pull(images.Busybox), "")))
	c.RunPod().Stop()
}

// repeat does something again and again until stop is closed, and answers how often it did.
func repeat(t *testing.T, stop chan struct{}, something func() error) int {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return n
		default:
		}
		if err := something(); err != nil {
			t.Error(err)
			return n
		}
	}
}

func TestFsckFindsNothingAmidChurn(t *testing.T) {
	c := harness.Start(t, harness.Quiet())
	if found := fsck(t, c); len(found) > 0 {
		t.Fatalf("on a new node: %v", found)
	}
	allSorts(c)
	if found := fsck(t, c); len(found) > 0 {
		t.Fatalf("with pods of all sorts: %v", found)
	}
	image := c.RunPod().ContainerConfig("").Image // as a pod's containers name it
	var churn sync.WaitGroup
	var rounds [10]int
	var pulls int
	stop := make(chan struct{})
	for i := range rounds {
		churn.Go(func() { // ends with stop
			rounds[i] = repeat(t, stop, func() error { return onePod(t, c, image, i%2 == 0) })
		})
	}
	churn.Go(func() { // ends with stop
		spec := &runtime.ImageSpec{Image: harness.Ref(images.Web)}
		pulls = repeat(t, stop, func() error {
			_, err := c.Images.PullImage(t.Context(), spec, nil, nil)
			return errors.Join(err, c.Images.RemoveImage(t.Context(), spec))
		})
	})
	for i := range 100 {
		var args []string
		if i%10 == 0 {
			args = append(args, "--repair") // which must do no harm either
		}
		if found := fsck(t, c, args...); len(found) > 0 {
			t.Errorf("found %v", found)
		}
	}
	close(stop)
	churn.Wait()
	t.Logf("beside 100 checks: pods %v, pulls %d", rounds, pulls)
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("afterwards: %v", found)
	}
}

// onePod leads one pod with one container through its life, without the harness: t.Fatal is not for other goroutines.
func onePod(t *testing.T, c *harness.Crid, image *runtime.ImageSpec, share bool) error {
	cfg := c.PodConfig()
	if share {
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	}
	ctx := t.Context()
	pod, err := c.Runtime.RunPodSandbox(ctx, cfg, "")
	if err != nil {
		return err
	}
	ctr, err := c.Runtime.CreateContainer(ctx, pod, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "churn"}, Image: image, Command: []string{"sleep", "1000"}, LogPath: "churn.log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: cfg.Linux.SecurityContext.NamespaceOptions}},
	}, cfg)
	if err == nil {
		err = c.Runtime.StartContainer(ctx, ctr)
	}
	return errors.Join(err, c.Runtime.StopPodSandbox(ctx, pod), c.Runtime.RemovePodSandbox(ctx, pod))
}

// told checks that what was planted, and nothing else, is found.
func told(t *testing.T, c *harness.Crid, found []finding, want [][3]string, outcome string) {
	t.Helper()
	matched := map[int]bool{}
	for _, w := range want {
		hit := false
		for i, f := range found {
			if f.Kind == w[0] && strings.Contains(f.Name, w[1]) && f.Of.ID == w[2] {
				hit, matched[i] = true, true
				if f.Outcome != outcome {
					t.Errorf("outcome of %v", f)
				}
				if sized := map[string]uint64{"rootfs": 100_000, "trash": 50_000, "layer": 20_000}[f.Kind]; f.Size.Bytes < sized || sized > 0 && f.Size.Inodes < 2 {
					t.Errorf("size %v of %v", f.Size, f)
				}
				if f.Kind == "monitor" && (f.Owner.Name != "lost/web" || f.Owner.Namespace != "away") ||
					strings.Contains(f.Name, "/net-") && (f.Owner.Name != "gone" || f.Owner.Namespace != "away") {
					t.Errorf("owner %v of %v", f.Owner, f)
				}
			}
		}
		if !hit && !(w[0] == "cni cache" && collected(t, c, w[2])) {
			t.Errorf("not found: %v", w)
		}
	}
	for i, f := range found {
		if !matched[i] && !(f.Kind == "pod files" && f.Outcome == outcome) { // the directory of the planted shm
			t.Errorf("found besides: %v", f)
		}
	}
}

// collected tells whether the garbage collection of the network came first, which a running crid makes when no pod is
// being attached.
func collected(t *testing.T, c *harness.Crid, id string) bool {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(c.Root(), "cni", "results", "*"+id+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(left) == 0
}

func TestFsckMendsOrphans(t *testing.T) {
	for name, stopped := range map[string]bool{"beside crid": false, "crid is stopped": true} {
		t.Run(name, func(t *testing.T) {
			c := harness.Start(t)
			stays := c.RunPod().Run("sleep 1000")
			pid := stays.Exec("echo $PPID")
			if stopped {
				if err := c.Node.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			want := plant(t, c, stopped)
			told(t, c, fsck(t, c), want, "")
			told(t, c, fsck(t, c), want, "") // looking has changed nothing
			told(t, c, fsck(t, c, "--repair"), want, "mended")
			if found := fsck(t, c); len(found) > 0 {
				t.Errorf("after repairing: %v", found)
			}
			if stopped {
				if err := c.Node.Again(c.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if s := stays.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING || stays.Exec("echo $PPID") != pid {
				t.Errorf("the running container: %v", s)
			}
		})
	}
}

// mendsAll checks that fsck finds whole things at least, all with one of the problems and of the ids, mends them, and finds
// nothing afterwards.
func mendsAll(t *testing.T, c *harness.Crid, problems string, whole int, ids ...string) {
	t.Helper()
	found := fsck(t, c)
	for _, f := range found {
		if !strings.Contains(problems, f.Problem) || !slices.Contains(ids, f.Of.ID) {
			t.Errorf("found %v", f)
		}
	}
	if len(found) < whole {
		t.Errorf("found only %v", found)
	}
	for _, f := range fsck(t, c, "--repair") {
		if f.Outcome != "mended" {
			t.Errorf("not mended: %v", f)
		}
	}
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("after repairing: %v", found)
	}
}

// A crid that runs knows what its records said.
func TestFsckWritesLostRecordsAgain(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	if err := os.Remove(filepath.Join(c.Root(), "state/pods", pod.ID+".json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Root(), "state/containers", ctr.ID+".json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	mendsAll(t, c, "missing unreadable", 2, pod.ID, ctr.ID)
	c.Crash()
	ctr.Exec("true")
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("after a restart: %v", found)
	}
}

// While no crid runs, all of a pod without records is nobody's.
func TestFsckRemovesWhatHasNoRecord(t *testing.T) {
	c := harness.Start(t)
	lost, stays := c.RunPod(), c.RunPod().Run("sleep 1000")
	gone := lost.Run("sleep 1000")
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"pods/" + lost.ID, "containers/" + gone.ID} {
		if err := os.Remove(filepath.Join(c.Root(), "state", path+".json")); err != nil {
			t.Fatal(err)
		}
	}
	mendsAll(t, c, "orphaned", 10, lost.ID, gone.ID)
	if rest := left(t, c, lost.ID, gone.ID); len(rest) > 0 {
		t.Errorf("left: %q", rest)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	stays.Exec("true")
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("after a restart: %v", found)
	}
}

func TestFsckRemovesWhatHasABrokenRecord(t *testing.T) {
	c := harness.Start(t)
	broken, stays := c.RunPod(), c.RunPod().Run("sleep 1000")
	newer := c.RunPod()
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(c.Root(), "state/pods", newer.ID+".json")
	whole, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{filepath.Join(c.Root(), "state/pods", broken.ID+".json"): "{", kept: `{"version":99,"record":{}}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, running := range []bool{false, true} {
		if running {
			if err := c.Node.Again(c.Context()); err != nil {
				t.Fatal(err)
			}
		}
		found := fsck(t, c)
		if len(found) != 2 || found[0].Problem != "unreadable" || found[1].Problem != "unreadable" {
			t.Errorf("found %v", found)
		}
	}
	for _, f := range fsck(t, c, "--repair") {
		if f.Of.ID == broken.ID && f.Outcome != "mended" || f.Of.ID == newer.ID && (f.Outcome == "mended" || f.Remedy == "") {
			t.Errorf("repaired: %v", f)
		}
	}
	if rest := left(t, c, broken.ID); len(rest) > 0 {
		t.Errorf("left: %q", rest)
	}
	stays.Exec("true")
	if err := c.Node.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Node.Again(c.Context()); err != nil {
		t.Fatal(err)
	}
	if s := newer.Status(); s.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod of another crid: %v", s)
	}
}

func TestFsckTellsWhatIsMissing(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	ctr := pod.Run("sleep 1000")
	log := ctr.Status().LogPath
	if err := os.Rename(log, log+".1"); err != nil { // as whoever rotates it, before it is reopened
		t.Fatal(err)
	}
	if found := fsck(t, c); len(found) > 0 {
		t.Errorf("a log that is being rotated: %v", found)
	}
	if err := errors.Join(os.Rename(log+".1", log), os.Remove(log)); err != nil {
		t.Fatal(err)
	}
	pin := "/run/netns/crid-" + pod.ID
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	missing := map[string]bool{}
	for _, f := range fsck(t, c) {
		if f.Problem != "missing" {
			t.Errorf("found %v", f)
		}
		missing[f.Kind+f.Name] = strings.Contains(f.Remedy, "crictl rmp")
	}
	if byHand, told := missing["namespace"+pin]; !byHand || !told || len(missing) != 2 {
		t.Errorf("missing: %v", missing)
	}
	if _, told := missing["log"+log]; !told {
		t.Errorf("missing: %v", missing)
	}
	fsck(t, c, "--repair")
	if _, err := os.Stat(log); err != nil {
		t.Errorf("the log after repairing: %v", err)
	}
}

func TestFsckThatCannotCheckSaysSo(t *testing.T) {
	c := harness.Start(t)
	for name, args := range map[string][]string{
		"no root":   {"--root", "/nonesuch"},
		"no format": {"--output", "xml"},
		"no config": {"--config", "/nonesuch.toml"},
	} {
		cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"fsck", "--config", c.ConfigFile()}, args...)...)
		out, err := cmd.CombinedOutput()
		var ended *exec.ExitError
		if !errors.As(err, &ended) || ended.ExitCode() != 2 || len(out) == 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if _, err := os.Stat("/nonesuch"); err == nil {
		t.Error("it made the root directory")
	}
}
