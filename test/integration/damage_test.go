package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// The image store is damaged while crid is away and a container runs: the operator is told, the image is no longer offered,
// the next pull brings it again, and the container reads all the time what it always read.
func TestARunningContainerDoesNotNoticeRepairs(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, store string){
		"the list of layers is empty": func(t *testing.T, store string) {
			write(t, filepath.Join(store, "overlay-layers/layers.json"), "")
		},
		"the list of images is cut off": func(t *testing.T, store string) {
			write(t, filepath.Join(store, "overlay-images/images.json"), `[{"id":`)
		},
		"a file changed before a power cut": func(t *testing.T, store string) {
			found, err := filepath.Glob(filepath.Join(store, "overlay/*/diff/etc/group"))
			if err != nil || len(found) != 1 {
				t.Fatalf("files to harm: %q, %v", found, err)
			}
			write(t, found[0], "")
			write(t, filepath.Join(store, "crid-open"), `{"boot":"another"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := harness.Start(t)
			pod := c.RunPod()
			ctr := pod.Run("sleep 1000")
			const look = "cat /etc/passwd && md5sum /bin/busybox /bin/ls"
			before := ctr.Exec(look)
			image := imageStatus(t, c, harness.Ref(images.Busybox))
			if err := c.Node.Stop(); err != nil {
				t.Fatal(err)
			}
			harm(t, filepath.Join(c.Root(), "storage"))
			if err := c.Node.Again(c.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the damage to be found", func() bool { return imageStatus(t, c, image.Id) == nil })
			if told := verbose(t, c); !strings.Contains(told, "was damaged") || !strings.Contains(c.Log(), "set aside") {
				t.Errorf("told of the damage: %s", told)
			}
			if got := ctr.Exec(look); got != before {
				t.Errorf("with the damage the container reads %q, not %q", got, before)
			}
			if got := c.Pull(images.Busybox); got != image.Id {
				t.Errorf("pulled again: %s, not %s", got, image.Id)
			}
			if got := ctr.Exec(look); got != before {
				t.Errorf("after the pull the container reads %q, not %q", got, before)
			}
			if got := pod.Run("cat /etc/group; sleep 1000").Exec(look + " && test -s /etc/group"); got != before {
				t.Errorf("a new container reads %q, not %q", got, before)
			}
			if s := ctr.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container is %v", s.State)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
