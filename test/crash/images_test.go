package crash

import (
	"archive/tar"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

var imageScenarios = []scenario{
	{name: "PullImage", set: pull},
	{name: "PullImage/artifact", set: pullArtifact},
	{name: "PullImage of a layer that cannot be unpacked", set: pullBroken, cases: of("storage/pull/")},
	{name: "PullImage from where its registry's description says", set: pullDescribed, cases: of("storage/hosts/", "storage/auth/")},
	{name: "PullImage of another manifest, which is signed", set: pullSigned, cases: of("storage/signatures/", "storage/pull/image-")},
	{name: "RemoveImage", set: removeImage},
	{name: "LoadImages", set: load},
	{name: "Untag", set: untag, cases: of("storage/untag/")},
}

// byHand runs `crid image`.
func byHand(c *harness.Crid, args ...string) error {
	out, err := exec.CommandContext(c.Context(), harness.Binary("crid"), append([]string{"--socket", c.Socket, "image"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// seeded is an image that there has never been: what a crash leaves of another's layers serves no pull of it. A container of
// it says its seed.
func seeded(t *testing.T, c *harness.Crid) (ref string, says func()) {
	t.Helper()
	seed := rand.Text()
	ref = c.Image(nil, images.Text("seed", seed))
	return ref, func() {
		if got := c.RunPod(onHost).Output("cat /seed", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = ref }); got != seed {
			t.Errorf("a container of %s said %q, want %q", ref, got, seed)
		}
	}
}

func load(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox) // what it is built on is there in each case, as the one before may have left it
	ref, says := seeded(t, c)
	archive := filepath.Join(t.TempDir(), "saved.tar")
	c.PullRef(ref)
	if err := byHand(c, "save", "--output", archive, ref); err != nil {
		t.Fatal(err)
	}
	if err := byHand(c, "rm", ref); err != nil {
		t.Fatal(err)
	}
	return act{
		call: func() error { return byHand(c, "load", archive) },
		between: func() {
			left, err := os.ReadDir(filepath.Join(c.Root(), "storage/crid-scratch"))
			if err != nil || len(left) > 0 {
				t.Errorf("of an archive there is left %v, %v", left, err)
			}
		},
		after: says,
	}
}

func untag(t *testing.T, c *harness.Crid) act {
	id := c.Pull(images.Busybox)
	if err := byHand(c, "tag", id, "example.com/untagged:1"); err != nil {
		t.Fatal(err)
	}
	status := func(ref string) *runtime.Image {
		s, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: ref}, false)
		if err != nil {
			t.Fatal(err)
		}
		return s.Image
	}
	return act{
		call: func() error {
			err := byHand(c, "rm", "example.com/untagged:1")
			if err != nil && strings.Contains(err.Error(), "not found") {
				return nil // it was done before the crash
			}
			return err
		},
		after: func() {
			if status("example.com/untagged:1") != nil || status(id) == nil {
				t.Errorf("the name means %v, the id %v", status("example.com/untagged:1"), status(id))
			}
		},
	}
}

func pull(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox)
	ref, says := seeded(t, c)
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: ref}, nil, nil)
			return err
		},
		after: says,
	}
}

// pullBroken pulls an image whose layer has a hard link to nothing.
func pullBroken(t *testing.T, c *harness.Crid) act {
	ref := harness.Ref("crid/broken:1")
	link := images.File{Header: tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "nothing"}}
	if err := images.Make(c.Context(), ref, harness.Ref(images.Nothing), func(*v1.Config) {}, link); err != nil {
		t.Fatal(err)
	}
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: ref}, nil, nil)
			switch {
			case err == nil:
				return errors.New("it was pulled")
			case strings.Contains(err.Error(), "unpack layer"):
				return nil
			}
			return err
		},
		after: func() {},
	}
}

func pullArtifact(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Busybox)
	forget(t, c, images.Artifact)
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Artifact)}, nil, nil)
			return err
		},
		after: func() {
			volume := &runtime.Mount{ContainerPath: "/vol", Readonly: true, Image: &runtime.ImageSpec{Image: harness.Ref(images.Artifact)}}
			pod := c.RunPod(onHost)
			if got := pod.Output("cat /vol/model/weights", func(cfg *runtime.ContainerConfig) { cfg.Mounts = []*runtime.Mount{volume} }); got != "heavy\n" {
				t.Errorf("a container of the pulled artifact said %q", got)
			}
		},
	}
}

// removeImage removes an image that a container had.
func removeImage(t *testing.T, c *harness.Crid) act {
	c.Pull(images.Volume)
	pod := c.RunPod(onHost)
	pod.Run("true", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = harness.Ref(images.Volume) }).Wait()
	pod.Remove()
	eventually(t, "an empty trash", func() bool {
		left, err := os.ReadDir(filepath.Join(c.Root(), "rootfs/.trash"))
		return err == nil && len(left) == 0
	})
	return act{
		call: func() error {
			return c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)})
		},
		after: func() {
			s, err := c.Images.ImageStatus(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Volume)}, false)
			if err != nil || s.Image != nil {
				t.Errorf("status of the removed image: %v, %v", s, err)
			}
		},
	}
}

// pullDescribed pulls from a registry that a hosts.toml describes, with credentials that were left for this pull.
func pullDescribed(t *testing.T, c *harness.Crid) act {
	image := &runtime.ImageSpec{Image: "described.example/" + images.Volume}
	if err := c.Images.RemoveImage(c.Context(), image); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(c.Dir, "certs.d/described.example")
	ca := time.Now().Format("150405.000000000") + ".pem" // another one each time, so that each case has something to do
	repo, _, _ := strings.Cut(image.Image, ":")
	for file, content := range map[string]string{
		filepath.Join(dir, "hosts.toml"): fmt.Sprintf("server = \"http://%s\"\nca = %q\n", strings.TrimSuffix(harness.Ref(""), "/"), ca),
		filepath.Join(dir, ca):           "",
		filepath.Join(c.Dir, "auth", fmt.Sprintf("team-%x.json", sha256.Sum256([]byte(repo)))): "{}",
	} {
		check(t, os.MkdirAll(filepath.Dir(file), 0o700))
		check(t, os.WriteFile(file, []byte(content), 0o600))
	}
	pod := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "pod", Namespace: "team"}}
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), image, nil, pod)
			return err
		},
		after: func() {
			if got := c.RunPod(onHost).Output("cat /data/seed", func(cfg *runtime.ContainerConfig) { cfg.Image = image }); got != "seed\n" {
				t.Errorf("a container of the pulled image said %q", got)
			}
		},
	}
}

// pullSigned pulls an image that is stored, by another manifest, of which there is a signature. It is looked for since a policy may
// ask for it.
func pullSigned(t *testing.T, c *harness.Crid) act {
	forget(t, c, images.Volume)
	c.Pull(images.Volume)
	from, err := name.ParseReference(harness.Ref(images.Volume), name.Insecure)
	check(t, err)
	img, err := remote.Image(from)
	check(t, err)
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	signed, err := name.ParseReference(harness.Ref("crid/signed:1"), name.Insecure)
	check(t, err)
	check(t, remote.Write(signed, img))
	digest, err := img.Digest()
	check(t, err)
	lookaside := filepath.Join(c.Dir, "lookaside")
	for file, content := range map[string]string{
		"policies/strict.json":  `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/none"}]}`,
		"registries.d/all.yaml": "default-docker:\n  lookaside: file://" + lookaside + "\n",
		fmt.Sprintf("lookaside/crid/signed@sha256=%s/signature-1", digest.Hex): "\x88" + time.Now().String(), // another one each time
	} {
		file = filepath.Join(c.Dir, file)
		check(t, os.MkdirAll(filepath.Dir(file), 0o700))
		check(t, os.WriteFile(file, []byte(content), 0o600))
	}
	image := &runtime.ImageSpec{Image: signed.String()}
	return act{
		call: func() error {
			_, err := c.Images.PullImage(c.Context(), image, nil, nil)
			return err
		},
		after: func() {
			if got := c.RunPod(onHost).Output("cat /data/seed", func(cfg *runtime.ContainerConfig) { cfg.Image = image }); got != "seed\n" {
				t.Errorf("a container of the pulled image said %q", got)
			}
		},
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
