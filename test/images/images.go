// Package images builds the images that crid's tests and demo run, from what is on the machine, and pushes
// them to a registry. Of crid it knows the pause program alone.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/crid/crid/internal/pause"
)

// The images, as repository:tag below the registry's address.
const (
	Busybox  = "crid/busybox:1"    // the distribution's busybox with every applet; Cmd sh; a Docker image
	Web      = "crid/web:1"        // busybox and the program test/web; serves on port 80; an OCI index with decoys
	Volume   = "crid/volume:1"     // busybox with VOLUME /data that holds a file of user 1001
	User     = "crid/user:1"       // busybox with USER app, who is 1000 and in group 50000
	Pausing  = "crid/stopsignal:1" // busybox with STOPSIGNAL SIGUSR1
	Realtime = "crid/rtsignal:1"   // busybox with STOPSIGNAL SIGRTMIN+3
	Files    = "crid/files:1"      // files and symbolic links, no program: to be a volume
	Nothing  = "crid/nothing:1"    // no layer at all
	Artifact = "crid/artifact:1"   // no image: the file model/weights, and one without a name
	Pause    = "crid/pause:1"      // a pause alone, for peers that run one in every pod
)

// Builder makes the images. Web is the path of the compiled test/web.
type Builder struct {
	Web string
}

// Push builds every image and pushes it to registry (host:port, plain HTTP).
func (b Builder) Push(ctx context.Context, registry string) error {
	base, err := busybox()
	if err != nil {
		return fmt.Errorf("build busybox image: %w", err)
	}
	for ref, make := range map[string]func(v1.Image) (remote.Taggable, error){
		Busybox:  func(base v1.Image) (remote.Taggable, error) { return base, nil },
		Web:      b.web,
		Volume:   volume,
		User:     user,
		Pausing:  stopSignal("SIGUSR1"),
		Realtime: stopSignal("SIGRTMIN+3"),
		Files:    func(v1.Image) (remote.Taggable, error) { return files() },
		Nothing:  func(v1.Image) (remote.Taggable, error) { return nothing() },
		Artifact: func(v1.Image) (remote.Taggable, error) { return artifact() },
		Pause:    func(v1.Image) (remote.Taggable, error) { return pauseImage() },
	} {
		img, err := make(base)
		if err != nil {
			return fmt.Errorf("build %s: %w", ref, err)
		}
		if err := push(ctx, registry+"/"+ref, img); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

func push(ctx context.Context, ref string, img remote.Taggable) error {
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		return err
	}
	switch img := img.(type) {
	case v1.ImageIndex:
		return remote.WriteIndex(tag, img, remote.WithContext(ctx))
	case v1.Image:
		return remote.Write(tag, img, remote.WithContext(ctx))
	default:
		return fmt.Errorf("%T is neither image nor index", img)
	}
}

// busybox makes an image of the distribution's dynamic busybox and its libraries. Every applet is a hard
// link: a symbolic one would make masking /bin/ls mask them all, and busybox-static runs applets inside its
// shell, past any mount.
func busybox() (v1.Image, error) {
	const binary = "/bin/busybox"
	out, err := exec.Command(binary, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets (Debian package busybox): %w", err)
	}
	libs, err := libraries(binary)
	if err != nil {
		return nil, err
	}
	var l layer
	for _, dir := range []string{"bin", "etc", "root", "var", "var/run", "proc", "sys", "dev"} {
		l.dir(dir, 0o755)
	}
	l.dir("tmp", 0o1777)
	l.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
	l.text("etc/group", "root:x:0:\nwww-data:x:33:\napp:x:1000:\nextra:x:50000:app\nnogroup:x:65534:\n")
	l.copy("bin/busybox", binary)
	for _, lib := range libs {
		l.copy(strings.TrimPrefix(lib, "/"), lib)
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			l.link("bin/"+applet, "bin/busybox")
		}
	}
	return l.image(empty.Image, func(c *v1.Config) {
		c.Cmd = []string{"sh"}
		c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	})
}

// libraries lists the shared objects that binary needs, as the dynamic linker finds them.
func libraries(binary string) ([]string, error) {
	out, err := exec.Command("ldd", binary).Output()
	if err != nil {
		return nil, fmt.Errorf("list libraries of %s: %w", binary, err)
	}
	var libs []string
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "/") {
			libs = append(libs, field)
		}
	}
	return libs, nil
}

// web adds the web server and wraps the image into an index whose first entries are for other platforms and
// hold no program: a client that picks a wrong one fails.
func (b Builder) web(base v1.Image) (remote.Taggable, error) {
	var l layer
	l.copy("bin/web", b.Web)
	img, err := l.image(base, func(c *v1.Config) {
		c.Entrypoint, c.Cmd = []string{"/bin/web"}, nil
		c.ExposedPorts = map[string]struct{}{"80/tcp": {}}
		c.WorkingDir = "/tmp"
	})
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "windows", Architecture: file.Architecture}}},
		mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: file.Architecture}}},
	)
	return index, nil
}

func volume(base v1.Image) (remote.Taggable, error) {
	var l layer
	l.add(tar.Header{Name: "data", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1001, Gid: 1001}, nil)
	l.add(tar.Header{Name: "data/seed", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1001, Gid: 1001}, []byte("seed\n"))
	return l.image(base, func(c *v1.Config) { c.Volumes = map[string]struct{}{"/data": {}, "/fresh": {}} })
}

func user(base v1.Image) (remote.Taggable, error) {
	var l layer
	l.add(tar.Header{Name: "home/app", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1000, Gid: 1000}, nil)
	return l.image(base, func(c *v1.Config) { c.User = "app" })
}

func stopSignal(name string) func(v1.Image) (remote.Taggable, error) {
	return func(base v1.Image) (remote.Taggable, error) {
		var l layer
		l.text("etc/stopsignal", name+"\n")
		return l.image(base, func(c *v1.Config) { c.StopSignal = name })
	}
}

func files() (remote.Taggable, error) {
	var l layer
	l.dir("dir", 0o755)
	l.dir("dir/sub", 0o755)
	l.text("dir/sub/file", "in the image\n")
	l.text("etc/passwd", "of the image\n")
	l.add(tar.Header{Name: "dir/run", Typeflag: tar.TypeReg, Mode: 0o755}, []byte("#!/bin/sh\necho ran\n"))
	for _, link := range [][2]string{{"absolute", "/dir/sub"}, {"climbs", "../../../../etc"}, {"dangles", "/none"}} {
		l.add(tar.Header{Name: link[0], Typeflag: tar.TypeSymlink, Linkname: link[1], Mode: 0o777}, nil)
	}
	return l.image(empty.Image, func(*v1.Config) {})
}

func nothing() (remote.Taggable, error) {
	file, err := empty.Image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	return mutate.ConfigFile(empty.Image, file)
}

func artifact() (remote.Taggable, error) {
	blob := func(content string) v1.Layer { return static.NewLayer([]byte(content), "application/octet-stream") }
	img, err := mutate.Append(empty.Image,
		mutate.Addendum{Layer: blob("heavy\n"), Annotations: map[string]string{"org.opencontainers.image.title": "model/weights"}},
		mutate.Addendum{Layer: blob("nameless\n")})
	if err != nil {
		return nil, err
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), "application/vnd.crid.test.model.v1+json"), nil
}

func pauseImage() (remote.Taggable, error) {
	var l layer
	l.add(tar.Header{Name: "pause", Typeflag: tar.TypeReg, Mode: 0o755}, pause.Binary())
	return l.image(empty.Image, func(c *v1.Config) { c.Entrypoint, c.User = []string{"/pause"}, "65535:65535" })
}

// layer collects the entries of a layer; the first failure is told by image.
type layer struct {
	buf bytes.Buffer
	err error
}

func (l *layer) dir(name string, mode int64) {
	l.add(tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, nil)
}

func (l *layer) text(name, content string) {
	l.add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, []byte(content))
}

func (l *layer) link(name, target string) {
	l.add(tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o755}, nil)
}

// copy takes a file of the host, following symbolic links.
func (l *layer) copy(name, source string) {
	content, err := os.ReadFile(source)
	if err != nil {
		l.fail(err)
		return
	}
	l.add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, content)
}

func (l *layer) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

// add writes one entry. Modification times stay zero, so that the same content gives the same digest.
func (l *layer) add(h tar.Header, content []byte) {
	h.Name = path.Clean(h.Name)
	l.raw(h, content)
}

// raw writes one entry under its name as it is.
func (l *layer) raw(h tar.Header, content []byte) {
	h.Size = int64(len(content))
	w := tar.NewWriter(&l.buf)
	if err := w.WriteHeader(&h); err != nil {
		l.fail(fmt.Errorf("%s: %w", h.Name, err))
		return
	}
	if _, err := w.Write(content); err != nil {
		l.fail(fmt.Errorf("%s: %w", h.Name, err))
	}
	if err := w.Flush(); err != nil { // no Close: the end of the archive comes with image
		l.fail(fmt.Errorf("%s: %w", h.Name, err))
	}
}

// image puts the layer on top of base and lets edit change its configuration.
func (l *layer) image(base v1.Image, edit func(*v1.Config)) (v1.Image, error) {
	if l.err != nil {
		return nil, l.err
	}
	content := append(bytes.Clone(l.buf.Bytes()), make([]byte, 1024)...) // two zero blocks end an archive
	top, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(base, top)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	edit(&file.Config)
	return mutate.ConfigFile(img, file)
}
