package container

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/storage"
)

// fakeMapper mounts nothing; what it was asked for goes with the root filesystem.
type fakeMapper struct{ session }

func (f fakeMapper) MapMount(_ context.Context, id string, source *os.File, owner storage.Owner) (string, error) {
	if owner.UserNS == "" || owner.UID != 100000 || owner.GID != 200000 {
		f.t.Errorf("mapped for %+v", owner)
	}
	return "/mapped/" + id + source.Name(), f.do("map mount", func() error { return nil })
}

func (f fakeMapper) MapImage(_ context.Context, id, imageID string, _ storage.Owner) (string, error) {
	dir := filepath.Join(f.dir, "mapped", id)
	return dir, f.do("map image", func() error { return os.MkdirAll(filepath.Join(dir, "sub"), 0o755) })
}

func (f fakeMapper) Unmap(id string) error {
	return f.do("unmap", func() error { return os.RemoveAll(filepath.Join(f.dir, "mapped", id)) })
}

// userns is a request for a container of a pod with a user namespace.
func (h *host) userns(name string) Request {
	r := h.request(name)
	uids, gids := []*runtime.IDMapping{{HostId: 100000, Length: 65536}}, []*runtime.IDMapping{{HostId: 200000, Length: 65536}}
	r.Pod.UserNS = "/run/crid/ns/user/pod"
	r.Pod.Config = &runtime.PodSandboxConfig{
		Metadata: r.Pod.Config.GetMetadata(),
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: uids, Gids: gids}}}},
	}
	r.Config.Mounts = []*runtime.Mount{
		{HostPath: h.dir, ContainerPath: "/mapped", UidMappings: uids, GidMappings: gids},
		{HostPath: h.dir, ContainerPath: "/plain"},
	}
	return r
}

func TestMountsWithMappedIDs(t *testing.T) {
	h, m := start(t)
	c := mustCreate(t, m, h.userns("web"))
	sources := map[string]string{}
	for _, mount := range h.config(c.ID()).Mounts {
		sources[mount.Destination] = mount.Source
	}
	if sources["/mapped"] != "/mapped/"+c.ID()+h.dir || sources["/plain"] != h.dir {
		t.Errorf("sources: %v", sources)
	}
	if got := c.Status().Mounts[0].HostPath; got != h.dir {
		t.Errorf("status tells of %s", got)
	}
}

// What is mounted with mapped ids for a container that fails goes with it, whichever call it was.
func TestFailMappedAtEveryCall(t *testing.T) {
	for _, how := range []verdict{failBefore, failAfter} {
		stories(t, func(t *testing.T, h *host, n int) bool {
			reached := false
			h.wrong = func(i int, _ string) verdict {
				if i != n {
					return right
				}
				reached = true
				return how
			}
			m := h.boot().open()
			defer closeManager(t, m)
			c, err := m.Create(t.Context(), h.userns("web").withData("sub"))
			if err == nil {
				err = c.Remove(t.Context())
			}
			if err != nil && !reached {
				t.Error(err)
			}
			synctest.Wait() // what goes on in the background counts as well
			noLimbo(t, m, "after the failure")
			if err := m.RemovePod(t.Context(), testPod); err != nil {
				t.Error(err)
			}
			h.wantNothingLeft(m)
			return reached
		})
	}
}
