package integration

import (
	"encoding/json"
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

// skopeo runs the distribution's skopeo, a tool that was built without any of crid, and returns what it writes. It is told all
// that it would look for on the host.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy", "--tmpdir", t.TempDir(), "--registries-conf", os.DevNull}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %v: %v\n%s", args, err, said.String())
	}
	return string(out)
}

// consists is what an image consists of: its configuration and what is in its layers, the lowest first.
type consists struct {
	Config string
	Layers []string
}

// readBySkopeo is what skopeo finds at a place. It copies all of it, which compares it with its digests.
func readBySkopeo(t *testing.T, place string) (all consists) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	skopeo(t, "copy", "--quiet", place, "dir:"+dir)
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	all.Config = strings.TrimPrefix(m.Config.Digest, "sha256:")
	for _, l := range m.Layers {
		all.Layers = append(all.Layers, l.Digest)
	}
	if text := skopeo(t, "inspect", place); !slices.Equal(all.Layers, namesIn(t, text, "Layers")) {
		t.Errorf("skopeo inspect %s says\n%s", place, text)
	}
	return all
}

// namesIn is a list in a text that is JSON.
func namesIn(t *testing.T, text, field string) (names []string) {
	t.Helper()
	var all map[string]json.RawMessage
	err := json.Unmarshal([]byte(text), &all)
	if err == nil {
		err = json.Unmarshal(all[field], &names)
	}
	if err != nil {
		t.Fatalf("%s of %s: %v", field, text, err)
	}
	return names
}

// inStore is what crid has of an image.
func inStore(t *testing.T, c *harness.Crid, ref string) consists {
	t.Helper()
	var seen []struct {
		ID     string
		Layers []struct{ DiffID string }
	}
	if err := json.Unmarshal([]byte(well(t, c, "inspect", ref)), &seen); err != nil || len(seen) != 1 {
		t.Fatalf("inspect %s: %v, %v", ref, seen, err)
	}
	all := consists{Config: seen[0].ID}
	for _, l := range seen[0].Layers {
		all.Layers = append(all.Layers, l.DiffID)
	}
	return all
}

func (a consists) is(b consists) bool {
	return a.Config == b.Config && slices.Equal(a.Layers, b.Layers)
}

// unpacked is the directory that an archive is of.
func unpacked(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	fill(t, "tar", "-xf", archive, "-C", dir)
	return dir
}

func TestSkopeoReadsWhatIsSaved(t *testing.T) {
	c := harness.Start(t)
	dir := t.TempDir()
	tags := []string{harness.Ref(images.Volume), harness.Ref(images.Web), harness.Ref(images.Nothing)} // a Docker image, an OCI image, one without layers
	for _, tag := range tags {
		c.PullRef(tag)
	}
	for _, format := range []string{"docker-archive", "oci-archive"} {
		all := filepath.Join(dir, format+".tar")
		well(t, c, append([]string{"save", "--format", format, "--output", all}, tags...)...)
		layout := unpacked(t, all)
		for _, tag := range tags {
			one := filepath.Join(t.TempDir(), "one.tar")
			well(t, c, "save", "--format", format, "--output", one, tag)
			want := inStore(t, c, tag)
			for _, place := range []string{format + ":" + all + ":" + tag, format + ":" + one, "oci:" + layout + ":" + tag, "oci:" + unpacked(t, one)} {
				if got := readBySkopeo(t, place); !got.is(want) {
					t.Errorf("skopeo reads from %s %v, want %v", place, got, want)
				}
			}
		}
	}
}

// fromSkopeo is a form in which skopeo writes an image.
type fromSkopeo struct {
	to      string // its transport
	name    string // that skopeo gives the image
	options []string
}

func (f fromSkopeo) String() string { return f.to + " " + f.name + strings.Join(f.options, " ") }

func TestWhatSkopeoWritesIsLoaded(t *testing.T) {
	c := harness.Start(t)
	const named = "example.com/volume:1"
	volume := "docker://" + harness.Ref(images.Volume)
	for _, f := range []fromSkopeo{
		{"docker-archive", named, nil},
		{"docker-archive", "", nil},
		{"oci-archive", named, nil},
		{"oci-archive", "1", nil},
		{"oci", "", nil},
		{"oci", named, []string{"--dest-oci-accept-uncompressed-layers"}},
		{"oci", named, []string{"--dest-compress", "--dest-compress-format", "zstd"}},
		{"dir", "", nil},
		{"dir", "", []string{"--dest-decompress"}},
		{"dir", "", []string{"--format", "oci"}},
	} {
		t.Run(f.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			place := strings.TrimSuffix(f.to+":"+path+":"+f.name, ":")
			skopeo(t, slices.Concat([]string{"copy", "--quiet", "--src-tls-verify=false"}, f.options, []string{volume, place})...)
			args := []string{"load", path}
			if f.name != named {
				args = append(args, "--name", named)
			}
			well(t, c, args...)
			want := readBySkopeo(t, place)
			if got := inStore(t, c, named); got.Config != want.Config || len(got.Layers) != len(want.Layers) {
				t.Errorf("loaded %v, want %v", got, want)
			}
			pod := c.For(t).RunPod()
			if got := pod.Output("cat /data/seed", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = named }); got != "seed\n" {
				t.Errorf("a container says %q", got)
			}
			pod.Remove()
			well(t, c, "rm", named)
		})
	}
}

// TestSeveralOfSkopeo: images beside each other, for several platforms, and in several archives, of skopeo and of crane.
func TestSeveralOfSkopeo(t *testing.T) {
	c := harness.Start(t)
	dir := t.TempDir()
	layout, every, many := filepath.Join(dir, "layout"), filepath.Join(dir, "every"), filepath.Join(dir, "many.tar")
	get := func(image, place string, options ...string) {
		skopeo(t, slices.Concat([]string{"copy", "--quiet", "--src-tls-verify=false"}, options, []string{"docker://" + harness.Ref(image), place})...)
	}
	get(images.Volume, "oci:"+layout+":example.com/volume:1")
	get(images.Web, "oci:"+layout+":example.com/web:1", "--all")
	get(images.Web, "dir:"+every, "--all")
	if err := images.Save(t.Context(), many, map[string]string{"example.com/user:1": harness.Ref(images.User), "example.com/files:1": harness.Ref(images.Files)}); err != nil {
		t.Fatal(err)
	}
	well(t, c, "load", layout, many)
	for name, place := range map[string]string{
		"example.com/volume:1": "oci:" + layout + ":example.com/volume:1", "example.com/web:1": "oci:" + layout + ":example.com/web:1",
		"example.com/user:1": "docker-archive:" + many + ":example.com/user:1", "example.com/files:1": "docker-archive:" + many + ":example.com/files:1",
	} {
		if got, want := inStore(t, c, name), readBySkopeo(t, place); got.Config != want.Config || len(got.Layers) != len(want.Layers) {
			t.Errorf("%s: loaded %v, want %v", name, got, want)
		}
	}
	if user := c.Pull(images.User); inStore(t, c, "example.com/user:1").Config != user {
		t.Errorf("what is pulled is another: %s", user)
	}
	well(t, c, "load", "--name", "example.com/every:1", every)
	if got := inStore(t, c, "example.com/every:1"); got.Config != c.Pull(images.Web) {
		t.Errorf("of a directory with all platforms: %v", got)
	}
	web := c.RunPod().Run("", func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image, cfg.Command = "example.com/every:1", []string{"/bin/web"}
	})
	if s := web.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a container of it is %v", s.State)
	}
}

// TestArtifactsGoByHand from crid and from skopeo, to a crid without a registry and to skopeo.
func TestArtifactsGoByHand(t *testing.T) {
	c := harness.Start(t)
	dir := t.TempDir()
	ref, id := harness.Ref(images.Artifact), c.Pull(images.Artifact)
	if a := byHand(t, c, nil, "save", ref); a.code != 1 || a.out != "" || !strings.Contains(a.err, ref) || !strings.Contains(a.err, "oci-archive") {
		t.Errorf("as Docker's archive: %+v", a)
	}
	saved, by, plain := filepath.Join(dir, "saved.tar"), filepath.Join(dir, "skopeo.tar"), filepath.Join(dir, "plain")
	well(t, c, "save", "--format", "oci-archive", "--output", saved, ref)
	skopeo(t, "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "oci-archive:"+by+":"+ref)
	skopeo(t, "copy", "--quiet", "oci-archive:"+saved+":"+ref, "dir:"+plain)
	pod := c.RunPod()
	for _, from := range [][]string{{saved}, {unpacked(t, saved)}, {by}, {"--name", ref, plain}} {
		well(t, c, "rm", "--force", id)
		if got := well(t, c, append([]string{"load", "--quiet"}, from...)...); strings.TrimSpace(got) != id {
			t.Errorf("%v: loaded %s, want %s", from, got, id)
		}
		if got := pod.Output("cat /vol/model/weights /vol/sha256-*", withMounts(imageVolume(ref, ""))); got != "heavy\nnameless\n" {
			t.Errorf("%v: a container with it says %q", from, got)
		}
		pod.Remove()
		pod = c.RunPod()
	}
}
