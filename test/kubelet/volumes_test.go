package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

func volume(name string, source v1.VolumeSource) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: source}
}

func hostPath(name, dir string) v1.Volume {
	return volume(name, v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}})
}

// mounts puts a volume at a path.
func mounts(volume, path string) func(*v1.Container) {
	return mounted(v1.VolumeMount{Name: volume, MountPath: path})
}

func mounted(m v1.VolumeMount) func(*v1.Container) {
	return func(c *v1.Container) { c.VolumeMounts = append(c.VolumeMounts, m) }
}

// emptyDirs are shared between containers, of the disk or of memory with a size.
func emptyDirs(t *testing.T, k *kubelet) {
	size := resource.MustParse("8Mi")
	pod := newPod("empty",
		shell("writes", "echo shared > /disk/f; echo shared > /memory/f; "+forever, mounts("disk", "/disk"), mounts("memory", "/memory")),
		shell("reads", "until cat /disk/f /memory/f; do sleep 0.1; done; stat -f -c %T /memory; df -k /memory | tail -1; "+forever, mounts("disk", "/disk"), mounts("memory", "/memory")))
	pod.Spec.Volumes = []v1.Volume{
		volume("disk", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
		volume("memory", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &size}}),
	}
	k.ready(t, pod)
	text := k.says(t, "empty", "reads", "/memory\n")
	if !strings.Contains(text, "shared\nshared\ntmpfs\n") || !strings.Contains(text, " 8192 ") {
		t.Errorf("log %q", text)
	}
	k.remove(t, "empty")
}

// hostPaths are the host's files: a directory, a file, one that may not be written and a part of a directory.
func hostPaths(t *testing.T, k *kubelet) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "sub/inner"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("from the host: "+name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod := newPod("paths", shell("main", "cat /dir/file /file /sub/inner; echo x > /ro/new || echo refused; echo written > /dir/new; "+forever,
		mounts("dir", "/dir"), mounts("file", "/file"), mounted(v1.VolumeMount{Name: "dir", MountPath: "/ro", ReadOnly: true}),
		mounted(v1.VolumeMount{Name: "dir", MountPath: "/sub", SubPath: "sub"})))
	pod.Spec.Volumes = []v1.Volume{hostPath("dir", dir), hostPath("file", filepath.Join(dir, "file"))}
	k.ready(t, pod)
	text := k.says(t, "paths", "main", "up")
	if !strings.Contains(text, "from the host: file\nfrom the host: file\nfrom the host: sub/inner\n") || !strings.Contains(text, "refused") {
		t.Errorf("log %q", text)
	}
	reads(t, filepath.Join(dir, "new"), "written\n")
}

// downward tells a container about its pod, in files and in its environment. A projected volume, which could hold the
// same, is refused by a kubelet without an API server.
func downward(t *testing.T, k *kubelet) {
	field := func(path string) *v1.ObjectFieldSelector { return &v1.ObjectFieldSelector{FieldPath: path} }
	pod := newPod("downward", shell("main", "cat /own/labels; echo; echo name $NAME ip $IP node $NODE cpu $CPU; "+forever,
		mounts("own", "/own"), func(c *v1.Container) {
			for name, path := range map[string]string{"NAME": "metadata.name", "IP": "status.podIP", "NODE": "spec.nodeName"} {
				c.Env = append(c.Env, v1.EnvVar{Name: name, ValueFrom: &v1.EnvVarSource{FieldRef: field(path)}})
			}
			c.Env = append(c.Env, v1.EnvVar{Name: "CPU", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.cpu"}}})
			c.Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}
		}))
	pod.Spec.Volumes = []v1.Volume{volume("own", v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{
		Items: []v1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: field("metadata.labels")}}}})}
	pod = k.ready(t, pod)
	text := k.says(t, "downward", "main", "up")
	for _, want := range []string{"app=\"downward\"\n", "name downward-" + nodeName + " ip " + pod.Status.PodIP + " node " + nodeName + " cpu 1\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("log %q does not tell %q", text, want)
		}
	}
}

func imageVolume(t *testing.T, k *kubelet) {
	pod := newPod("image-volume", shell("main", "cat /files/dir/sub/file /part/sub/file; /part/run; touch /files/x || echo refused; "+forever,
		mounts("files", "/files"), mounted(v1.VolumeMount{Name: "files", MountPath: "/part", SubPath: "dir"})))
	pod.Spec.Volumes = []v1.Volume{volume("files", v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: harness.Ref(images.Files), PullPolicy: v1.PullIfNotPresent}})}
	k.ready(t, pod)
	if text := k.says(t, "image-volume", "main", "up"); !strings.HasPrefix(text, "in the image\nin the image\nran\n") || !strings.Contains(text, "refused") {
		t.Errorf("log %q", text)
	}
	k.remove(t, "image-volume")
}
