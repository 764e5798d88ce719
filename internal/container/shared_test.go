package container

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/oci/spec"
)

// What would be mounted on the host through a shared mount is found wherever links of the image or of the host lead.
func TestWhatSharedMountsHold(t *testing.T) {
	root, host := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "etc"), 0o755),
		os.MkdirAll(filepath.Join(host, "etc/private"), 0o755),
		os.MkdirAll(filepath.Join(host, "run/resolve"), 0o755),
		os.MkdirAll(filepath.Join(root, "run/resolve"), 0o755),
		os.MkdirAll(filepath.Join(root, "var"), 0o755),
		os.Symlink("../run", filepath.Join(root, "var/run")),
		os.Symlink("/run/resolve/stub.conf", filepath.Join(root, "etc/resolv.conf")),
		os.Symlink("../run/../run/resolve/stub.conf", filepath.Join(host, "etc/resolv.conf")),
		os.Symlink("loop", filepath.Join(root, "loop")),
		os.Symlink("etc", filepath.Join(root, "conf")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	shared := func(sub, at string) spec.Mount {
		return spec.Mount{Source: filepath.Join(host, sub), Mount: &runtime.Mount{ContainerPath: at, Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	}
	private := func(sub, at string) spec.Mount {
		return spec.Mount{Source: filepath.Join(host, sub), Mount: &runtime.Mount{ContainerPath: at}}
	}
	image := shared("etc", "/etc")
	image.Image = &runtime.ImageSpec{Image: "x"}
	for name, tc := range map[string]struct {
		mounts []spec.Mount
		want   []string
	}{
		"none of them":             {[]spec.Mount{private("etc", "/etc"), image}, nil},
		"the pod's files":          {[]spec.Mount{shared("etc", "/etc")}, []string{"/etc/hosts", "/etc/private/volume"}},
		"through a link to it":     {[]spec.Mount{shared("etc", "/conf")}, []string{"/etc/hosts", "/etc/private/volume"}},
		"by a link of the image":   {[]spec.Mount{shared("run", "/run")}, []string{"/etc/resolv.conf", "/run/data", "/var/run/more"}},
		"the mount by a link":      {[]spec.Mount{shared("run", "/var/run")}, []string{"/etc/resolv.conf", "/run/data", "/var/run/more"}},
		"by a link of the host":    {[]spec.Mount{private("etc", "/etc"), shared("run", "/run")}, []string{"/etc/resolv.conf", "/run/data", "/var/run/more"}},
		"but not in another in it": {[]spec.Mount{shared("etc", "/etc"), private("run", "/run"), private("etc/private", "/etc/private")}, []string{"/etc/hosts"}},
		"shared memory":            {[]spec.Mount{shared("", "/dev")}, []string{"/dev/shm"}},
		"a link to itself":         {[]spec.Mount{shared("etc", "/loop/x"), shared("", "/elsewhere")}, nil},
	} {
		in := spec.Input{Rootfs: root, Mounts: tc.mounts,
			Pod:     spec.PodEnv{Hosts: "/h", ResolvConf: "/r"},
			Config:  &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{}}},
			Volumes: []spec.Volume{{Destination: "/run/data"}, {Destination: "/var/run/more"}, {Destination: "/etc/private/volume"}}}
		if err := (&Container{}).lookUpShared(t.Context(), &in); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range in.Mounts {
			got = append(got, m.Holds...)
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
