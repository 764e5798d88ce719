package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	imgspec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

// maxVolumes is how many volumes an image may have. Each is a directory that is copied and a mount; images have a
// handful.
const maxVolumes = 256

// validateText refuses a NUL byte in any string of a configuration, naming its field: runtimes written in C take it
// for the end, so that what they do is not what was checked. Annotations are free text, of which a handler's operator
// decides.
func validateText(config proto.Message) error {
	if field := fieldWithNUL(config.ProtoReflect()); field != "" {
		return fmt.Errorf("%s has a NUL byte: %w", field, errdef.Invalid)
	}
	return nil
}

// fieldWithNUL is the path of a field with a NUL byte, or "".
func fieldWithNUL(m protoreflect.Message) (found string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case name == "annotations":
		case f.IsMap():
			v.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				found = nulIn(f.MapValue(), fmt.Sprintf("%s[%q]", name, key.String()), value)
				if strings.ContainsRune(key.String(), 0) {
					found = name
				}
				return found == ""
			})
		case f.IsList():
			for i := range v.List().Len() {
				if found = nulIn(f, fmt.Sprintf("%s[%d]", name, i), v.List().Get(i)); found != "" {
					break
				}
			}
		default:
			found = nulIn(f, name, v)
		}
		return found == ""
	})
	return found
}

// nulIn is name, or the path of a field below it, when v has a NUL byte.
func nulIn(f protoreflect.FieldDescriptor, name string, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		if strings.ContainsRune(v.String(), 0) {
			return name
		}
	case protoreflect.MessageKind:
		if below := fieldWithNUL(v.Message()); below != "" {
			return name + "." + below
		}
	}
	return ""
}

// ValidateImage refuses an image's configuration with a NUL byte where a process or a mount would get it, and with more
// volumes than a container can have.
func ValidateImage(c *runtime.ContainerConfig, image imgspec.ImageConfig) error {
	for _, f := range []struct {
		field string
		texts []string
	}{
		{"Entrypoint", image.Entrypoint}, {"Cmd", image.Cmd}, {"Env", image.Env}, {"WorkingDir", []string{image.WorkingDir}},
		{"User", []string{image.User}}, {"Volumes", slices.Collect(maps.Keys(image.Volumes))},
	} {
		if slices.ContainsFunc(f.texts, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			return fmt.Errorf("image %s: %s of its configuration has a NUL byte: %w", imageName(c), f.field, errdef.Invalid)
		}
	}
	if n := len(image.Volumes); n > maxVolumes {
		return fmt.Errorf("image %s: its configuration has %d Volumes, at most %d are taken: %w", imageName(c), n, maxVolumes, errdef.Invalid)
	}
	return nil
}
