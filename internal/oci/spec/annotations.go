package spec

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/crid/crid/internal/errdef"
)

// The annotations that crid itself puts into a configuration. They are the keys that tools around other CRI
// runtimes read (Kata, gVisor, NRI plugins, monitoring).
const (
	AnnotationContainerType    = "io.kubernetes.cri.container-type" // "container", or "sandbox" for a pause
	AnnotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	AnnotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	AnnotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	AnnotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
	AnnotationContainerName    = "io.kubernetes.cri.container-name"
	AnnotationImageName        = "io.kubernetes.cri.image-name"

	// crunSubgroup empty keeps crun from putting a container into a cgroup below its scope on v2: that would have limits
	// of its own beside the scope's.
	crunSubgroup = "run.oci.systemd.subgroup"
)

// setAnnotations lets through what the handler's operator allowed, the container's over the pod's, and then
// sets crid's own, which nobody can replace.
func setAnnotations(s *specs.Spec, in Input) error {
	out := map[string]string{}
	for _, from := range []map[string]string{in.Pod.Config.GetAnnotations(), in.Config.GetAnnotations()} {
		for key, value := range from {
			ok, err := allowed(key, in.AllowedAnnotations)
			if err != nil {
				return err
			}
			if ok {
				out[key] = value
			}
		}
	}
	maps.Copy(out, podAnnotations(in.Pod, "container"))
	out[AnnotationContainerName] = in.Config.GetMetadata().GetName()
	out[AnnotationImageName] = imageName(in.Config)
	s.Annotations = inScope(out, in.Cgroup)
	return nil
}

// inScope adds what runtimes must be told of a container whose cgroup is a scope of systemd.
func inScope(annotations map[string]string, cgroupsPath string) map[string]string {
	if strings.Contains(cgroupsPath, ":") && !strings.HasPrefix(cgroupsPath, "/") {
		annotations[crunSubgroup] = ""
	}
	return annotations
}

func podAnnotations(pod PodEnv, kind string) map[string]string {
	m := pod.Config.GetMetadata()
	return map[string]string{
		AnnotationContainerType:    kind,
		AnnotationSandboxID:        pod.ID,
		AnnotationSandboxName:      m.GetName(),
		AnnotationSandboxNamespace: m.GetNamespace(),
		AnnotationSandboxUID:       m.GetUid(),
	}
}

func allowed(key string, globs []string) (bool, error) {
	for _, glob := range globs {
		ok, err := path.Match(glob, key)
		if err != nil {
			return false, fmt.Errorf("allowed_annotations %q: %v: %w", glob, err, errdef.Invalid)
		}
		if ok {
			return true, nil
		}
	}
	return false, nil
}
