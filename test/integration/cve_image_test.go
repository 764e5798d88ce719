package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// The tests of cve_*_test.go replay attacks that were published about crid's peers and the programs that they share.
// Each is named after a vulnerability; docs/security.md says what it was. An attack may fail in any way that harms
// nobody: whether a container is refused or runs is not what these tests are about, unless they say so.

// bait is a directory of the host that an attack wants to read or to change.
type bait struct {
	t   *testing.T
	dir string
}

// secret is what the bait's files hold.
const secret = "secret of the host\n"

func newBait(t *testing.T) bait {
	t.Helper()
	b := bait{t, t.TempDir()}
	for _, name := range []string{"secret", "ptmx", "console"} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(secret), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// up is the bait's path as a relative link would have it, from anywhere.
func (b bait) up() string { return strings.Repeat("../", 20) + strings.TrimPrefix(b.dir, "/") }

// untouched fails the test unless the bait is as it was.
func (b bait) untouched() {
	b.t.Helper()
	err := filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == b.dir {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil || string(content) != secret || !d.Type().IsRegular() {
			b.t.Errorf("on the host, %s is now %v with %.40q, %v", path, d.Type(), content, err)
		}
		return nil
	})
	if err != nil {
		b.t.Error(err)
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil || len(entries) != 3 {
		b.t.Errorf("the host's directory has %d entries, %v", len(entries), err)
	}
}

// attempt runs a container as far as it gets, and returns what it said.
func attempt(t *testing.T, c *harness.Crid, pod *harness.Pod, cfg *runtime.ContainerConfig) string {
	t.Helper()
	ctr, err := pod.TryCreate(cfg)
	if err != nil {
		return err.Error()
	}
	defer ctr.Remove()
	if err := c.Runtime.StartContainer(c.Context(), ctr.ID); err != nil {
		return err.Error()
	}
	ctr.Wait()
	return ctr.Text()
}

func fromImage(ref string, edits ...func(*runtime.ContainerConfig)) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) {
		cfg.Image.Image = ref
		for _, edit := range edits {
			edit(cfg)
		}
	}
}

// An image has symbolic links where a runtime makes or mounts something before it is confined to the image.
func TestCVE_2026_41579_LinksThatLeadARuntimeOut(t *testing.T) {
	attacks := []struct {
		name    string
		refused bool // by crid, whatever the runtime would do
		files   func(b bait) []images.File
		config  func(*v1.Config)
	}{
		{"dev, CVE-2026-41579 of runc and CVE-2026-47766 of crun", true, func(b bait) []images.File { return []images.File{images.Link("dev", b.dir)} }, nil},
		{"dev, relative", true, func(b bait) []images.File { return []images.File{images.Link("dev", b.up())} }, nil},
		{"proc, CVE-2019-19921 and CVE-2023-28642 of runc", true, func(b bait) []images.File { return []images.File{images.Link("proc", b.dir)} }, nil},
		{"sys", true, func(b bait) []images.File { return []images.File{images.Link("sys", b.up())} }, nil},
		{"etc, CVE-2024-5154 of CRI-O", false, func(b bait) []images.File { return []images.File{images.Link("etc", b.dir)} }, nil},
		{"etc, relative", false, func(b bait) []images.File { return []images.File{images.Link("etc", b.up())} }, nil},
		{"a file in etc", false, func(b bait) []images.File {
			return []images.File{images.Link("etc/hosts", b.dir+"/secret"), images.Link("etc/hostname", b.up()+"/new"), images.Link("etc/mtab", b.dir+"/mtab")}
		}, nil},
		{"devices, CVE-2026-88264 and CVE-2026-88265 of crun", false, func(b bait) []images.File {
			return []images.File{images.Link("dev/console", b.dir+"/console"), images.Link("dev/null", b.dir+"/secret"), images.Link("dev/ptmx", b.dir+"/ptmx"), images.Link("dev/shm", b.dir)}
		}, nil},
		{"the working directory, CVE-2026-55686 of Podman", false, func(b bait) []images.File { return []images.File{images.Link("home", b.dir)} }, func(c *v1.Config) { c.WorkingDir = "/home/made/deep" }},
		{"a file at dev", true, func(bait) []images.File { return []images.File{images.Text("dev", "no directory")} }, nil},
	}
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for _, attack := range attacks {
			t.Run(attack.name, func(t *testing.T) {
				b := newBait(t)
				ref := c.Image(attack.config, attack.files(b)...)
				for _, tty := range []bool{false, true} {
					cfg := pod.ContainerConfig("cat "+b.dir+"/secret /etc/hosts < /dev/null; ls -l /dev", fromImage(ref), func(cfg *runtime.ContainerConfig) { cfg.Tty = tty })
					said := attempt(t, c, pod, cfg)
					if strings.Contains(said, secret) {
						t.Errorf("the container has read the host's file: %q", said)
					}
					if attack.refused && !strings.Contains(said, "InvalidArgument") {
						t.Errorf("not refused: %q", said)
					}
				}
				b.untouched()
			})
		}
	})
}

// An image's VOLUME names a path that climbs out of the image, so that the host's files would be copied in.
func TestCVE_2022_23648_VolumesThatClimb(t *testing.T) {
	for _, mode := range []string{"bind", "mkdir"} {
		t.Run(mode, func(t *testing.T) {
			c := harness.Start(t, harness.Config("[images]\nimage_volumes = \""+mode+"\""))
			b := newBait(t)
			pod := c.RunPod()
			for name, volume := range map[string]string{"climbs": "/" + b.up(), "through a link": "/link", "through a link above": "/link/../link"} {
				ref := c.Image(func(cfg *v1.Config) { cfg.Volumes = map[string]struct{}{volume: {}} }, images.Link("link", b.up()))
				said := attempt(t, c, pod, pod.ContainerConfig("cat "+b.dir+"/secret /link/secret; touch "+b.dir+"/new /link/new", fromImage(ref)))
				if strings.Contains(said, secret) {
					t.Errorf("%s: the container has the host's file", name)
				}
			}
			b.untouched()
			ref := c.Image(func(cfg *v1.Config) {
				cfg.Volumes = map[string]struct{}{"/proc": {}, "/proc/self": {}, "/proc/self/attr": {}, "/sys": {}, "/dev": {}}
			})
			said := attempt(t, c, pod, pod.ContainerConfig("grep -E ' /(proc|sys|dev)(/self.*)? ' /proc/self/mounts | cut -d' ' -f3 | sort -u", fromImage(ref)))
			if said != "proc\nsysfs\ntmpfs\n" {
				t.Errorf("CVE-2019-16884: in place of the kernel's filesystems there are %q", said)
			}
		})
	}
}

// USER of an image as the kubelet sees it, by which it judges runAsNonRoot, and as the container gets it: a number that
// is none, or none that fits, is looked for by name in the image's own passwd file, where it is root.
func TestCVE_2024_40635_UsersThatTurnIntoRoot(t *testing.T) {
	users := []string{"4294967296", "4294967296:4294967296", "2147483648", "99999999999999999999", "-1", "-4294967296", "+5", "0x5", "5_0", "00005", " 5", "1e3", "5:+0"}
	var passwd, group strings.Builder
	passwd.WriteString("root:x:0:0::/:/bin/sh\n")
	for _, u := range users {
		name, _, _ := strings.Cut(u, ":")
		passwd.WriteString(name + ":x:0:0::/:/bin/sh\n")
		group.WriteString(name + ":x:0:\n")
	}
	c := harness.Start(t)
	pod := c.RunPod()
	for _, u := range users {
		ref := c.Image(func(cfg *v1.Config) { cfg.User = u }, images.Text("etc/passwd", passwd.String()), images.Text("etc/group", group.String()))
		said := attempt(t, c, pod, pod.ContainerConfig("id -u", fromImage(ref))) // which pulls it, too
		seen := imageStatus(t, c, ref)
		if said == "0\n" && seen.Uid != nil && seen.Uid.Value != 0 {
			t.Errorf("USER %q, CVE-2026-46680: the kubelet is told uid %d, and the container is root", u, seen.Uid.Value)
		}
		if seen.Uid == nil && seen.Username == "" {
			t.Errorf("USER %q: the kubelet is told of no user, and takes that for root", u)
		}
		if digits := strings.Trim(u, "0123456789-:"); digits == "" && said == "0\n" {
			t.Errorf("USER %q, a number out of range, became root", u)
		}
	}
}

// A passwd or group file that never ends, or is no file, is not read; crid's memory stays what it was.
func TestCVE_2025_4437_AccountFilesWithoutEnd(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	huge := bytes.Repeat([]byte("x:x:0:0:0:0:0\n"), 5<<20) // 70 MB
	groups := bytes.Repeat([]byte("root:x:1:root\n"), 1<<20)
	for _, attack := range []struct {
		name string
		file images.File
	}{
		{"a large file, CVE-2025-4437 of CRI-O", images.File{Header: tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, Content: huge}},
		{"many groups, CVE-2026-47262 of containerd", images.File{Header: tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, Content: groups}},
		{"a pipe", images.File{Header: tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo, Mode: 0o644}}},
		{"/dev/zero, CVE-2024-9676 of containers/storage", images.File{Header: tar.Header{Name: "etc/group", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 5, Mode: 0o644}}},
		{"a link to the host's /dev/zero", images.Link("etc/passwd", strings.Repeat("../", 20)+"dev/zero")},
		{"a link to crid's environment", images.Link("etc/group", "/proc/self/environ")},
	} {
		ref := c.Image(nil, attack.file)
		c.PullRef(ref)
		before := peak(t, c)
		said := attempt(t, c, pod, pod.ContainerConfig("id", fromImage(ref)))
		if grown := peak(t, c) - before; grown > 96<<10 {
			t.Errorf("%s: crid has needed %d KiB more; it said %.200q", attack.name, grown, said)
		}
	}
	if got := pod.Output("echo fine"); got != "fine\n" {
		t.Errorf("afterwards: %q", got)
	}
}

// HOME with a line break would be a line of /etc/passwd of its own, if somebody wrote HOME there.
func TestCVE_2022_4318_HomesThatAddAccounts(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		for name, home := range map[string]string{"as text": `/\nevil:x:0:0::/:/bin/sh`, "as it is, CVE-2026-15809": "/\nevil:x:0:0::/:/bin/sh\n"} {
			said := attempt(t, c, pod, pod.ContainerConfig("grep evil /etc/passwd; id -u; id evil", func(cfg *runtime.ContainerConfig) {
				cfg.Envs = []*runtime.KeyValue{{Key: "HOME", Value: []byte(home)}}
				cfg.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: 4711}
			}))
			if !strings.HasPrefix(said, "4711\n") || strings.Contains(said, "uid=0") {
				t.Errorf("%s: %q", name, said)
			}
		}
	})
}

// orders are annotations and labels that runtimes and CRI servers obey.
var orders = map[string]string{
	"org.systemd.property.ExecStart":               "'/bin/touch'",
	"io.kubernetes.cri-o.UnifiedCgroup":            "memory.max=max",
	"io.kubernetes.cri-o.Devices":                  "/dev/mem",
	"io.kubernetes.cri-o.userns-mode":              "auto",
	"io.kubernetes.cri-o.annotations.checkpoint":   "x",
	"org.criu.checkpoint.container.name":           "x",
	"containerd.io/restart.loguri":                 "binary:///bin/touch",
	"containerd.io/restart.status":                 "running",
	"cdi.k8s.io/evil":                              "vendor.example/class=device",
	"run.oci.hooks.stderr":                         "/tmp/evil",
	"run.oci.keep_original_groups":                 "1",
	"run.oci.handler":                              "krun",
	"run.oci.mount_context_type":                   "x",
	"module.wasm.image/variant":                    "compat",
	"io.katacontainers.config.hypervisor.path":     "/bin/touch",
	"io.kubernetes.container.terminationMessage":   "x",
	"io.kubernetes.cri.container-type":             "sandbox",
	"io.kubernetes.cri.untrusted-workload":         "true",
	"io.containerd.runc.v2.group":                  "x",
	"seccomp.security.alpha.kubernetes.io/pod":     "unconfined",
	"container.apparmor.security.beta.kubernetes.": "unconfined",
}

// Annotations of pods and containers and labels of images do not become orders to a runtime.
func TestCVE_2024_3154_AnnotationsThatGiveOrders(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		ref := c.Image(func(cfg *v1.Config) { cfg.Labels = orders })
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Annotations = orders })
		ctr := pod.Run("sleep 1000", fromImage(ref), func(cfg *runtime.ContainerConfig) { cfg.Annotations = orders })
		config := runtimeConfig(t, c, ctr.ID)
		for name, value := range config.Annotations {
			if orders[name] == value {
				t.Errorf("the runtime is told %s=%s", name, value)
			}
		}
		if len(config.Annotations) == 0 {
			t.Error("not even crid's own annotations: this is not the configuration")
		}
		if devices := config.Linux.Devices; slices.ContainsFunc(devices, func(d device) bool { return strings.Contains(d.Path, "mem") }) {
			t.Errorf("devices %v", devices)
		}
		if got := ctr.Exec("grep -c . /proc/self/status > /dev/null && id -G"); got != "0\n" {
			t.Errorf("groups %q", got)
		}
	})
}

type device struct{ Path string }

// runtimeConfig is what the runtime was given for a container, as far as these tests look at it.
func runtimeConfig(t *testing.T, c *harness.Crid, id string) (config struct {
	Annotations map[string]string
	Linux       struct{ Devices []device }
}) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.RunRoot, "*", id, "config.json"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the container's configuration is at %v, %v", found, err)
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// An image that calls itself a checkpoint is an image: nothing of it is restored, and no container can be made one.
func TestCVE_2024_8676_CheckpointsAreNotRestored(t *testing.T) {
	c := harness.Start(t)
	b := newBait(t)
	config := `{"config":{"mounts":[{"source":"` + b.dir + `","destination":"/mnt","type":"bind"}]},"image":"evil"}`
	ref := c.Image(func(cfg *v1.Config) {
		cfg.Labels = map[string]string{"io.kubernetes.cri-o.annotations.checkpoint.name": "evil", "org.criu.checkpoint.container.name": "evil"}
	}, images.Text("spec.dump", config), images.Text("config.dump", config), images.Link("container.log", b.dir+"/secret"))
	pod := c.RunPod()
	ctr := pod.Run("cat /mnt/secret; cat /container.log; echo ran; sleep 1000", fromImage(ref))
	eventually(t, "the command, and nothing restored", func() bool { return strings.Contains(ctr.Log(), "ran") })
	if strings.Contains(ctr.Log(), strings.TrimSpace(secret)) {
		t.Errorf("CVE-2026-53489: %q", ctr.Log())
	}
	err := c.Runtime.CheckpointContainer(c.Context(), &runtime.CheckpointContainerRequest{ContainerId: ctr.ID, Location: b.dir + "/out.tar"})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("CVE-2025-0426: a checkpoint: %v; want Unimplemented", err)
	}
	b.untouched()
}
