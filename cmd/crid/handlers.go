package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/oci"
)

// preferred are the handlers of which the first that is there is the default, unless another is configured.
var preferred = []string{"crun", "runc"}

// programs is what crid runs of others.
type programs struct {
	conmon   string
	handlers map[string]container.Handler
	facts    []fact.Handler // of handlers, the default first
	warnings []string       // handlers that were left out or are in doubt, and why
}

// findPrograms looks for the monitor and the runtimes and asks these what they can do. All that is missing is
// told at once, with the package that brings it. alike is what all runtimes have in common.
func findPrograms(ctx context.Context, cfg config.Config, alike oci.Config) (programs, error) {
	p := programs{handlers: map[string]container.Handler{}}
	var err error
	if p.conmon, err = find(cfg.Conmon); err != nil {
		err = fmt.Errorf("the container monitor: %w: install the package conmon, or set conmon in crid.toml", err)
	}
	err = errors.Join(err, p.probe(ctx, cfg, alike))
	if err != nil {
		return programs{}, err
	}
	return p, nil
}

// probe fills in the handlers. One that is not installed is left out silently, one that does not work with a
// warning, unless a pod could not do without it.
func (p *programs) probe(ctx context.Context, cfg config.Config, alike oci.Config) error {
	for _, name := range slices.Sorted(maps.Keys(cfg.Runtimes)) {
		path, err := find(cfg.Runtimes[name].Path)
		switch {
		case err == nil:
			own := alike
			own.Name, own.Path, own.Root = name, path, cfg.RuntimeRoot(name)
			rt := oci.New(own)
			err = p.add(ctx, name, rt, cfg.Runtimes[name].AllowedAnnotations)
		case cfg.DefaultRuntime != name && !filepath.IsAbs(cfg.Runtimes[name].Path):
			continue
		default:
			err = fmt.Errorf("handler %s: %w: install it, or mend [runtimes.%s] in crid.toml", name, err, name)
		}
		if err != nil && (name == cfg.DefaultRuntime || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			p.warnings = append(p.warnings, fmt.Sprintf("left out: %v", err))
		}
	}
	if len(p.facts) == 0 {
		return errors.New(strings.Join(append([]string{
			"no OCI runtime was found: install the package crun (or runc), or name another in [runtimes.NAME]"}, p.warnings...), "\n"))
	}
	p.putDefaultFirst(cfg.DefaultRuntime)
	return nil
}

func (p *programs) add(ctx context.Context, name string, rt *oci.Runtime, annotations []string) error {
	found, err := rt.Probe(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(rt.Config().Root, 0o700); err != nil {
		return fmt.Errorf("handler %s: make its state directory: %w", name, err)
	}
	failpoint.Hit("crid/handlers/root-made")
	if err := rt.Tidy(); err != nil {
		p.warnings = append(p.warnings, err.Error())
	}
	p.handlers[name] = container.Handler{Fact: found, Runtime: rt, AllowedAnnotations: annotations}
	p.facts = append(p.facts, found)
	if found.Doubt != "" {
		p.warnings = append(p.warnings, found.Doubt)
	}
	return nil
}

// putDefaultFirst orders the handlers; chosen may be empty.
func (p *programs) putDefaultFirst(chosen string) {
	rank := slices.Concat([]string{chosen}, preferred)
	place := func(h fact.Handler) int {
		if i := slices.Index(rank, h.Name); i >= 0 {
			return i
		}
		return len(rank)
	}
	slices.SortStableFunc(p.facts, func(a, b fact.Handler) int { return place(a) - place(b) })
}

// find returns the path of a program: as given when it is absolute, else from PATH or where system programs
// lie, which a minimal PATH may lack.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if err == nil || filepath.IsAbs(name) {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err == nil {
		return path, nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("the program %s is not there", name)
	}
	return "", fmt.Errorf("the program %s cannot be run: %w", name, err)
}

// tell logs what was found.
func (p programs) tell(log *slog.Logger) {
	for i, h := range p.facts {
		log.Info("runtime handler", "name", h.Name, "default", i == 0, "path", h.Path, "version", h.Version,
			"spec", h.SpecVersion, "recursiveReadOnly", h.RecursiveReadOnly, "userNamespaces", h.UserNamespaces)
	}
	for _, warning := range p.warnings {
		log.Warn(warning)
	}
}
