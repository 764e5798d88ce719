package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// answer is what a command has said.
type answer struct {
	out, err string
	code     int
}

// byHand runs `crid image` against c.
func byHand(t *testing.T, c *harness.Crid, stdin []byte, args ...string) answer {
	t.Helper()
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"--socket", c.Socket, "image"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &said
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return answer{out.String(), said.String(), cmd.ProcessState.ExitCode()}
}

// well runs `crid image`, which is to succeed, and returns what it writes.
func well(t *testing.T, c *harness.Crid, args ...string) string {
	t.Helper()
	a := byHand(t, c, nil, args...)
	if a.code != 0 {
		t.Fatalf("crid image %v: exit code %d\n%s%s", args, a.code, a.out, a.err)
	}
	return a.out
}

// stored is an image as `crid image list --output json` has it.
type stored struct {
	ID            string
	Tags, Digests []string
	Size          uint64
	Users         []string
}

func storedImages(t *testing.T, c *harness.Crid) []stored {
	t.Helper()
	var all []stored
	if err := json.Unmarshal([]byte(well(t, c, "list", "--output", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// fill runs a program that writes or reads a file.
func fill(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// usbStick is a directory with the images of a node in archives of several kinds.
func usbStick(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		images.Save(t.Context(), filepath.Join(dir, "busybox.tar"), map[string]string{"example.com/busybox:1": harness.Ref(images.Busybox)}),
		images.Save(t.Context(), filepath.Join(dir, "volume.tar"), map[string]string{"example.com/volume:1": harness.Ref(images.Volume)}),
		images.SaveLayout(t.Context(), harness.Ref(images.Web), "example.com/web:1", filepath.Join(dir, "web")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fill(t, "gzip", filepath.Join(dir, "volume.tar"))
	return dir
}

func TestANodeIsFilledFromAStick(t *testing.T) {
	stick := usbStick(t)
	c := harness.Start(t, harness.Registry("127.0.0.1:1")) // where there is none
	if _, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: "example.com/busybox:1"}, nil, nil); err == nil {
		t.Fatal("there is a registry")
	}
	out := well(t, c, "load", filepath.Join(stick, "busybox.tar"), filepath.Join(stick, "volume.tar.gz"), filepath.Join(stick, "web"))
	if strings.Count(out, "loaded") != 3 {
		t.Errorf("load says\n%s", out)
	}
	// As a kubelet with IfNotPresent: it asks for the image, and does not pull what is there.
	named := func(image string) func(*runtime.ContainerConfig) {
		img := imageStatus(t, c, image)
		if img == nil {
			t.Fatalf("%s is not there", image)
		}
		return func(cfg *runtime.ContainerConfig) {
			cfg.Image = &runtime.ImageSpec{Image: img.Id, UserSpecifiedImage: image}
		}
	}
	pod := c.RunPod()
	web := pod.Run("web", named("example.com/web:1"), func(cfg *runtime.ContainerConfig) { cfg.Command = []string{"/bin/web"} })
	if got := pod.Output("cat /data/seed", named("example.com/volume:1")); got != "seed\n" {
		t.Errorf("a container of a loaded image says %q", got)
	}
	if s := web.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the other container is %v", s.State)
	}
	c.Crash()
	if all := storedImages(t, c); len(all) != 3 {
		t.Errorf("after a crash: %v", all)
	}
}

func TestImagesByHand(t *testing.T) {
	c := harness.Start(t)
	ref := harness.Ref(images.Volume)
	pulled := byHand(t, c, nil, "pull", ref)
	id := strings.TrimSpace(pulled.out)
	if pulled.code != 0 || strings.Count(pulled.err, "layer ") < 2 || strings.Contains(pulled.err, "\x1b") {
		t.Fatalf("pull: %+v", pulled)
	}
	if again := byHand(t, c, nil, "pull", "--quiet", ref); strings.TrimSpace(again.out) != id || again.err != "" {
		t.Errorf("pull --quiet: %+v", again)
	}
	well(t, c, "tag", ref, "example.com/a:1", "b")
	all := storedImages(t, c)
	if len(all) != 1 || all[0].ID != id || !slices.Equal(all[0].Tags, []string{ref, "docker.io/library/b:latest", "example.com/a:1"}) {
		t.Fatalf("list: %+v", all)
	}
	var asYAML []stored
	if err := yaml.Unmarshal([]byte(well(t, c, "list", "--output", "yaml")), &asYAML); err != nil || len(asYAML) != 1 || asYAML[0].ID != id {
		t.Errorf("list as YAML: %v, %v", asYAML, err)
	}
	if table := well(t, c, "list"); strings.Count(table, "\n") != 4 || !strings.Contains(table, "example.com/a:1") {
		t.Errorf("list:\n%s", table)
	}
	var seen []struct {
		stored
		Layers []struct{ DiffID string }
		Config struct{ Architecture string }
	}
	if err := json.Unmarshal([]byte(well(t, c, "inspect", "example.com/a:1")), &seen); err != nil || len(seen) != 1 || len(seen[0].Layers) < 2 || seen[0].Config.Architecture == "" {
		t.Errorf("inspect: %+v, %v", seen, err)
	}
	roundTrips(t, c, id)
	removals(t, c, id)
}

// roundTrips saves the image id and loads it again in every way.
func roundTrips(t *testing.T, c *harness.Crid, id string) {
	t.Helper()
	dir := t.TempDir()
	docker, oci := filepath.Join(dir, "docker.tar"), filepath.Join(dir, "oci.tar")
	well(t, c, "save", "--output", docker, id)
	well(t, c, "save", "--format", "oci-archive", "--output", oci, "example.com/a:1")
	streamed := byHand(t, c, nil, "save", id)
	if saved, err := os.ReadFile(docker); err != nil || streamed.code != 0 || streamed.out != string(saved) {
		t.Errorf("to stdout %d bytes go, to a file %d; %v", len(streamed.out), len(saved), err)
	}
	fill(t, "xz", "-0", "--keep", docker)
	fill(t, "zstd", "-q", docker)
	layout := filepath.Join(dir, "layout")
	fill(t, "mkdir", layout)
	fill(t, "tar", "-xf", oci, "-C", layout)
	for _, from := range []string{docker, docker + ".xz", docker + ".zst", oci, layout} {
		well(t, c, "rm", "--force", id)
		if got := well(t, c, "load", "--quiet", from); strings.TrimSpace(got) != id {
			t.Errorf("%s: loaded %s, want %s", from, got, id)
		}
	}
	if tags := storedImages(t, c)[0].Tags; !slices.Equal(tags, []string{"example.com/a:1"}) {
		t.Errorf("saved under one name, it is loaded as %v", tags)
	}
	if a := byHand(t, c, []byte(streamed.out), "load", "--output", "json"); a.code != 0 || !strings.Contains(a.out, `"existed": true`) || len(storedImages(t, c)[0].Tags) != 3 {
		t.Errorf("load of what is here: %+v", a)
	}
	if a := byHand(t, c, []byte(streamed.out[:len(streamed.out)/2]), "load"); a.code != 1 || !strings.Contains(a.err, "not whole") {
		t.Errorf("load of half an archive: %+v", a)
	}
	if a := byHand(t, c, nil, "save", "--output", filepath.Join(dir, "none.tar"), "example.com/absent:1"); a.code != 1 || !strings.Contains(a.err, "not found") {
		t.Errorf("save of nothing: %+v", a)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*none*")); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
	if a := byHand(t, c, nil, "verify"); a.code != 0 || !strings.Contains(a.out, "matches") {
		t.Errorf("verify: %+v", a)
	}
}

// removals takes names and images away.
func removals(t *testing.T, c *harness.Crid, id string) {
	t.Helper()
	pod := c.RunPod()
	ctr := pod.Create("sleep 1000", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = id })
	if users := storedImages(t, c)[0].Users; !slices.Equal(users, []string{ctr.ID}) {
		t.Errorf("users: %v", users)
	}
	well(t, c, "rm", "b")
	if a := byHand(t, c, nil, "rm", "--force", id, "example.com/absent:1"); a.code != 1 || !strings.Contains(a.err, ctr.ID) || !strings.Contains(a.err, "absent") {
		t.Errorf("rm of an image in use: %+v", a)
	}
	if out := well(t, c, "prune", "--all"); strings.Contains(out, "removed") {
		t.Errorf("prune of an image in use: %s", out)
	}
	ctr.Remove()
	if a := byHand(t, c, nil, "rm", id); a.code != 1 || !strings.Contains(a.err, "--force") {
		t.Errorf("rm of an image with several names: %+v", a)
	}
	if out := well(t, c, "prune", "--all", "--dry-run"); !strings.Contains(out, "would remove") || len(storedImages(t, c)) == 0 {
		t.Errorf("prune --dry-run: %s", out)
	}
	if out := well(t, c, "prune", "--all", "--output", "json"); !strings.Contains(out, id) || len(storedImages(t, c)) != 0 {
		t.Errorf("prune: %s", out)
	}
}

func TestWhatByHandRefuses(t *testing.T) {
	c := harness.Start(t)
	for _, refused := range []struct {
		args []string
		want string
	}{
		{[]string{"pull", "--creds", "user:hunter2", "x"}, "--creds names a file"},
		{[]string{"list", "--output", "xml"}, "choose table"},
		{[]string{"load", "/absent"}, "no such file"},
		{[]string{"load", "/etc"}, "is no image"},
		{[]string{"inspect", "absent"}, "not found"},
		{[]string{"save", "--format", "zip", "absent"}, "choose docker-archive"},
		{[]string{"pull", "--quiet", harness.Ref("crid/absent:1")}, "no such image"},
	} {
		a := byHand(t, c, nil, refused.args...)
		if a.code != 1 || !strings.Contains(a.err, refused.want) || strings.Contains(a.err, "hunter2") {
			t.Errorf("crid image %v: %+v; want %q", refused.args, a, refused.want)
		}
	}
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), "--socket", "/run/absent/crid.sock", "image", "list")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no crid answers at /run/absent/crid.sock") {
		t.Errorf("without a crid: %s, %v", out, err)
	}
}

func TestVerifySaysSoByItsExitCode(t *testing.T) {
	c := harness.Start(t)
	id := c.Pull(images.Volume)
	seeds, err := filepath.Glob(filepath.Join(c.Root(), "storage/overlay/*/diff/data/seed"))
	if err != nil || len(seeds) != 1 {
		t.Fatalf("found %v, %v", seeds, err)
	}
	if err := os.WriteFile(seeds[0], []byte("SEED\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := byHand(t, c, nil, "verify", "--output", "json", id); a.code != 1 || !strings.Contains(a.out, "differs") {
		t.Errorf("verify of a changed image: %+v", a)
	}
	if a := byHand(t, c, nil, "save", id); a.code != 1 || !strings.Contains(a.err, "differs") {
		t.Errorf("save of a changed image: exit code %d, %s", a.code, a.err)
	}
	if a := byHand(t, c, nil, "verify", "absent"); a.code != 2 {
		t.Errorf("verify of nothing: %+v", a)
	}
	well(t, c, "rm", id)
}

// spooled tells whether crid keeps an archive.
func spooled(t *testing.T, c *harness.Crid) bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, _ := os.Readlink(fd) // one that is closed meanwhile is none
		return strings.Contains(to, "crid-scratch/load-")
	})
}

func TestALoadEndsWithItsCommand(t *testing.T) {
	c := harness.Start(t)
	archive := filepath.Join(t.TempDir(), "web.tar")
	if err := images.Save(t.Context(), archive, map[string]string{"example.com/web:1": harness.Ref(images.Web)}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), "--socket", c.Socket, "image", "load")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(raw[:len(raw)/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an archive that crid keeps", func() bool { return spooled(t, c) })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	eventually(t, "an archive that crid has let go of", func() bool { return !spooled(t, c) })
	if all := storedImages(t, c); len(all) > 0 {
		t.Errorf("stored %v", all)
	}
	if left, err := os.ReadDir(filepath.Join(c.Root(), "storage/crid-scratch")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	well(t, c, "load", archive)
	well(t, c, "rm", "example.com/web:1")
}
