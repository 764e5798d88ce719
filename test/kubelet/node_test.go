package kubelet

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// unusedImages waits for the kubelet's collector of images, which comes every five minutes and takes what was not used
// for imageMaximumGCAge. The images of pods stay.
func unusedImages(t *testing.T, k *kubelet, began time.Time) {
	const period, margin = 5 * time.Minute, time.Minute
	unused := k.Image(nil, images.File{Header: tar.Header{Name: "only-here", Typeflag: tar.TypeReg, Mode: 0o644}, Content: []byte(rand.Text())})
	id := k.PullRef(unused)
	k.ready(t, newPod("uses", shell("main", forever)))
	used := k.Pull(images.Busybox)
	limit := time.After(time.Until(began.Add(2*period + margin)))
	for {
		all, err := k.Images.ListImages(k.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		has := func(id string) bool {
			return slices.ContainsFunc(all, func(i *runtime.Image) bool { return i.Id == id })
		}
		if !has(used) {
			t.Fatal("the image of a running pod was removed")
		}
		if !has(id) {
			return
		}
		select {
		case <-limit:
			t.Fatalf("an image that nobody uses is there after %v: %v", time.Since(began), all)
		case <-time.After(every):
		}
	}
}

// TestRestarts ends crid and the kubelet, by request and by force, under running pods: nothing of them is disturbed, and
// what ended meanwhile is noticed.
func TestRestarts(t *testing.T) {
	k := start(t, harness.Start(t, harness.Quiet()))
	dir := t.TempDir()
	ending := newPod("ends", shell("main", "[ -e /host/ended ] || { echo first; until [ -e /host/end ]; do sleep 0.1; done; touch /host/ended; exit 5; }; "+forever, mounts("host", "/host")))
	ending.Spec.Volumes = []v1.Volume{hostPath("host", dir)}
	before := map[string]string{}
	for _, pod := range []*v1.Pod{newPod("stays", shell("a", forever), web("b")), newPod("shares", shell("a", forever), shell("b", forever)), ending} {
		share := pod.Name == "shares"
		pod.Spec.ShareProcessNamespace = &share
		for _, s := range k.ready(t, pod).Status.ContainerStatuses {
			before[pod.Name+"/"+s.Name] = s.ContainerID
		}
	}
	for name, restart := range map[string]func(){
		"crid restarts": k.Restart,
		"crid dies":     k.Crash,
		"the kubelet restarts": func() {
			k.stop(t)
			k.run(t)
		},
		"both restart": func() {
			k.stop(t)
			k.Crash()
			k.run(t)
		},
	} {
		restart()
		k.ready(t, newPod("after", shell("main", forever))) // both work again
		k.remove(t, "after")
		k.undisturbed(t, name, before)
	}
	if err := k.Node.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k.wait(t, "a container to end while crid is down", func() error {
		_, err := os.Stat(filepath.Join(dir, "ended"))
		return err
	})
	if err := k.Again(k.Context()); err != nil {
		t.Fatal(err)
	}
	k.is(t, "ends", "restarted", func(pod *v1.Pod) error {
		s := pod.Status.ContainerStatuses[0]
		if last := s.LastTerminationState.Terminated; s.RestartCount != 1 || last == nil || last.ExitCode != 5 {
			return errors.New("not restarted")
		}
		return isReady(pod)
	})
}

// undisturbed expects every pod ready with the containers that it had.
func (k *kubelet) undisturbed(t *testing.T, when string, before map[string]string) {
	t.Helper()
	for name, id := range before {
		pod, container, _ := strings.Cut(name, "/")
		found := k.is(t, pod, "ready after "+when, isReady)
		if s := status(t, found, container); s.ContainerID != id || s.RestartCount != 0 {
			t.Errorf("%s: container %s is %s, restarted %d times; it was %s", when, name, s.ContainerID, s.RestartCount, id)
		}
	}
}

// TestFiftyPods brings fifty pods up and down.
func TestFiftyPods(t *testing.T) {
	const pods = 50
	k := start(t, harness.Start(t, harness.Quiet()))
	k.Pull(images.Busybox)
	began := time.Now()
	for i := range pods {
		k.apply(t, newPod(fmt.Sprintf("many-%d", i), shell("main", forever)))
	}
	for i := range pods {
		k.is(t, fmt.Sprintf("many-%d", i), "ready", isReady)
	}
	t.Logf("%d pods ready after %v", pods, time.Since(began).Round(time.Millisecond))
	list, err := k.Runtime.ListPodSandbox(k.Context(), nil)
	if err != nil || len(list) != pods {
		t.Errorf("crid has %d pods, %v: none may have been made twice", len(list), err)
	}
}
