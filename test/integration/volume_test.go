package integration

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// imageVolume mounts an image as the kubelet does: by id, read-only.
func imageVolume(id, subPath string) *runtime.Mount {
	return &runtime.Mount{ContainerPath: "/vol", Readonly: true, Image: &runtime.ImageSpec{Image: id}, ImageSubPath: subPath}
}

func withMounts(mounts ...*runtime.Mount) func(*runtime.ContainerConfig) {
	return func(cfg *runtime.ContainerConfig) { cfg.Mounts = mounts }
}

// mountedImages are the images that are mounted on the host.
func mountedImages(t *testing.T, c *harness.Crid) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.RunRoot, "rootfs/.images"))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func TestImagesAsVolumes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		files, layers, nothing, artifact := c.Pull(images.Files), c.Pull(images.Volume), c.Pull(images.Nothing), c.Pull(images.Artifact)
		pod := c.RunPod()
		for _, v := range []struct{ name, id, sub, shell, want string }{
			{"whole", files, "", "cat /vol/dir/sub/file /vol/etc/passwd; ls /vol", "in the image\nof the image\nabsolute\nclimbs\ndangles\ndir\netc\n"},
			{"of several layers", layers, "", "cat /vol/data/seed; test -x /vol/bin/busybox && echo tool", "seed\ntool\n"},
			{"an artifact", artifact, "", "cat /vol/model/weights /vol/sha256-*", "heavy\nnameless\n"},
			{"a file of an artifact", artifact, "model/weights", "cat /vol", "heavy\n"},
			{"without layers", nothing, "", "ls -A /vol | wc -l", "0\n"},
			{"a directory of it", files, "dir/sub", "cat /vol/file", "in the image\n"},
			{"a file of it", files, "dir/sub/file", "cat /vol", "in the image\n"},
			{"a program of it", files, "", "/vol/dir/run", "ran\n"},
			{"an absolute link in it", files, "absolute", "cat /vol/file", "in the image\n"},
			{"a link that climbs stays in it", files, "climbs/passwd", "cat /vol", "of the image\n"},
			{"never written", files, "dir", "touch /vol/x 2>&1 | grep -o Read-only; mount -o remount,rw /vol 2>/dev/null; touch /vol/x 2>&1 | grep -o Read-only", "Read-only\nRead-only\n"},
		} {
			t.Run(v.name, func(t *testing.T) {
				if got := pod.Output(v.shell, withMounts(imageVolume(v.id, v.sub))); got != v.want {
					t.Errorf("got %q, want %q", got, v.want)
				}
			})
		}
	})
}

// Not even a container that may mount writes to an image that others read.
func TestPrivilegedContainersCannotWriteToImages(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		files, nothing := c.Pull(images.Files), c.Pull(images.Nothing)
		pod := c.RunPod(func(cfg *runtime.PodSandboxConfig) { cfg.Linux.SecurityContext.Privileged = true })
		for _, id := range []string{files, nothing} {
			got := pod.Output("mount -o remount,bind,rw /vol && touch /vol/x 2>&1 | grep -o Read-only", withMounts(imageVolume(id, "")),
				security(func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }))
			if got != "Read-only\n" {
				t.Errorf("got %q", got)
			}
		}
	})
}

func TestImageVolumesAreSharedAndCounted(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		id := c.Pull(images.Files)
		pod := c.RunPod()
		all := make([]*harness.Container, 6)
		c.Pull(images.Busybox)
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() { // ends with the creation
				ctr, err := pod.TryCreate(pod.ContainerConfig("sleep 1000", withMounts(imageVolume(id, "dir"))))
				if err != nil {
					t.Error(err)
				}
				all[i] = ctr
			})
		}
		wg.Wait()
		if ids := mountedImages(t, c); len(ids) != 1 || ids[0] != id {
			t.Errorf("mounted images: %v", ids)
		}
		all[0].Start()
		err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: id})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), all[0].ID) {
			t.Errorf("removing an image that is a volume: %v; want FailedPrecondition and the container's id", err)
		}
		m := all[0].Status().Mounts[0]
		if m.Image.Image != id || m.ImageSubPath != "dir" || !m.Readonly || m.HostPath != "" || !strings.Contains(m.Image.ImageRef, "@sha256:") {
			t.Errorf("status says %v", m)
		}
		c.Crash()
		for _, ctr := range all[1:] {
			ctr.Remove()
		}
		if got := all[0].Exec("cat /vol/sub/file"); got != "in the image\n" {
			t.Errorf("after others are gone: %q", got)
		}
		if ids := mountedImages(t, c); len(ids) != 1 {
			t.Errorf("mounted images while one container is left: %v", ids)
		}
		all[0].Remove()
		if ids := mountedImages(t, c); len(ids) != 0 {
			t.Errorf("mounted images without containers: %v", ids)
		}
		if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: id}); err != nil {
			t.Error(err)
		}
	})
}

func TestImageVolumesThatFail(t *testing.T) {
	c := harness.Start(t)
	id := c.Pull(images.Files)
	pod := c.RunPod()
	for name, tc := range map[string]struct {
		code  codes.Code
		mount *runtime.Mount
	}{
		"image is not here":    {codes.Unknown, imageVolume(strings.Repeat("0", 64), "")},
		"image was not pulled": {codes.Unknown, imageVolume(harness.Ref("crid/nonesuch:1"), "")},
		"path is not in it":    {codes.Unknown, imageVolume(id, "dir/none")},
		"link dangles":         {codes.Unknown, imageVolume(id, "dangles")},
		"path climbs":          {codes.InvalidArgument, imageVolume(id, "../../../etc")},
		"path climbs inside":   {codes.InvalidArgument, imageVolume(id, "dir/../dir")},
		"path is absolute":     {codes.InvalidArgument, imageVolume(id, "/dir")},
		"path is below a file": {codes.Unknown, imageVolume(id, "dir/sub/file/x")},
		"handler is not known": {codes.InvalidArgument, &runtime.Mount{ContainerPath: "/vol", Image: &runtime.ImageSpec{Image: id, RuntimeHandler: "nonesuch"}}},
	} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(tc.mount)))
		said := status.Convert(err).Message()
		if status.Code(err) != tc.code || !strings.HasPrefix(said, "ImageVolumeMountFailed: ") || !strings.Contains(said, "mounts[0] (/vol): ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	strange := imageVolume(id, "")
	strange.Propagation = 7
	_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(strange)))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mounts[0] (/vol): propagation") {
		t.Errorf("unknown propagation: got %v", err)
	}
	if ids := mountedImages(t, c); len(ids) != 0 {
		t.Errorf("mounted images: %v", ids)
	}
}

func TestArtifactsAreNoImages(t *testing.T) {
	c := harness.Start(t)
	id := c.Pull(images.Artifact)
	list, err := c.Images.ListImages(c.Context(), nil)
	if err != nil || len(list) != 1 || list[0].GetId() != id || list[0].GetSize() == 0 {
		t.Errorf("listed: %v, %v", list, err)
	}
	pod := c.RunPod()
	_, err = pod.TryCreate(pod.ContainerConfig("true", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = id }))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "is an artifact (application/vnd.crid.test.model.v1+json)") {
		t.Errorf("a container of an artifact: %v", err)
	}
	if err := c.Images.RemoveImage(c.Context(), &runtime.ImageSpec{Image: harness.Ref(images.Artifact)}); err != nil {
		t.Error(err)
	}
	if list, err := c.Images.ListImages(c.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("after the removal: %v, %v", list, err)
	}
}

// mountLine is what /proc/self/mounts of a container says of /vol.
const mountLine = "grep ' /vol ' /proc/self/mounts | cut -d' ' -f4"

func hasOptions(line string, want ...string) bool {
	got := strings.Split(strings.TrimSpace(line), ",")
	for _, w := range want {
		if !slices.Contains(got, w) {
			return false
		}
	}
	return true
}

func TestMountOptions(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		id := c.Pull(images.Files)
		pod := c.RunPod()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, v := range []struct {
			name    string
			mount   *runtime.Mount
			program string
		}{
			{"of the host", &runtime.Mount{HostPath: dir, ContainerPath: "/vol"}, "/vol/run"},
			{"of an image", imageVolume(id, "dir"), "/vol/run"},
		} {
			t.Run(v.name, func(t *testing.T) {
				if got := pod.Output(v.program, withMounts(v.mount)); got != "ran\n" {
					t.Errorf("without options: %q", got)
				}
				v.mount.MountOptions = []string{"noexec", "nodev", "nosuid"}
				got := pod.Output(mountLine+"; "+v.program+" 2>&1", withMounts(v.mount))
				options, said, _ := strings.Cut(got, "\n")
				if !hasOptions(options, "noexec", "nodev", "nosuid") || !strings.Contains(said, "Permission denied") {
					t.Errorf("with options: %q", got)
				}
				for _, bad := range []string{"exec", "bind", "size=1", "ro,suid", ""} {
					v.mount.MountOptions = []string{"nodev", bad}
					_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(v.mount)))
					if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mount_options") {
						t.Errorf("option %q: %v", bad, err)
					}
				}
			})
		}
		st, err := c.Runtime.Status(c.Context(), false)
		if err != nil || !st.GetFeatures().GetMountOptions() {
			t.Errorf("the feature is not told: %v, %v", st.GetFeatures(), err)
		}
	})
}

// readonlyOf is what a container can write of a volume with another filesystem mounted in it.
func readonlyOf(t *testing.T, pod *harness.Pod, m *runtime.Mount) string {
	t.Helper()
	return pod.Output("for d in /vol /vol/sub; do (touch $d/x) 2>/dev/null && echo writable || echo read-only; done", withMounts(m))
}

func TestRecursiveReadOnly(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		dir := t.TempDir()
		sub := filepath.Join(dir, "sub")
		if err := errors.Join(os.Mkdir(sub, 0o755), unix.Mount("tmpfs", sub, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(sub, 0); err != nil {
				t.Error(err)
			}
		}()
		told := handlerFeatures(t, c)
		if !told.RecursiveReadOnlyMounts {
			t.Fatalf("no recursive read-only mounts with this runtime, both installed ones have them: %v", told)
		}
		pod := c.RunPod()
		if got := readonlyOf(t, pod, &runtime.Mount{HostPath: dir, ContainerPath: "/vol", Readonly: true}); got != "read-only\nwritable\n" {
			t.Errorf("read-only: %q", got)
		}
		if got := readonlyOf(t, pod, &runtime.Mount{HostPath: dir, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true}); got != "read-only\nread-only\n" {
			t.Errorf("recursively read-only: %q", got)
		}
		for _, bad := range []*runtime.Mount{
			{HostPath: dir, ContainerPath: "/vol", RecursiveReadOnly: true},
			{HostPath: dir, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true, Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{HostPath: dir, ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		} {
			_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(bad)))
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "recursive_read_only") {
				t.Errorf("%v: %v", bad, err)
			}
		}
	})
}

// A runtime that is too old for recursive read-only mounts is not asked for them.
func TestRecursiveReadOnlyNeedsItsRuntime(t *testing.T) {
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old-crun")
	script := "#!/bin/sh\ncase $1 in --version) echo crun version 1.3; echo spec: 1.0.0; exit;; features) exit 1;; esac\nexec " + crun + " \"$@\"\n"
	if err := os.WriteFile(old, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := harness.Start(t, harness.Runtime("old"), harness.Config("[runtimes.old]\npath = \""+old+"\""))
	if handlerFeatures(t, c).RecursiveReadOnlyMounts {
		t.Error("the feature is told of a runtime that lacks it")
	}
	pod := c.RunPod()
	m := &runtime.Mount{HostPath: t.TempDir(), ContainerPath: "/vol", Readonly: true, RecursiveReadOnly: true}
	_, err = pod.TryCreate(pod.ContainerConfig("true", withMounts(m)))
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), "RROUnsupported: ") || !strings.Contains(err.Error(), `"old"`) {
		t.Errorf("got %v", err)
	}
	m.RecursiveReadOnly = false
	if got := readonlyOf(t, pod, m); !strings.HasPrefix(got, "read-only\n") {
		t.Errorf("read-only: %q", got)
	}
}

// handlerFeatures is what Status says of the default handler.
func handlerFeatures(t *testing.T, c *harness.Crid) *runtime.RuntimeHandlerFeatures {
	t.Helper()
	st, err := c.Runtime.Status(c.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range st.RuntimeHandlers {
		if h.Name == "" {
			return h.Features
		}
	}
	t.Fatal("Status does not tell of the default handler")
	return nil
}

// ProcMount Unmasked comes as empty lists, and needs no privileges in the runtime.
func TestUnmaskedProc(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		const shell = "grep -c ' /proc/' /proc/self/mounts; head -c1 /proc/kcore 2>/dev/null | wc -c; grep -q '^CapEff.*ffffffff' /proc/self/status && echo privileged; true"
		masked := pod.Output(shell, security(func(s *runtime.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/proc/timer_list"}, []string{"/proc/sys", "/proc/bus"}
		}))
		if lines := strings.Split(masked, "\n"); lines[0] == "0" || lines[1] != "0" {
			t.Errorf("masked: %q", masked)
		}
		unmasked := pod.Output(shell, security(func(s *runtime.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
		}))
		if !strings.HasPrefix(unmasked, "0\n") || strings.Contains(unmasked, "privileged") {
			t.Errorf("unmasked: %q", unmasked)
		}
	})
}

// The CRI has no size for shared memory: a pod has 64 MiB, and a volume over /dev/shm as much as it holds.
func TestSharedMemory(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		pod := c.RunPod()
		if got := pod.Output("df -k /dev/shm | tail -1 | awk '{print $2}'"); got != "65536\n" {
			t.Errorf("the pod's own has %q KiB", got)
		}
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}()
		got := pod.Output("df -k /dev/shm | tail -1 | awk '{print $2}'", withMounts(&runtime.Mount{HostPath: dir, ContainerPath: "/dev/shm"}))
		if got != "8192\n" {
			t.Errorf("a volume in its place has %q KiB", got)
		}
	})
}

func TestHostPathsThatAreRefused(t *testing.T) {
	c := harness.Start(t)
	pod := c.RunPod()
	dir := t.TempDir()
	for _, err := range []error{
		os.Symlink("/nonexistent/x", filepath.Join(dir, "dangles")), os.Symlink("loop", filepath.Join(dir, "loop")),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*runtime.Mount{
		{HostPath: dir + "/../../etc", ContainerPath: "/vol"},
		{HostPath: "relative", ContainerPath: "/vol"},
		{HostPath: dir + "/dangles", ContainerPath: "/vol"},
		{HostPath: dir + "/loop", ContainerPath: "/vol"},
		{HostPath: dir + "/file/below", ContainerPath: "/vol"},
		{HostPath: dir, ContainerPath: "/vol/../.."},
		{HostPath: dir, ContainerPath: "/vol", ImageSubPath: "sub"},
		{HostPath: dir, ContainerPath: "/vol", Propagation: 7},
	} {
		_, err := pod.TryCreate(pod.ContainerConfig("true", withMounts(m)))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mounts[0]") {
			t.Errorf("%v: %v; want InvalidArgument and the mount", m, err)
		}
	}
	if list, err := c.Runtime.ListContainers(c.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("%d containers, %v", len(list), err)
	}
}

// A container that has the source's parent swaps it for a symbolic link to crid's own directory, over and over. Whatever
// a mount gets, it never gets crid's directory otherwise than as a slave of the host's.
func TestSwappedHostPaths(t *testing.T) {
	eachRuntime(t, func(t *testing.T, c *harness.Crid) {
		c.Pull(images.Busybox)
		t.Run("plain", func(t *testing.T) { testSwappedHostPaths(t, c, c.RunPod(), volumeKinds["plain"]) })
		t.Run("mapped", func(t *testing.T) {
			testSwappedHostPaths(t, c, c.RunPod(usersOf(idMap(hostUID), idMap(hostGID))), volumeKinds["mapped"])
		})
	})
}

func testSwappedHostPaths(t *testing.T, c *harness.Crid, pod *harness.Pod, kind func(*runtime.Mount) *runtime.Mount) {
	dir := t.TempDir()
	for _, err := range []error{os.Mkdir(filepath.Join(dir, "vol"), 0o755), os.Symlink(c.RunRoot, filepath.Join(dir, "link"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var swapper sync.WaitGroup
	swapper.Go(func() { // ends with stop
		for ctx.Err() == nil {
			if err := unix.Renameat2(unix.AT_FDCWD, dir+"/vol", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	refused, made := 0, 0
	for i := 0; i < 100 && (refused == 0 || made < 5); i++ {
		ctr, err := pod.TryCreate(pod.ContainerConfig("sleep 1000", withMounts(kind(&runtime.Mount{HostPath: dir + "/vol", ContainerPath: "/vol"}))))
		if status.Code(err) == codes.InvalidArgument {
			refused++
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		made++
		ctr.Start()
		if got := ctr.Exec("test -e /vol/crid.sock && grep ' /vol ' /proc/self/mountinfo; true"); got != "" && !strings.Contains(got, "master:") {
			t.Errorf("crid's own directory is mounted, and not as a slave: %q", got)
		}
		ctr.Remove()
	}
	stop()
	swapper.Wait()
	if refused == 0 || made == 0 {
		t.Errorf("%d creates were refused, %d not: the swapping was not met", refused, made)
	}
}
