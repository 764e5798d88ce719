package crash

import (
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

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

var mendScenarios = []scenario{
	{name: "PullImage that mends damaged layers", set: pullDamaged, cases: of("storage/")},
	{name: "StopContainer on a full disk", set: stopOnFull, before: smallRoot, cases: of("state/reserve/")},
	{name: "crid fsck --repair", set: repair, cases: of("crid/mend/", "network/", "state/delete/")},
}

// pullDamaged pulls an image that lacks a layer's files and all of another layer. It is the same in all cases: what one leaves
// damaged, since nobody repeats its pull, the next one mends.
func pullDamaged(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox)
	forget(t, c, images.Volume)
	others := layers(t, c)
	a := act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)}, nil, nil)
			return err
		},
		after: func() {
			if got := c.RunPod(onHost).Output("cat /data/seed", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.Volume) }); got != "seed\n" {
				t.Errorf("a container of the mended image said %q", got)
			}
		},
	}
	if err := a.call(); err != nil {
		t.Fatal(err)
	}
	// A crash may have left a layer, made to mend another, which has been pulled again as well.
	own := slices.DeleteFunc(layers(t, c), func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "lower"))
		return slices.Contains(others, dir) || err != nil
	})
	if len(own) == 0 {
		t.Fatal("the image has no layer of its own")
	}
	lower, err := os.ReadFile(filepath.Join(own[0], "lower"))
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(c.Root(), "storage/overlay", strings.TrimSpace(string(lower))) // the link to its files
	files, err := filepath.EvalSymlinks(base)
	if err == nil {
		err = errors.Join(os.RemoveAll(files), os.RemoveAll(own[0]))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Crash() // the next crid finds out
	return a
}

// layers are the directories of the image store's layers.
func layers(t *testing.T, c *harness.Crid) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.Root(), "storage/overlay/????????????????????????????????????????????????????????????????"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// smallRoot puts crid's root on a disk that stopOnFull can fill.
func smallRoot(t *testing.T) {
	root, _ := harness.Places(t)
	harness.NewSmallDisk(t, harness.Tmpfs, root, 64)
}

// stopOnFull stops a container while the disk has no space for its record.
func stopOnFull(t *testing.T, c *harness.Crid) act {
	disk := harness.SmallDiskAt(t, c.Root())
	disk.Free()
	ctr := c.RunPod(onHost).Run("sleep 1000")
	disk.FillBlocks()
	return act{
		call:    func() error { return c.Runtime.StopContainer(c.Context(), ctr.ID, 0) },
		between: func() { consistent(t, c, ctr) },
		after: func() {
			if s := ctr.Wait(); s.ExitCode != 137 {
				t.Errorf("the container ended with %d (%s)", s.ExitCode, s.Message)
			}
			disk.Free()
		},
	}
}

// repair lets crid fsck remove what nobody owns: a lease, an unreadable memory of a network, a record cut short.
func repair(t *testing.T, c *harness.Crid) act {
	remains := map[string]string{
		filepath.Join(c.Leases(), filepath.Base(c.Dir), "10.88.99.99"):    nobody + "\r\neth0",
		filepath.Join(c.Root(), "cni/results", "lost-"+nobody+"-eth0"):    "{",
		filepath.Join(c.Root(), "state/containers", ".tmp-cut-short"):     "{",
		filepath.Join(c.Root(), "state/tombstones", nobody+".json"):       "{",
		filepath.Join(c.Root(), "rootfs/.trash/left-over", "etc", "file"): "text",
	}
	for path, text := range remains {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return act{
		insist: true,
		call:   func() error { _, err := fsck(c, "--repair"); return err },
		after: func() {
			for path := range remains {
				if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
		},
	}
}

// nobody is an id that no pod and no container has.
var nobody = strings.Repeat("0123456789abcdef", 4)

// fsck runs `crid fsck` and returns what it has found.
func fsck(c *harness.Crid, args ...string) ([]string, error) {
	cmd := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"fsck", "--output", "json", "--config", c.ConfigFile()}, args...)...)
	out, err := cmd.Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 1 {
		err = nil // something was found
	}
	if err != nil {
		return nil, fmt.Errorf("crid fsck: %w: %s%s", err, out, ended.Stderr)
	}
	var report struct {
		Findings []struct{ Problem, Kind, Name, Why, Outcome string }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, fmt.Errorf("read what crid fsck says: %w: %s", err, out)
	}
	var found []string
	for _, f := range report.Findings {
		found = append(found, fmt.Sprintf("%+v", f))
	}
	return found, nil
}
