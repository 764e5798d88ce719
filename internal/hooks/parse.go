package hooks

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// version is the only one of the schema that is still in use.
const version = "1.0.0"

// precreate is a stage of Podman alone, in which a hook edits the configuration.
const precreate = "precreate"

// hook is one file, understood.
type hook struct {
	what      specs.Hook
	when      when
	stages    []string
	file      string
	precreate bool // its file asks for that stage too
}

// when is a file's conditions. All that are set must hold; of commands one is enough.
type when struct {
	always      *bool
	bindMounts  *bool
	annotations []pair
	commands    []*regexp.Regexp
}

// pair holds for an annotation whose key and value both match.
type pair struct{ key, value *regexp.Regexp }

// file is the schema.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// parse takes no offence at keys that it does not know: the directories are Podman's too.
func parse(raw []byte) (hook, error) {
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return hook{}, err
	}
	if f.Version != version {
		return hook{}, fmt.Errorf("version %q: only %s is known", f.Version, version)
	}
	if err := f.checkStages(); err != nil {
		return hook{}, err
	}
	if err := f.checkProgram(); err != nil {
		return hook{}, err
	}
	conditions, err := f.conditions()
	stages := slices.DeleteFunc(slices.Clone(f.Stages), func(stage string) bool { return stage == precreate })
	return hook{what: f.Hook, when: conditions, stages: stages, precreate: len(stages) < len(f.Stages)}, err
}

func (f file) checkStages() error {
	if len(f.Stages) == 0 {
		return errors.New("stages: empty")
	}
	for i, stage := range f.Stages {
		if stage != precreate && place(&specs.Hooks{}, stage) == nil {
			return fmt.Errorf("stages[%d] %q: unknown; known: prestart, createRuntime, createContainer, startContainer, "+
				"poststart, poststop", i, stage)
		}
	}
	return nil
}

// checkProgram does not look for the program of startContainer, which is the container's own.
func (f file) checkProgram() error {
	if !filepath.IsAbs(f.Hook.Path) {
		return fmt.Errorf("hook.path %q: not an absolute path", f.Hook.Path)
	}
	if f.Hook.Timeout != nil && *f.Hook.Timeout <= 0 {
		return fmt.Errorf("hook.timeout: %d is not positive", *f.Hook.Timeout)
	}
	for i, v := range f.Hook.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" {
			return fmt.Errorf("hook.env[%d] %q: not NAME=value", i, v)
		}
	}
	if len(f.Stages) == 1 && f.Stages[0] == "startContainer" {
		return nil
	}
	info, err := os.Stat(f.Hook.Path)
	if err != nil {
		return fmt.Errorf("hook.path: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("hook.path %s: no program", f.Hook.Path)
	}
	return nil
}

func (f file) conditions() (when, error) {
	w := when{always: f.When.Always, bindMounts: f.When.HasBindMounts}
	for key, value := range f.When.Annotations {
		k, err := regexp.Compile(key)
		if err != nil {
			return w, fmt.Errorf("when.annotations: %w", err)
		}
		v, err := regexp.Compile(value)
		if err != nil {
			return w, fmt.Errorf("when.annotations[%s]: %w", key, err)
		}
		w.annotations = append(w.annotations, pair{k, v})
	}
	for i, command := range f.When.Commands {
		c, err := regexp.Compile(command)
		if err != nil {
			return w, fmt.Errorf("when.commands[%d]: %w", i, err)
		}
		w.commands = append(w.commands, c)
	}
	if w.always == nil && w.bindMounts == nil && len(w.annotations)+len(w.commands) == 0 {
		return w, errors.New("when: no condition; always, annotations, commands and hasBindMounts are known")
	}
	return w, nil
}

// holds tells whether a container meets all conditions. One that is set to false is met by none.
func (w when) holds(s *specs.Spec, annotations map[string]string, bindMounts bool) bool {
	if w.always != nil && !*w.always || w.bindMounts != nil && !(*w.bindMounts && bindMounts) {
		return false
	}
	for _, p := range w.annotations {
		if !p.among(annotations) {
			return false
		}
	}
	return len(w.commands) == 0 || w.names(s.Process)
}

func (p pair) among(annotations map[string]string) bool {
	for key, value := range annotations {
		if p.key.MatchString(key) && p.value.MatchString(value) {
			return true
		}
	}
	return false
}

func (w when) names(p *specs.Process) bool {
	if p == nil || len(p.Args) == 0 {
		return false
	}
	for _, command := range w.commands {
		if command.MatchString(p.Args[0]) {
			return true
		}
	}
	return false
}

// add puts the hook at the end of each of its stages.
func (h hook) add(s *specs.Spec) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, stage := range h.stages {
		at := place(s.Hooks, stage)
		*at = append(*at, h.what)
	}
}

// place is where the hooks of a stage stand; nil for a stage that does not exist.
func place(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart // deprecated, and still what most hooks are written for
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}
