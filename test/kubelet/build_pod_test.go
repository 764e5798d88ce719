package kubelet

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// forever is a script that runs until it is asked to end, and then ends at once.
const forever = "trap 'exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done"

// newPod is a static pod whose containers may take a second to end.
func newPod(name string, containers ...v1.Container) *v1.Pod {
	grace := int64(1)
	return &v1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}},
		Spec:       v1.PodSpec{Containers: containers, TerminationGracePeriodSeconds: &grace},
	}
}

// shell is a container that runs a script on the busybox image.
func shell(name, script string, edits ...func(*v1.Container)) v1.Container {
	c := v1.Container{Name: name, Image: harness.Ref(images.Busybox), ImagePullPolicy: v1.PullIfNotPresent, Command: []string{"sh", "-c", script}}
	for _, edit := range edits {
		edit(&c)
	}
	return c
}

// web is a container that serves on port 80.
func web(name string, edits ...func(*v1.Container)) v1.Container {
	c := v1.Container{Name: name, Image: harness.Ref(images.Web), ImagePullPolicy: v1.PullIfNotPresent}
	for _, edit := range edits {
		edit(&c)
	}
	return c
}
