package server

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
)

const (
	// maxName bounds ids, names and references: Kubernetes' own are shorter by far.
	maxName = 1024
	// maxLabels bounds the labels and annotations of one object together, in bytes: lists repeat them for
	// each object and must fit into one message.
	maxLabels = 1 << 20
	// maxConfig bounds one pod's or container's configuration, in bytes.
	maxConfig = 4 << 20
)

// checkName refuses what can be neither a name nor an id; field is how the CRI calls it.
func checkName(field, value string, required bool) error {
	switch {
	case value == "" && required:
		return fmt.Errorf("%s is empty: %w", field, errdef.Invalid)
	case len(value) > maxName:
		return fmt.Errorf("%s has %d bytes, at most %d are allowed: %w", field, len(value), maxName, errdef.Invalid)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("%s holds a NUL byte: %w", field, errdef.Invalid)
	}
	return nil
}

// checkCommand refuses what is no command: a runtime written in C takes a NUL byte for the end of a word.
func checkCommand(cmd []string) error {
	if len(cmd) == 0 {
		return fmt.Errorf("cmd is empty: %w", errdef.Invalid)
	}
	for i, word := range cmd {
		if strings.ContainsRune(word, 0) {
			return fmt.Errorf("cmd[%d] has a NUL byte: %w", i, errdef.Invalid)
		}
	}
	return nil
}

// checkConfig bounds a configuration as a whole.
func checkConfig(field string, config proto.Message) error {
	if size := proto.Size(config); size > maxConfig {
		return fmt.Errorf("%s has %d bytes, at most %d are allowed: %w", field, size, maxConfig, errdef.Invalid)
	}
	return nil
}

// labelled is a configuration with labels and annotations.
type labelled interface {
	GetLabels() map[string]string
	GetAnnotations() map[string]string
}

func checkLabels(field string, config labelled) error {
	total := 0
	for _, m := range []map[string]string{config.GetLabels(), config.GetAnnotations()} {
		for k, v := range m {
			total += len(k) + len(v)
		}
	}
	if total > maxLabels {
		return fmt.Errorf("%s: labels and annotations have %d bytes together, at most %d are allowed: %w",
			field, total, maxLabels, errdef.Invalid)
	}
	return nil
}

// checkPodMetadata wants what makes a pod's key.
func checkPodMetadata(m *runtime.PodSandboxMetadata) error {
	for _, f := range []struct{ field, value string }{
		{"config.metadata.name", m.GetName()},
		{"config.metadata.namespace", m.GetNamespace()},
		{"config.metadata.uid", m.GetUid()},
	} {
		if err := checkName(f.field, f.value, true); err != nil {
			return err
		}
	}
	return nil
}
